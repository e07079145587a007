"""nano, stage 4: interleaved pre-training of projector and decoder (VILA's second stage).

    python -m train configs/nano/pretrain.py

Documents with several pictures, captions, and tasks that nothing names, from which it learns to follow examples. The
tower stays as it is, and so needs no backward pass.
"""

from train.recipe import Compute, Data, Optimizer, Rows, Stage

STAGE = Stage(
    name="nano/pretrain",
    start="nano/align",
    learning_rate={"projector": 2e-3, "decoder": 2e-3},
    rows=Rows(rows=8, tokens=768, tiles=15),
    data=Data("scenes:captions=0.4+scenes:documents=0.3+scenes:fewshot=0.3"),
    steps=500,
    optimizer=Optimizer("muon", b2=0.98, weight_decay=0.01, clip=1.0, warmup=0.06, last=0.1),
    compute=Compute(dtype="float32", remat="none", scan=False),
    export="float32",
)
