"""VILA1.5-3b, stage 1: the projector learns to speak to the language model.

    python -m train configs/vila15_3b/align.py

Source: VILA, branch vila1.5, `scripts/v1_5/release/3b/1_mm_align.sh`: nodes of 8 GPUs, as many as there are.
"""

from train.recipe import Data, Parts, Rows, Stage

PARTS = Parts(
    decoder="princeton-nlp/Sheared-LLaMA-2.7B",
    tower="google/siglip-so400m-patch14-384",
    layout="vila",
    projector="mlp_downsample",
    style="vicuna_v1",
    pictures="resize",
)

STAGE = Stage(
    name="vila15_3b/align",
    parts=PARTS,
    learning_rate={"projector": 1e-3},
    # 256 samples: a picture of 196 tokens and a caption are about 216 tokens, 18 a row; rounded up to 8 devices
    rows=Rows(rows=16, tokens=4096, tiles=18),
    # LLaVA-CC3M, 595 k captions
    data=Data("llava_1_5_mm_align", style="plain"),
)
