"""From a record to what the model reads of it and learns of it.

The order of the cuts is the reference's: first the text with a placeholder per picture, whose pictures go with it; then
the text with all visual tokens (`llava/data/collate.py` and `llava_arch.py`, main branch).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from train.data.documents import caption_tokens, document_tokens, picture_order
from train.data.labels import IGNORED, Tokens, conversation_tokens
from train.data.packing import AXES, Axis, Laid, RowShape
from train.data.records import BadSample, Caption, Conversation, Document, Record
from train.data.store import open_picture
from train.data.visual import NEWLINE, Visual, picture_salt
from train.recipe import Stage
from vila_jax.budgets import Budget
from vila_jax.errors import BudgetError, PromptError
from vila_jax.hf.config import ModelConfig
from vila_jax.infer.layout import Planner
from vila_jax.text.prompts import PromptForm
from vila_jax.text.slots import TEXT
from vila_jax.text.styles import Style
from vila_jax.vision.preprocess import Preprocessor, ProcessedImage
from vila_jax.vision.vila import VilaPreprocessor

FULL = "full"
"""The budget that is none."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Lays records out for one model.

    Attributes:
      form, style: how prompts are written.
      preprocessor: of pictures.
      shape: the row that has to hold a sample; text beyond it is cut.
      visual: how its pictures become visual tokens.
    """

    form: PromptForm
    style: Style | None
    preprocessor: Preprocessor | VilaPreprocessor
    shape: RowShape
    visual: Visual

    @property
    def axes(self) -> dict[str, Axis]:
        """The arrays of a sample, and what their leading axes count."""
        return {**AXES, **self.visual.axes}

    def __call__(self, record: Record, salt: int = 0) -> Laid:
        """The sample.

        Args:
          salt: names the sample, for budgets that draw at random.

        Raises:
          BadSample: it cannot be trained on.
        """
        try:
            return self._laid(record, salt)
        except BudgetError as error:
            raise BadSample("budget not met", error.what, record.id) from error

    def _laid(self, record: Record, salt: int) -> Laid:
        opened = [open_picture(picture, record.id) for picture in self._pictures(record)]
        pictures = self.preprocessor.pictures(opened, self.visual.limit)
        parts = [self.visual.segments(picture.geometry) for picture in pictures]
        try:
            ids, labels = self._tokens(record, [len(own) for own in parts])
        except PromptError as error:
            raise BadSample(_reason(error), error.what, record.id) from error
        ids, labels = self._cut(ids, labels)
        shown = int(np.sum(ids == self.form.image_id))
        pictures, sources = self._shown(pictures, parts, shown)
        ids, labels, source = self._spliced(ids, labels, sources)
        ids, labels, source = (part[: self.shape.tokens] for part in (ids, labels, source))
        if not np.any(labels[1:] != IGNORED):
            raise BadSample("nothing to learn", "what is learned lies beyond the row", record.id)
        laid = Laid(ids, labels, source, self._tiles(pictures, record.id), self._extras(pictures, salt))
        if not laid.fits(self.shape):
            own = f"{len(laid.pixels)} tiles of {len(pictures)} pictures"
            what = f"{own}, but a row has {self.shape.tiles} of {self.shape.slots(Axis.PICTURES)}"
            raise BadSample("too many tiles", what, record.id)
        return laid

    def _pictures(self, record: Record) -> Sequence[Any]:
        """The pictures that are shown, in the order in which they are."""
        if isinstance(record, Document):
            return [record.pictures[i] for i in picture_order(record.matched)]
        return record.pictures

    def _tokens(self, record: Record, segments: list[int]) -> tuple[Tokens, Tokens]:
        match record:
            case Conversation():
                return conversation_tokens(self.form, record.messages, self.style, segments)
            case Caption():
                return caption_tokens(self.form, record.text, segments[0])
            case Document():
                by_picture = dict(zip(picture_order(record.matched), segments, strict=True))
                return document_tokens(self.form, record.sentences, record.matched, by_picture.__getitem__)

    def _cut(self, ids: Tokens, labels: Tokens) -> tuple[Tokens, Tokens]:
        """The first cut; a placeholder at the very end has nothing to say to anyone."""
        end = min(len(ids), self.shape.tokens)
        while end and ids[end - 1] == self.form.image_id:
            end -= 1
        return ids[:end], labels[:end]

    def _spliced(self, ids: Tokens, labels: Tokens, sources: list[np.ndarray]) -> tuple[Tokens, Tokens, Tokens]:
        """With visual tokens, and the text that the form puts behind them, in the places of the placeholders."""
        own = iter(sources)
        pieces: list[tuple[Any, Any, Any]] = []
        behind = np.asarray(self.form.after_image, np.int32)
        for token, label in zip(ids, labels, strict=True):
            if token != self.form.image_id:
                pieces.append(([token], [label], [TEXT]))
                continue
            source = next(own)
            masked = np.full(len(source) + len(behind), IGNORED, np.int32)
            tokens = np.concatenate([np.zeros(len(source), np.int32), behind])
            pieces.append((tokens, masked, np.concatenate([source, np.full(len(behind), TEXT, np.int32)])))
        columns = (np.concatenate(column).astype(np.int32) for column in zip(*pieces, strict=True))
        ids, labels, source = columns
        return ids, labels, source

    def _shown(
        self, pictures: list[ProcessedImage], parts: list[list[np.ndarray]], segments: int
    ) -> tuple[list[ProcessedImage], list[np.ndarray]]:
        """The pictures of the first so many segments, and where their visual tokens lie in the sample's own table."""
        kept: list[ProcessedImage] = []
        sources: list[np.ndarray] = []
        first = 0
        for picture, own in zip(pictures, parts, strict=True):
            if len(sources) == segments:
                break
            kept.append(picture)
            for part in own[: segments - len(sources)]:
                sources.append(np.where(part == NEWLINE, NEWLINE, part + first).astype(np.int32))
            first += self.visual.rows_of(picture.geometry)
        return kept, sources

    def _tiles(self, pictures: list[ProcessedImage], where: str) -> np.ndarray:
        edge = self._edge
        if wrong := [picture for picture in pictures if picture.pixels.shape[-1] != edge]:
            found = wrong[0].pixels.shape[-1]
            raise BadSample("tiles of another size", f"{found} pixels, but rows have tiles of {edge}", where)
        return np.concatenate([np.zeros((0, 3, edge, edge), np.float32), *(picture.pixels for picture in pictures)])

    @functools.cached_property
    def _edge(self) -> int:
        """Pixels along one edge of a tile: those of a square picture, which a budget may show smaller."""
        edge = self.preprocessor.values_config.tile_size
        if self.visual.limit is None:
            return edge
        [square] = self.preprocessor.pictures([Image.new("RGB", (edge, edge))], self.visual.limit)
        return square.pixels.shape[-1]

    def _extras(self, pictures: list[ProcessedImage], salt: int) -> dict[str, np.ndarray]:
        """Further arrays of the tiles and of the pictures."""
        no_tiles, no_pictures = self.visual.nothing
        if not pictures:
            return no_tiles | no_pictures
        of_tiles = [self.visual.of_tiles(picture) for picture in pictures]
        extras = {name: np.concatenate([own[name] for own in of_tiles]) for name in no_tiles}
        first, said = 0, []
        for number, picture in enumerate(pictures):
            said.append(self.visual.of_picture(picture, first, picture_salt(salt, number)))
            first += len(picture.pixels)
        return extras | {name: np.stack([own[name] for own in said]) for name in no_pictures}


def make_layouts(
    stage: Stage,
    config: ModelConfig,
    form: PromptForm,
    style: Style | None,
    preprocessor: Preprocessor | VilaPreprocessor,
) -> list[Layout]:
    """A layout for each budget of a stage.

    Raises:
      BudgetError: the model cannot meet a budget, or it cannot be trained under.
    """
    planner = Planner(config, stage.compute.dtype, config.pad_id or 0)
    layouts = []
    for text in stage.budgets:
        visual = Visual(planner, None if text == FULL else Budget.parse(text))
        pictures = stage.rows.pictures or max(1, stage.rows.tiles // visual.fewest_tiles)
        shape = RowShape(stage.rows.tokens, stage.rows.tiles, stage.rows.bins, pictures)
        layouts.append(Layout(form, style, preprocessor, shape, visual))
    return layouts


def _reason(error: PromptError) -> str:
    if "video placeholders" in error.what:  # records hold none, and so pooled videos are not trained on either
        return "a video"
    if "placeholders" in error.what:
        return "wrong number of pictures"
    return "answers not found" if "melts" in error.what or "template" in error.what else "empty conversation"
