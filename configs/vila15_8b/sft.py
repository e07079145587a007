"""Llama-3-VILA1.5-8b, stage 3: as VILA1.5-3b.

    python -m train configs/vila15_8b/sft.py

Source: VILA, branch vila1.5, `scripts/v1_5/release/8b/3_sft.sh`: two times 16 samples on every GPU, which on 4 nodes of
8 are the 1,024 of VILA1.5-3b.
"""

import dataclasses

from configs.vila15_3b import sft

STAGE = dataclasses.replace(
    sft.STAGE,
    name="vila15_8b/sft",
    start="vila15_8b/pretrain",
)
