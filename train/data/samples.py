"""From a record to what the model reads of it and learns of it.

The order of the cuts is the reference's: first the text with a placeholder per picture, whose pictures go with it; then
the text with all visual tokens (`llava/data/collate.py` and `llava_arch.py`, main branch).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.data.documents import caption_tokens, document_tokens, picture_order
from train.data.labels import IGNORED, Tokens, conversation_tokens
from train.data.packing import Laid, RowShape
from train.data.records import BadSample, Caption, Conversation, Document, Record
from train.data.store import open_picture
from vila_jax.errors import ConfigError, PromptError
from vila_jax.text.prompts import PromptForm
from vila_jax.text.slots import TEXT
from vila_jax.text.styles import Style
from vila_jax.vision.preprocess import Preprocessor, ProcessedImage
from vila_jax.vision.vila import VilaPreprocessor

NEWLINE = -2
"""In `source`: the embedding of a newline, which some models put behind every row of a picture."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Lays records out for one model.

    Attributes:
      form, style: how prompts are written.
      preprocessor: of pictures.
      shape: the row that has to hold a sample; text beyond it is cut.
    """

    form: PromptForm
    style: Style | None
    preprocessor: Preprocessor | VilaPreprocessor
    shape: RowShape

    def __call__(self, record: Record) -> Laid:
        """The sample.

        Raises:
          BadSample: it cannot be trained on.
        """
        opened = [open_picture(picture, record.id) for picture in self._pictures(record)]
        pictures = list(self.preprocessor.pictures(opened))
        if any(picture.scales is not None for picture in pictures):
            raise ConfigError("a tower at several scales cannot be trained on packed rows", where="s2_scales")
        parts = [picture.geometry.segments(NEWLINE) for picture in pictures]
        try:
            ids, labels = self._tokens(record, [len(own) for own in parts])
        except PromptError as error:
            raise BadSample(_reason(error), error.what, record.id) from error
        ids, labels = self._cut(ids, labels)
        shown = int(np.sum(ids == self.form.image_id))
        pictures, sources = _shown(pictures, parts, shown)
        ids, labels, source = self._spliced(ids, labels, sources)
        ids, labels, source = (part[: self.shape.tokens] for part in (ids, labels, source))
        if not np.any(labels[1:] != IGNORED):
            raise BadSample("nothing to learn", "what is learned lies beyond the row", record.id)
        laid = Laid(ids, labels, source, self._tiles(pictures))
        if not laid.fits(self.shape):
            what = f"{len(laid.pixels)} tiles, but a row has {self.shape.tiles}"
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

    def _tiles(self, pictures: list[ProcessedImage]) -> np.ndarray:
        if pictures:
            return np.concatenate([picture.pixels for picture in pictures])
        edge = self.preprocessor.values_config.tile_size
        return np.zeros((0, 3, edge, edge), np.float32)


def _shown(
    pictures: list[ProcessedImage], parts: list[list[np.ndarray]], segments: int
) -> tuple[list[ProcessedImage], list[np.ndarray]]:
    """The pictures of the first so many segments, and where their visual tokens lie among the sample's own."""
    kept: list[ProcessedImage] = []
    sources: list[np.ndarray] = []
    first = 0
    for picture, own in zip(pictures, parts, strict=True):
        if len(sources) == segments:
            break
        kept.append(picture)
        for part in own[: segments - len(sources)]:
            sources.append(np.where(part == NEWLINE, NEWLINE, part + first).astype(np.int32))
        first += picture.geometry.num_tiles * picture.geometry.patches_per_tile
    return kept, sources


def _reason(error: PromptError) -> str:
    if "placeholders" in error.what:
        return "wrong number of pictures"
    return "answers not found" if "melts" in error.what or "template" in error.what else "empty conversation"
