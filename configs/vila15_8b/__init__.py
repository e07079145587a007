"""Llama-3-VILA1.5-8b: the recipe of VILA1.5-3b with Llama-3-8B-Instruct.

    python -m train configs/vila15_8b

runs them one after another.
"""

from configs.vila15_8b import align, pretrain, sft

STAGES = (align.STAGE, pretrain.STAGE, sft.STAGE)
