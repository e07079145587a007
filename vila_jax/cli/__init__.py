"""The command line: `vila-jax COMMAND`, one short file per command.

A command is a module with `SUMMARY`, `add_arguments(parser)` and `run(args) -> exit code`, listed in `main.COMMANDS`.
What a person reads goes to stdout, what happens meanwhile to stderr; `--json` replaces the first by one JSON object.
"""
