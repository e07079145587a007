"""VILA-13B, stage 1: as VILA-7B, with Llama-2-13B.

    python -m train configs/vila_13b/align.py

Source: VILA `scripts/v1_5/paper/1_mm_align.sh`, written for 8 A100.
"""

import dataclasses

from configs.vila_7b import align

STAGE = dataclasses.replace(
    align.STAGE,
    name="vila_13b/align",
    parts=dataclasses.replace(align.PARTS, decoder="meta-llama/Llama-2-13b-hf"),
)
