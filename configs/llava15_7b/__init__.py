"""LLaVA-1.5-7B (arXiv 2310.03744): alignment and instruction tuning.

    python -m train configs/llava15_7b

runs them one after another.
"""

from configs.llava15_7b import align, sft

STAGES = (align.STAGE, sft.STAGE)
