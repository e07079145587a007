"""Asks a model the questions of an exam, with all visual tokens or with fewer, chosen in several ways.

Equal token counts: every method may spend on a picture as many tokens as HiRED does at the same `keep`, a fraction of
the patches of its tiles (of a 96 x 96 picture: 180, hence 72, 36 and 18 tokens at 40, 20 and 10 %).

    full         all patches and the newline tokens between their rows (192), as the model was trained
    blank        the same, of a plain grey picture: what can be guessed without looking
    hired        HiRED, the equations of the paper
    hired-code   HiRED as its authors' code computes it; keeps as many tokens or fewer
    random       patches drawn at random from the overview and the tiles
    downsample   fewer pixels instead of chosen patches, in the best form that the tokens pay for:
                   the picture at half its size, cut into tiles like any other, with all its patches (72 tokens
                   where it was 96 x 96);
                   else the overview tile alone (36), to which any picture is squashed;
                   else as many of the overview's patches as there are tokens, drawn at random (seed 0)

All but the first two drop the newline tokens, which no budget keeps.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from PIL import Image

from vila_jax.budgets import Step, total_tokens
from vila_jax.exam.items import Item, Reply
from vila_jax.model import Model
from vila_jax.scenes.world import Scene, blank
from vila_jax.vision.preprocess import Preprocessor

Method = Literal["full", "blank", "hired", "hired-code", "random", "downsample"]

LONGEST_ANSWER = 4
"""Tokens of the longest answer, three digits and the end token; a longer one is wrong whatever follows."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to show pictures to the model.

    Attributes:
      method: see the top of this file.
      keep: fraction of the patches that the tokens are counted from; without meaning for `full` and `blank`.
      seed: of the method `random`.
    """

    method: Method
    keep: float = 1.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class _View:
    """What the model is given: the overview alone or all tiles, and the budget for them."""

    picture: Image.Image
    overview_only: bool
    budget: str | None


class Examiner:
    """Puts questions to a model in batches of one static size, each compiled once.

    Args:
      model: the model.
      batch: questions that are answered together.
      on_batch: called with the number of questions answered, after every batch.
    """

    def __init__(self, model: Model, *, batch: int = 32, on_batch: Callable[[int], None] | None = None):
        self.model, self.batch = model, batch
        self._on_batch = on_batch or (lambda answered: None)

    @functools.cached_property
    def _overview(self) -> Model:
        return _overview_model(self.model)

    def replies(self, items: Sequence[Item], setting: Setting) -> list[Reply]:
        """The model's greedy answers, in the order of the items."""
        return self._replies(items, [self._view(item, setting) for item in items])

    def budgeted(self, items: Sequence[Item], budget: str | None) -> list[Reply]:
        """The same with whole pictures and any budget, in the order of the items.

        Raises:
          BudgetError: the model cannot have this budget.
        """
        return self._replies(items, [_View(_picture(item.scene), False, budget) for item in items])

    def _replies(self, items: Sequence[Item], views: Sequence[_View]) -> list[Reply]:
        groups: dict[tuple[bool, str | None], list[int]] = {}
        for i, view in enumerate(views):
            groups.setdefault((view.overview_only, view.budget), []).append(i)
        replies: dict[int, Reply] = {}
        for members in groups.values():
            for start in range(0, len(members), self.batch):
                chosen = members[start : start + self.batch]
                answered = self._answer([items[i] for i in chosen], [views[i] for i in chosen])
                replies |= dict(zip(chosen, answered, strict=True))
                self._on_batch(len(chosen))
        return [replies[i] for i in range(len(items))]

    def _answer(self, items: Sequence[Item], views: Sequence[_View]) -> list[Reply]:
        """One batch; a short one is filled up with its last row, so that no other shape is compiled."""
        rows = [min(i, len(items) - 1) for i in range(self.batch)]
        model = self._overview if views[0].overview_only else self.model
        results = model.generate(
            messages=[_ask(items[i].question.text, views[i].picture) for i in rows],
            budget=views[0].budget,
            max_new_tokens=LONGEST_ANSWER,
        )
        assert isinstance(results, list)
        return [
            Reply(item, result.text, result.usage.visual_tokens_kept)
            for item, result in zip(items, results, strict=False)
        ]

    def _view(self, item: Item, setting: Setting) -> _View:
        picture = _picture(blank(item.scene) if setting.method == "blank" else item.scene)
        match setting.method:
            case "full" | "blank":
                return _View(picture, False, None)
            case "hired":
                return _View(picture, False, f"hired:{setting.keep}")
            case "hired-code":
                return _View(picture, False, f"hired:{setting.keep},variant=code")
            case "random":
                return _View(picture, False, f"random:{setting.keep},seed={setting.seed}")
            case "downsample":
                return self._downsampled(picture, setting.keep)

    def _downsampled(self, picture: Image.Image, keep: float) -> _View:
        """The best form of a smaller picture that the tokens pay for."""
        geometry = self.model.preprocessor.geometry((picture.height, picture.width))
        tokens = total_tokens(Step("random", keep), geometry)
        half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC)
        patches = len(self.model.preprocessor.geometry((half.height, half.width)).order())
        if patches <= tokens:
            return _View(half, False, f"random:{patches}")  # of all there are: none is left out but the newlines
        if geometry.patches_per_tile <= tokens:
            return _View(picture, True, None)
        return _View(picture, True, f"random:{tokens}")


def settings(keeps: Iterable[float] = (0.4, 0.2, 0.1), seeds: int = 5) -> list[Setting]:
    """The whole comparison: all tokens, the blank control, and every method at every fraction."""
    found = [Setting("full"), Setting("blank")]
    for keep in keeps:
        found += [Setting("hired", keep), Setting("downsample", keep), Setting("hired-code", keep)]
        found += [Setting("random", keep, seed) for seed in range(seeds)]
    return found


def _picture(scene: Scene) -> Image.Image:
    return Image.fromarray(scene.image)


def _ask(question: str, picture: Image.Image) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]


def _overview_model(model: Model) -> Model:
    """The same model, which is shown every picture as one tile: the overview, and nothing else."""
    assert isinstance(model.preprocessor, Preprocessor)
    config, tile = model.preprocessor.config, model.preprocessor.config.tile_size
    single = dataclasses.replace(config, pinpoints=None, size=(tile, tile), crop_size=None, pad_to_square=False)
    preprocessor = Preprocessor(single, model.preprocessor.patch_size)
    return Model(model.checkpoint, model.engine, model.form, preprocessor, None, model.style)
