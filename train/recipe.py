"""What a recipe page in `configs/` is made of: one `Stage`, which is one run.

    learning_rate={"projector": 2e-5, "decoder": 2e-5}     these groups are trained, and nothing else

A page says what is trained, on what, how fast and for how long. Where data and runs lie, and on how many devices it
runs, is said when it is started, see `train/__main__.py`.
"""

import dataclasses
from typing import Any, Literal

from train.lora import Lora


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model put together from a language model and a vision tower of their own, with a projector that knows nothing.

    Attributes:
      decoder: checkpoint of the language model, a folder or a name on the Hub.
      tower: checkpoint of the vision tower, likewise.
      layout: whose anatomy it gets: `vila` (1.5), `nvila`, or `llava` (1.5).
      projector: its name there (`mlp2x_gelu`, `mlp_downsample`, `mlp_downsample_3x3_fix` …).
      style: name of the conversation style that the model speaks from now on, where the decoder's own chat template
        is not used; see `Data.style` for that of one stage alone.
      pictures: how they are prepared, as VILA's `image_aspect_ratio` (`resize`, `pad`, `dynamic` …).
    """

    decoder: str
    tower: str
    layout: Literal["vila", "nvila", "llava"]
    projector: str
    style: str | None = None
    pictures: str = "resize"


@dataclasses.dataclass(frozen=True)
class New:
    """A model from nothing: what a Hugging Face checkpoint of it would say.

    Attributes:
      config: its `config.json`.
      files: further files by name, such as the tokenizer's.
    """

    config: dict[str, Any]
    files: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The static sizes of a batch of packed rows.

    Attributes:
      rows: of a step, over all devices; several samples share one.
      tokens: of a row, visual ones included.
      tiles: of all pictures of a row.
      parts: a step looks at its rows in so many parts, one after another, and adds their gradients up.
      bins: rows that are filled at the same time; more waste less.
      pictures: of a row, under a budget or at several scales; None for as many as its tiles may show.
    """

    rows: int
    tokens: int = 4096
    tiles: int = 16
    parts: int = 1
    bins: int = 32
    pictures: int | None = None


@dataclasses.dataclass(frozen=True)
class Data:
    """What is seen.

    Attributes:
      mixture: see `train/data/mixture.py`; names are of prepared data sets, or of sources that need none.
      style: conversation style of what is read, where it is not the model's: `plain` is a picture and its caption.
      seed: of the order.
      max_bad_share: the largest share of samples that may be left out as bad.
      threads: that read and lay out ahead, on each host.
      prefetch: batches that are made ahead.
    """

    mixture: str
    style: str | None = None
    seed: int = 0
    max_bad_share: float = 0.05
    threads: int = 8
    prefetch: int = 2


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How weights are moved.

    Attributes:
      rule: `adamw`; `muon` for the matrices of blocks and projector, with AdamW for all else; `adafactor`, which keeps
        least.
      b1: how much of the moving average of the gradient a step of AdamW keeps; Muon keeps 0.95, Adafactor has none.
      b2: how much of that of its squares a step of AdamW keeps, and at most one of Adafactor.
      weight_decay: of matrices; norms, biases and single embeddings are never decayed.
      clip: largest norm of the gradient over all groups; None for no limit.
      warmup: share of the steps in which the learning rates rise linearly to their peaks.
      decay: how they fall afterwards.
      last: share of the peak that is left at the end.
    """

    rule: Literal["adamw", "muon", "adafactor"] = "adamw"
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip: float | None = None
    warmup: float = 0.03
    decay: Literal["cosine", "linear", "none"] = "cosine"
    last: float = 0.0


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a step is computed; changes the numbers by rounding alone.

    Attributes:
      dtype: of activations and of the weights that are read; trained weights are kept in float32 beside it.
      remat: what the backward pass finds in memory rather than computes again, see `vila_jax.nn.stacked`.
      scan: whether the blocks of a transformer are one compiled block that is run many times.
      chunk: positions whose scores over the vocabulary are held at a time.
    """

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    remat: Literal["none", "minimal", "full", "offload"] = "minimal"
    scan: bool = True
    chunk: int = 1024


@dataclasses.dataclass(frozen=True)
class Safety:
    """When a step is not taken, when the run ends, and what is kept of it.

    Attributes:
      spike: a loss of more than so many times its moving average is skipped; None for no limit.
      max_skipped: so many skipped steps in a row end the run, with its state saved.
      save_every: steps from one checkpoint to the next.
      keep_last: checkpoints that stay, counted from the newest.
      keep_every: steps whose multiples stay for good; None for none.
    """

    spike: float | None = None
    max_skipped: int = 20
    save_every: int = 500
    keep_last: int = 2
    keep_every: int | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a recipe, and the run that carries it out.

    Attributes:
      name: of the run, and of its folder below the folder of all runs, e.g. `vila_7b/align`.
      learning_rate: peak for every group that is trained (`train/weights.py` names them).
      rows, data, optimizer, compute, safety: see `Rows`, `Data`, `Optimizer`, `Compute`, `Safety`.
      steps: None for one round of the mixture, whose number of rows is estimated beforehand.
      start: where the weights come from: the name of a finished run, a checkpoint folder, or a name on the Hub.
      parts: what the model is put together from, instead of `start`.
      new: what the model is to be, with weights drawn anew, instead of `start`.
      lora: low-rank additions; what they are added to is then not trained.
      objective: what is minimised: the cross entropy of the answers, that of the patch labels of drawn scenes, or both.
      label_weight: of the patch labels beside the answers.
      time_std: width of soft targets among time tokens; None for hard ones.
      budgets: of visual tokens, one drawn for every step; `full` is none. Several make a model that serves them all.
      average: decay of a moving average of the weights, which is then what is exported; None for none.
      export: dtype of the exported weights.
      seed: of everything that is drawn.
    """

    name: str
    learning_rate: dict[str, float]
    rows: Rows
    data: Data
    steps: int | None = None
    start: str | None = None
    parts: Parts | None = None
    new: New | None = None
    lora: Lora | None = None
    objective: Literal["answers", "labels", "answers+labels"] = "answers"
    label_weight: float = 0.1
    time_std: float | None = None
    budgets: tuple[str, ...] = ("full",)
    average: float | None = None
    export: Literal["bfloat16", "float32"] = "bfloat16"
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    compute: Compute = dataclasses.field(default_factory=Compute)
    safety: Safety = dataclasses.field(default_factory=Safety)
    seed: int = 0
