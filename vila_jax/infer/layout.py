"""From tokenised prompts and prepared pictures to the padded arrays of one batch. Runs on the host, sees no weights."""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vila_jax.budgets import Budget, capacity, make_plan, stack_plans, total_tokens
from vila_jax.errors import BudgetError, ContextLengthError, PromptError
from vila_jax.hf.config import ModelConfig
from vila_jax.infer.buckets import count_bucket, tile_bucket
from vila_jax.infer.prefill import Prompts
from vila_jax.infer.vision import Pictures, Spec
from vila_jax.text.slots import bucket, expand, pad_batch
from vila_jax.vision.geometry import TileGeometry
from vila_jax.vision.preprocess import ProcessedImage


@dataclasses.dataclass(frozen=True)
class Request:
    """One tokenised prompt, with one placeholder id per picture, and its pictures in order."""

    token_ids: Sequence[int]
    images: Sequence[ProcessedImage] = ()


@dataclasses.dataclass(frozen=True)
class Counts:
    """Tokens of one prompt: text, and visual tokens without and with the budget (an upper bound for budgets that may
    leave slots unused)."""

    text: int
    visual_full: int
    visual_kept: int

    @property
    def prompt(self) -> int:
        return self.text + self.visual_kept


@dataclasses.dataclass(frozen=True)
class Tiles:
    """All pictures of a batch.

    Attributes:
      pixels: their tiles one after another, padded with black ones, `[R, 3, h, w]`.
      pictures: with a budget, what is known of every picture.
      spec: the static part.
    """

    pixels: Float[np.ndarray, "R 3 h w"]
    pictures: Pictures | None
    spec: Spec


@dataclasses.dataclass(frozen=True)
class Layout:
    """Arrays of one batch, the token counts of the real rows, and the length of the cache that holds them."""

    prompts: Prompts
    tiles: Tiles | None
    counts: list[Counts]
    cache_length: int


class Planner:
    """Lays out batches for one model.

    Args:
      config: the model.
      dtype: of the computation.
      pad_id: id at padding positions; any valid id will do.
    """

    def __init__(self, config: ModelConfig, dtype: str, pad_id: int):
        self.config, self.dtype, self.pad_id = config, dtype, pad_id
        vision = config.vlm.vision
        self.tokens_per_tile = config.vlm.tokens_per_tile
        grids = config.grid_pinpoints or ((0, 0),)
        self.max_tiles = 1 + max((h // vision.image_size) * (w // vision.image_size) for h, w in grids)

    def effective(self, budget: Budget | None) -> Budget | None:
        """The budget, or None where keeping everything is the same as having none.

        Raises:
          BudgetError: the model's projector sees more than patches.
        """
        if budget is None or budget.is_full:
            return None
        if self.tokens_per_tile != self.config.vlm.vision.num_patches:
            raise BudgetError(
                "a budget chooses among patches, and this model keeps the class token of the tower among its tokens",
                where=f"budget {str(budget)!r}",
                fix="Use the model without a budget.",
            )
        return budget

    def visual_count(self, geometry: TileGeometry, budget: Budget | None) -> int:
        """Visual tokens of a picture of this geometry, known before any pixel is read."""
        budget = self.effective(budget)
        return len(self._order(geometry, 0)) if budget is None else total_tokens(budget, geometry)

    def layout(self, requests: Sequence[Request], budget: Budget | None, new_tokens: int) -> Layout:
        """Lays out a batch; its sizes are rounded up to buckets.

        Raises:
          PromptError: there is no prompt, an empty one, or one with another number of placeholders than pictures.
          ContextLengthError: a prompt with its visual tokens and `new_tokens` does not fit the context.
          BudgetError: the budget cannot be met.
        """
        if not requests:
            raise PromptError("there is no prompt", where="prompt", fix="Give at least one.")
        budget = self.effective(budget)
        images = [image for request in requests for image in request.images]
        sources = iter(self._sources([image.geometry for image in images], budget))
        rows, counts = [], []
        for request in requests:
            own = [next(sources) for _ in request.images]
            rows.append(expand(request.token_ids, self.config.image_token_id, own))
            full = sum(self.visual_count(image.geometry, None) for image in request.images)
            kept = sum(len(source) for source in own)
            counts.append(Counts(text=len(rows[-1][0]) - kept, visual_full=full, visual_kept=kept))
        self._check_lengths(counts, new_tokens)
        limit, longest = self.config.context_length, max(count.prompt for count in counts)
        padded = pad_batch(rows, bucket(longest, limit), count_bucket(len(rows)), self.pad_id)
        return Layout(
            prompts=Prompts(padded.token_ids, padded.source, padded.lengths),
            tiles=self.tiles(images, budget) if images else None,
            counts=counts,
            cache_length=bucket(longest + new_tokens, limit),
        )

    def tiles(self, images: Sequence[ProcessedImage], budget: Budget | None) -> Tiles:
        """Lays out the pictures of a batch, for an `effective` budget.

        Raises:
          BudgetError: the budget cannot be met.
        """
        geometries = [image.geometry for image in images]
        pixels = np.concatenate([image.pixels for image in images])
        missing = self._num_tiles(geometries) - len(pixels)
        pixels = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), pixels.dtype)])
        if budget is None:
            return Tiles(pixels, None, Spec(self.config.vlm, self.dtype))
        plans = [
            make_plan(budget, image.geometry, self.max_tiles, zlib.crc32(image.pixels.tobytes())) for image in images
        ]
        rows = count_bucket(len(images))
        pictures = Pictures(self._tile_rows(geometries, rows), stack_plans(plans, rows))
        return Tiles(pixels, pictures, Spec(self.config.vlm, self.dtype, budget, self._slots(budget)))

    def _num_tiles(self, geometries: list[TileGeometry]) -> int:
        return tile_bucket(geometries, self.max_tiles)

    def _slots(self, budget: Budget) -> int:
        return capacity(budget, self.max_tiles, self.tokens_per_tile)

    def _tile_rows(self, geometries: list[TileGeometry], rows: int) -> Int[np.ndarray, "I P"]:
        """The tiles of every picture, as rows of the batch's tiles; unused entries are 0."""
        index, first = np.zeros((rows, self.max_tiles), np.int32), 0
        for i, geometry in enumerate(geometries):
            index[i, : geometry.num_tiles] = first + np.arange(geometry.num_tiles)
            first += geometry.num_tiles
        return index

    def _order(self, geometry: TileGeometry, newline: int) -> Int[np.ndarray, " tokens"]:
        """Rows of a picture's own tiles in token order."""
        if geometry.grid is None:
            return np.arange(self.tokens_per_tile, dtype=np.int32)
        return geometry.order_with_newlines(newline)

    def _sources(self, geometries: list[TileGeometry], budget: Budget | None) -> list[Int[np.ndarray, " tokens"]]:
        """For every picture, the rows of the batch's table of visual tokens that it points to."""
        if not geometries:
            return []
        if budget is not None:
            slots = self._slots(budget)
            return [
                i * slots + np.arange(total_tokens(budget, geometry), dtype=np.int32)
                for i, geometry in enumerate(geometries)
            ]
        newline = self._num_tiles(geometries) * self.tokens_per_tile
        sources, first = [], 0
        for geometry in geometries:
            order = self._order(geometry, newline)
            sources.append(np.where(order == newline, newline, order + first * self.tokens_per_tile).astype(np.int32))
            first += geometry.num_tiles
        return sources

    def _check_lengths(self, counts: list[Counts], new_tokens: int) -> None:
        limit = self.config.context_length
        for row, count in enumerate(counts):
            where = "prompt" if len(counts) == 1 else f"prompt {row}"
            if count.prompt == 0:
                raise PromptError("it is empty", where=where, fix="Write something.")
            if count.prompt + new_tokens > limit:
                raise ContextLengthError(
                    f"{count.text} text tokens + {count.visual_kept} visual tokens + {new_tokens} new tokens = "
                    f"{count.prompt + new_tokens}, but the model's context is {limit}",
                    where=where,
                    fix="Shorten the prompt, ask for fewer new tokens, use fewer pictures, or a smaller budget.",
                )
