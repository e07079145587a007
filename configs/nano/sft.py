"""nano, stage 5: everything is trained to answer questions (VILA's third stage), with text alone blended in again.

    python -m train configs/nano/sft.py

Most steps show a part of the visual tokens, so that one model serves many budgets: a model that has seen whole pictures
alone reads a thing's place in the picture from its place in the sequence, and every budget confuses it. The tower is
kept on its labels beside, by new heads. A few documents keep the model able to follow examples.
"""

from train.recipe import Compute, Data, Optimizer, Rows, Stage

STAGE = Stage(
    name="nano/sft",
    start="nano/pretrain",
    learning_rate={"tower": 1e-3, "heads": 2e-3, "projector": 2e-3, "decoder": 2e-3},
    objective="answers+labels",
    label_weight=0.25,
    rows=Rows(rows=8, tokens=640, tiles=20),
    data=Data("scenes:questions=0.8+scenes:text=0.08+scenes:documents=0.06+scenes:fewshot=0.06"),
    steps=4000,
    budgets=("full", "hired:0.4", "hired:0.15", "random:0.25"),
    optimizer=Optimizer("muon", b2=0.98, weight_decay=0.01, clip=1.0, warmup=0.06, last=0.01),
    compute=Compute(dtype="float32", remat="none", scan=False),
    export="bfloat16",
)
