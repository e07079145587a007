"""NVILA-Lite-8B, stage 1.5: tower and projector are trained under a language model that is left alone.

    python -m train configs/nvila_lite_8b/tower.py

Source: VILA `scripts/NVILA-Lite/stage15.sh`: as many GPUs as there are. The mixture has a name there, but what
it is made of was not published.
"""

from train.recipe import Data, Rows, Stage

STAGE = Stage(
    name="nvila_lite_8b/tower",
    start="nvila_lite_8b/align",
    learning_rate={"tower": 5e-5, "projector": 5e-5},
    # 1,024 samples of about 1,300 tokens (an estimate), three a row; the parts are for 64 devices
    rows=Rows(rows=320, tokens=4096, tiles=33, parts=5),
    data=Data("nvila-pretrain-15"),
)
