"""VILA1.5-3b, stage 2: projector and language model are trained on interleaved documents, pairs and long captions.

    python -m train configs/vila15_3b/pretrain.py

Source: VILA, branch vila1.5, `scripts/v1_5/release/*/2_pretrain.sh`: nodes of 8 GPUs, as many as there are.
"""

from train.recipe import Data, Rows, Stage

STAGE = Stage(
    name="vila15_3b/pretrain",
    start="vila15_3b/align",
    learning_rate={"projector": 5e-5, "decoder": 5e-5},
    # 1,024 samples of about 1,075 tokens, 3.8 a row: a document of MMC4 has 4 pictures of 196 tokens with 122 of text,
    # a sample of COYO is 4 pairs with 23 of text. The parts are for 128 devices.
    rows=Rows(rows=256, tokens=4096, tiles=18, parts=2),
    data=Data("coyo_25m+mmc4core+sharegpt4v_pretrain"),
)
