"""VILA1.5-3b: SigLIP at 384 pixels, 196 tokens a picture, the tower trained in the last stage.

    python -m train configs/vila15_3b

runs them one after another.
"""

from configs.vila15_3b import align, pretrain, sft

STAGES = (align.STAGE, pretrain.STAGE, sft.STAGE)
