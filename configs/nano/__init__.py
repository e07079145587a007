"""nano, the embedded model: a LLaVA-NeXT in miniature, trained from nothing on drawn scenes in the stages of VILA.

    python -m train configs/nano

A tower and a language of its own first, since there is none to begin with; then VILA's three stages.
"""

from configs.nano import align, language, pretrain, sft, tower

STAGES = (tower.STAGE, language.STAGE, align.STAGE, pretrain.STAGE, sft.STAGE)
