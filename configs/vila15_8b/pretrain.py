"""Llama-3-VILA1.5-8b, stage 2: as VILA1.5-3b.

    python -m train configs/vila15_8b/pretrain.py

Source: VILA, branch vila1.5, `scripts/v1_5/release/8b/2_pretrain.sh`: nodes of 8 GPUs, as many as there are.
"""

import dataclasses

from configs.vila15_3b import pretrain

STAGE = dataclasses.replace(
    pretrain.STAGE,
    name="vila15_8b/pretrain",
    start="vila15_8b/align",
)
