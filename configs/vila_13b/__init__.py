"""VILA-13B (arXiv 2312.07533): the recipe of VILA-7B with a larger language model.

    python -m train configs/vila_13b

runs them one after another.
"""

from configs.vila_13b import align, pretrain, sft

STAGES = (align.STAGE, pretrain.STAGE, sft.STAGE)
