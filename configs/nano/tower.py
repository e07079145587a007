"""nano, stage 1: the vision tower learns to tell what every patch shows. From nothing, by labels, without a language.

    python -m train configs/nano/tower.py

It stands in for the CLIP or SigLIP tower that a VILA begins with. Handwriting decides how well nano reads, and needs
many examples: `scenes:captions` and `scenes:documents` are rich in things to read.
"""

from configs.nano.model import new
from train.recipe import Compute, Data, Optimizer, Rows, Stage

STAGE = Stage(
    name="nano/tower",
    new=new(),
    learning_rate={"tower": 2e-3, "heads": 2e-3},
    objective="labels",
    rows=Rows(rows=16, tokens=896, tiles=15),  # three pictures of five tiles; the decoder is not run
    data=Data("scenes:captions=0.8+scenes:documents=0.2"),
    steps=1800,
    optimizer=Optimizer("muon", b2=0.98, weight_decay=0.01, clip=1.0, warmup=0.06, last=0.01),
    compute=Compute(dtype="float32", remat="none", scan=False),
    export="float32",
)
