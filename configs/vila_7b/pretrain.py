"""VILA-7B, stage 2: projector and language model are trained on interleaved documents and on pairs.

    python -m train configs/vila_7b/pretrain.py

Source: VILA `scripts/v1_5/paper/2_pretrain_mmc4_coyo.sh`. There 30 hours on 128 A100.
"""

from train.recipe import Data, Rows, Stage

STAGE = Stage(
    name="vila_7b/pretrain",
    start="vila_7b/align",
    learning_rate={"projector": 5e-5, "decoder": 5e-5},
    # 1,024 samples of 2,600 tokens, 1.6 a row: a document of MMC4 has 4 pictures of 576 tokens with 122 of text, a
    # sample of COYO is 4 pairs with 23 of text. A row has place for 6 pictures; the parts are for 128 devices.
    rows=Rows(rows=640, tokens=4096, tiles=6, parts=5),
    data=Data("coyo_25m+mmc4core"),
)
