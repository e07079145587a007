"""NVILA-Lite-8B, stage 3: everything learns to follow instructions.

    python -m train configs/nvila_lite_8b/sft.py

Source: VILA `scripts/NVILA-Lite/sft.sh`: as many GPUs as there are. Its mixture was not published, and has
no name of its own there.
"""

from train.recipe import Data, Rows, Stage

STAGE = Stage(
    name="nvila_lite_8b/sft",
    start="nvila_lite_8b/pretrain",
    learning_rate={"tower": 2e-5, "projector": 2e-5, "decoder": 2e-5},
    # 2,048 samples of about 1,300 tokens (an estimate), three a row; the parts are for 128 devices
    rows=Rows(rows=640, tokens=4096, tiles=33, parts=5),
    data=Data("nvila-sft"),
)
