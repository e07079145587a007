"""VILA-13B, stage 2: as VILA-7B.

    python -m train configs/vila_13b/pretrain.py

Source: VILA `scripts/v1_5/paper/2_pretrain_mmc4_coyo.sh`, written for 128 A100.
"""

import dataclasses

from configs.vila_7b import pretrain

STAGE = dataclasses.replace(
    pretrain.STAGE,
    name="vila_13b/pretrain",
    start="vila_13b/align",
)
