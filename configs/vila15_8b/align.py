"""Llama-3-VILA1.5-8b, stage 1: as VILA1.5-3b, with Llama-3-8B-Instruct.

    python -m train configs/vila15_8b/align.py

Source: VILA, branch vila1.5, `scripts/v1_5/release/8b/1_mm_align.sh`: 32 samples on each of 8 GPUs.
"""

import dataclasses

from configs.vila15_3b import align

STAGE = dataclasses.replace(
    align.STAGE,
    name="vila15_8b/align",
    # as it was released, the assistant speaks under the header of the system
    parts=dataclasses.replace(align.PARTS, decoder="meta-llama/Meta-Llama-3-8B-Instruct", style="llama_3_vila15"),
)
