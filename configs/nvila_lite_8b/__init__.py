"""NVILA-Lite-8B (arXiv 2412.04468): up to 12 tiles and a thumbnail, 121 tokens each, in four stages.

    python -m train configs/nvila_lite_8b

runs them one after another.
"""

from configs.nvila_lite_8b import align, pretrain, sft, tower

STAGES = (align.STAGE, tower.STAGE, pretrain.STAGE, sft.STAGE)
