"""nano, stage 2: the decoder learns the language, from sentences about scenes that it is not shown, and instructions.

    python -m train configs/nano/language.py

It stands in for the language model that a VILA begins with.
"""

from train.recipe import Compute, Data, Optimizer, Rows, Stage

STAGE = Stage(
    name="nano/language",
    start="nano/tower",
    learning_rate={"decoder": 2e-3},
    rows=Rows(rows=16, tokens=256, tiles=1),
    data=Data("scenes:stories=0.5+scenes:text=0.5"),
    steps=200,
    optimizer=Optimizer("muon", b2=0.98, weight_decay=0.01, clip=1.0, warmup=0.1, last=0.1),
    compute=Compute(dtype="float32", remat="none", scan=False),
    export="float32",
)
