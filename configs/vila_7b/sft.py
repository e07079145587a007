"""VILA-7B, stage 3: projector and language model learn to follow instructions, those without pictures among them.

    python -m train configs/vila_7b/sft.py

Source: VILA `scripts/v1_5/paper/3_sft.sh`. There 25 hours on 8 A100.
"""

from train.recipe import Data, Rows, Stage

STAGE = Stage(
    name="vila_7b/sft",
    start="vila_7b/pretrain",
    learning_rate={"projector": 2e-5, "decoder": 2e-5},
    # 128 samples of about 750 tokens (an estimate), 5.4 a row; the parts are for 8 devices
    rows=Rows(rows=24, tokens=4096, tiles=6, parts=3),
    # M3IT with 1 M instructions of FLAN that are text alone, and the 738 k samples of ShareGPT4V
    data=Data("vflan+sharegpt4v_sft"),
)
