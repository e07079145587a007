"""VILA-7B (arXiv 2312.07533): alignment, interleaved pre-training, joint instruction tuning.

    python -m train configs/vila_7b

runs them one after another.
"""

from configs.vila_7b import align, pretrain, sft

STAGES = (align.STAGE, pretrain.STAGE, sft.STAGE)
