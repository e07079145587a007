"""LLaVA-1.5-7B, stage 2: projector and language model learn to follow instructions.

    python -m train configs/llava15_7b/sft.py

Source: LLaVA `scripts/v1_5/finetune.sh`, written for 8 A100.
"""

from train.recipe import Data, Rows, Stage

STAGE = Stage(
    name="llava15_7b/sft",
    start="llava15_7b/align",
    learning_rate={"projector": 2e-5, "decoder": 2e-5},
    # 128 samples of about 850 tokens (an estimate), 2.3 a row; the parts are for 8 devices
    rows=Rows(rows=56, tokens=2048, tiles=3, parts=7),
    # 665 k conversations, 40 k of them text alone
    data=Data("llava_665k"),
)
