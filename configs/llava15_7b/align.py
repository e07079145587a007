"""LLaVA-1.5-7B, stage 1: the projector learns to speak to the language model.

    python -m train configs/llava15_7b/align.py

Source: LLaVA `scripts/v1_5/pretrain.sh`. There 3.5 hours on 8 A100.
"""

from train.recipe import Data, Parts, Rows, Stage

STAGE = Stage(
    name="llava15_7b/align",
    parts=Parts(
        decoder="lmsys/vicuna-7b-v1.5",
        tower="openai/clip-vit-large-patch14-336",
        layout="llava",
        projector="mlp2x_gelu",
        style="vicuna_v1",
        pictures="pad",
    ),
    learning_rate={"projector": 1e-3},
    # 256 samples: a picture of 576 tokens and a caption are about 600 tokens, three a row
    rows=Rows(rows=88, tokens=2048, tiles=3),
    # 558 k captions of LAION, CC and SBU
    data=Data("llava_558k", style="plain"),
)
