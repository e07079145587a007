"""VILA1.5-3b, stage 3: everything learns to follow instructions, about pictures, videos and text.

    python -m train configs/vila15_3b/sft.py

Source: VILA, branch vila1.5, `scripts/v1_5/release/3b/3_sft.sh`: nodes of 8 GPUs, as many as there are. A video is
eight pictures.
"""

from train.recipe import Data, Rows, Stage

SETS = (
    "sharegpt4v_gpt4_100k",
    "llava_instruct",
    "sharegpt4v_sft",
    "dvqa_train_200k",
    "chartqa_train_18k",
    "ai2d_train_12k",
    "docvqa_train_10k",
    "geoqa",
    "synthdog_en",
    "vflan",
    "shot2story_shotonly",
    "video_chatgpt",
    "youcook2",
    "vatex",
    "sharegpt_video",
    "scienceqa",
    "wit_subset",
    "math",
    "sherlock",
)

STAGE = Stage(
    name="vila15_3b/sft",
    start="vila15_3b/pretrain",
    learning_rate={"tower": 1e-4, "projector": 1e-4, "decoder": 1e-4},
    # 1,024 samples of about 600 tokens (an estimate), 6.8 a row; two videos and two pictures find place in one
    rows=Rows(rows=160, tokens=4096, tiles=18),
    data=Data("+".join(SETS)),
)
