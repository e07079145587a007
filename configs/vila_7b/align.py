"""VILA-7B, stage 1: the projector learns to speak to the language model.

    python -m train configs/vila_7b/align.py

Source: VILA `scripts/v1_5/paper/1_mm_align.sh`; base models from the paper. There 3.5 hours on 8 A100. The README of
VILA gives this stage a rate of 2e-5, its script 1e-3; the rate is that of the script.
"""

from train.recipe import Data, Parts, Rows, Stage

PARTS = Parts(
    decoder="meta-llama/Llama-2-7b-hf",
    tower="openai/clip-vit-large-patch14-336",
    layout="vila",
    projector="mlp2x_gelu",
    style="vicuna_v1",
    pictures="pad",
)

STAGE = Stage(
    name="vila_7b/align",
    parts=PARTS,
    learning_rate={"projector": 1e-3},
    # 256 samples: a picture of 576 tokens and a caption are about 600 tokens, three a row
    rows=Rows(rows=88, tokens=2048, tiles=3),
    # LLaVA-CC3M, 595 k captions
    data=Data("llava_1_5_mm_align", style="plain"),
)
