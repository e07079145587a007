"""nano, stage 3: the projector alone learns to say in the decoder's words what the tower sees (VILA's first stage).

python -m train configs/nano/align.py
"""

from train.recipe import Compute, Data, Optimizer, Rows, Stage

STAGE = Stage(
    name="nano/align",
    start="nano/language",
    learning_rate={"projector": 2e-3},
    rows=Rows(rows=8, tokens=768, tiles=15),
    data=Data("scenes:captions"),
    steps=100,
    optimizer=Optimizer("muon", b2=0.98, clip=1.0, warmup=0.1, last=0.1),
    compute=Compute(dtype="float32", remat="none", scan=False),
    export="float32",
)
