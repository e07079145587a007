"""NVILA-Lite-8B, stage 1: the projector learns to speak to the language model.

    python -m train configs/nvila_lite_8b/align.py

Source: VILA `scripts/NVILA-Lite/align.sh`: as many GPUs as there are.
"""

from train.recipe import Data, Parts, Rows, Stage

STAGE = Stage(
    name="nvila_lite_8b/align",
    parts=Parts(
        decoder="Efficient-Large-Model/Qwen2-VL-7B-Instruct",
        tower="Efficient-Large-Model/paligemma-siglip-so400m-patch14-448",
        layout="nvila",
        projector="mlp_downsample_3x3_fix",
        style="qwen2",
        pictures="dynamic",
    ),
    learning_rate={"projector": 1e-3},
    # 2,048 samples of about 1,300 tokens (an estimate), three a row: a picture of 4 : 3 is 12 tiles and a thumbnail, of
    # 121 tokens each. The parts are for 128 devices.
    rows=Rows(rows=640, tokens=4096, tiles=33, parts=5),
    data=Data("llava_15_mix"),
)
