"""The model as evaluation harnesses want it: `lmms-eval` for pictures, `lm-eval` for text alone.

Both harnesses are extras and are imported by the modules that derive from their classes, so that importing this package
imports neither; see `docs/harnesses.md`.
"""
