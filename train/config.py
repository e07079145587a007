"""What a recipe page in `configs/` is made of."""

import dataclasses
from typing import Any, Literal

from vila_jax.scenes import FULL, Difficulty


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      kind: `tower` trains the vision tower on dense patch labels; `answers` trains everything on questions.
      scenes: pictures per step.
      questions: questions per picture; they share its visual tokens and do not see each other.
      difficulty: how crowded the scenes are.
      learning_rate: peak; linear warm-up over `warmup` steps, then cosine to a hundredth.
      thinned: part of the pictures of which only a random share of the visual tokens is shown.
      shown: least and most of the visual tokens that a thinned picture keeps, as fractions.
      row_length: tokens reserved for every picture and its questions; questions that do not fit are left out.
      optimizer: the rule, see `train/optim.py`.
      label_weight: weight of the tower's patch-label loss beside the answers.
    """

    name: str
    kind: Literal["tower", "answers"]
    steps: int
    scenes: int
    learning_rate: float
    warmup: int
    questions: int = 0
    difficulty: Difficulty = FULL
    thinned: float = 0.0
    shown: tuple[float, float] = (0.1, 1.0)
    row_length: int = 320
    optimizer: Literal["adamw", "muon"] = "adamw"
    label_weight: float = 0.1
    weight_decay: float = 0.01


@dataclasses.dataclass(frozen=True)
class Run:
    """A model and its preprocessing, as the Hugging Face files describe them, and the stages that train it."""

    name: str
    model: dict[str, Any]
    preprocessor: dict[str, Any]
    stages: tuple[Stage, ...]
    seed: int = 0
    save_every: int = 250
    log_every: int = 20
