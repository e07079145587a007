"""VILA-13B, stage 3: as VILA-7B.

    python -m train configs/vila_13b/sft.py

Source: VILA `scripts/v1_5/paper/3_sft.sh`, written for 8 A100.
"""

import dataclasses

from configs.vila_7b import sft

STAGE = dataclasses.replace(
    sft.STAGE,
    name="vila_13b/sft",
    start="vila_13b/pretrain",
)
