"""The stages that the study `vila_findings` compares: ways from an aligned projector to an instructed model.

    nano/align ── pre-training: decoder frozen or trained, on pairs, interleaved documents or both
                    └── instruction tuning: on pictures alone, or with text blended in

What two arms have in common is one run, since a run is named by what its page says.
"""

import dataclasses
import hashlib
from typing import Any, Literal

from configs.nano.model import new
from train import pages
from train.recipe import Compute, Data, Optimizer, Rows, Safety, Stage

FOLDER = "vila_findings"
"""Of the runs, below the folder of all runs."""

PAIRS = "scenes:captions"
INTERLEAVED = "scenes:documents=0.5+scenes:fewshot=0.5"
BOTH = "scenes:captions=0.5+scenes:documents=0.25+scenes:fewshot=0.25"
PICTURES = "scenes:questions"
PICTURES_AND_TEXT = "scenes:questions=0.75+scenes:text=0.25"

_MIXTURES = {"pairs": PAIRS, "interleaved": INTERLEAVED, "both": BOTH}
_RATE = 2e-3
_OPTIMIZER = Optimizer("muon", b2=0.98, weight_decay=0.01, clip=1.0, warmup=0.1, last=0.02)
_COMPUTE = Compute(dtype="float32", remat="none", scan=False)
_SAFETY = Safety(save_every=100, keep_last=1)

_NARROW_VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
_NARROW_TEXT = {
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way through VILA's second and third stage.

    Attributes:
      decoder: whether it is trained in pre-training.
      data: of pre-training.
      text: whether text-only instructions are blended into instruction tuning.
    """

    decoder: bool = True
    data: Literal["pairs", "interleaved", "both"] = "both"
    text: bool = False

    @property
    def pretraining(self) -> str:
        """What tells this pre-training from others."""
        return f"{'trained' if self.decoder else 'frozen'}-{self.data}"


ARMS = {
    "frozen": Arm(decoder=False),
    "both": Arm(),
    "pairs": Arm(data="pairs"),
    "interleaved": Arm(data="interleaved"),
    "text": Arm(text=True),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the results, beside the weights that all arms start from.

    Attributes:
      pretraining, tuning: steps of the two stages.
      rows: of a step of both.
      questions, tasks, instructions: that a model is asked.
      batch: of what is asked.
    """

    pretraining: int = 100
    tuning: int = 120
    rows: Rows = dataclasses.field(default_factory=lambda: Rows(rows=3, tokens=768, tiles=15))
    questions: int = 400
    tasks: int = 192
    instructions: int = 400
    batch: int = 32
    seeds: int = 3


FULL = Settings()
QUICK = Settings(2, 2, Rows(rows=2, tokens=640, tiles=12), questions=4, tasks=2, instructions=8, batch=4)


def narrow_start(settings: Settings) -> Stage:
    """What stands in for nano's own first stages where nothing is to be shown: random weights and a step or two."""
    page = _stage({"projector": _RATE}, PAIRS, settings, steps=settings.pretraining, seed=0)
    return _named(dataclasses.replace(page, new=new(_NARROW_VISION, _NARROW_TEXT)), "start")


def pretraining(arm: Arm, seed: int, settings: Settings, start: str, weights: str) -> Stage:
    """VILA's second stage.

    Args:
      start: checkpoint that it starts from.
      weights: fingerprint of its weights.
    """
    rates = {"projector": _RATE} | ({"decoder": _RATE} if arm.decoder else {})
    page = _stage(rates, _MIXTURES[arm.data], settings, steps=settings.pretraining, seed=seed)
    stage = _named(dataclasses.replace(page, start=weights), f"{arm.pretraining}-{seed}")
    return dataclasses.replace(stage, start=start)


def tuning(arm: Arm, seed: int, settings: Settings, start: str) -> Stage:
    """VILA's third stage, but for its tower, which stays as it is.

    Args:
      start: name of the run of pre-training.
    """
    mixture = PICTURES_AND_TEXT if arm.text else PICTURES
    page = _stage({"projector": _RATE, "decoder": _RATE}, mixture, settings, steps=settings.tuning, seed=seed)
    kind = f"{arm.pretraining}-{'text' if arm.text else 'pictures'}-{seed}"
    return _named(dataclasses.replace(page, start=start), kind)


def _stage(rates: dict[str, float], mixture: str, settings: Settings, **keys: Any) -> Stage:
    return Stage(
        name=FOLDER,
        learning_rate=rates,
        rows=settings.rows,
        data=Data(mixture, seed=keys["seed"]),
        optimizer=_OPTIMIZER,
        compute=_COMPUTE,
        safety=_SAFETY,
        export="float32",
        **keys,
    )


def _named(stage: Stage, kind: str) -> Stage:
    """The stage, named so that a run of another page, or from other weights, is never taken for it."""
    said = hashlib.sha256(pages.to_json(stage).encode()).hexdigest()
    return dataclasses.replace(stage, name=f"{FOLDER}/{kind}-{said[:8]}")
