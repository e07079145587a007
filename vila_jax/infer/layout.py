"""From tokenised prompts and prepared pictures to the padded arrays of one batch. Runs on the host, sees no weights."""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from vila_jax.budgets import Budget, Step, capacity, make_plan, stack_plans, tokens_of_tile, total_tokens
from vila_jax.budgets.tower import TowerReduction, make_reduction
from vila_jax.errors import BudgetError, PromptError
from vila_jax.hf.config import ModelConfig
from vila_jax.infer.buckets import count_bucket, tile_bucket, tiles_reserved
from vila_jax.infer.counts import Counts, check_lengths
from vila_jax.infer.decoder_plan import DecoderPlan, Kept, Schedule, SparseSchedule, plan_decoder
from vila_jax.infer.pools import PoolTable
from vila_jax.infer.positions import base_positions, pad_rows, places_in_picture
from vila_jax.infer.prefill import Prompts
from vila_jax.infer.tiles import Packed, Tiles, by_size, pack, running, table
from vila_jax.infer.vision import Pictures, Scales, Spec
from vila_jax.text.slots import cache_bucket, expand, pad_batch, prompt_bucket
from vila_jax.vision.geometry import TileGeometry
from vila_jax.vision.pooling import PooledVideo
from vila_jax.vision.preprocess import ProcessedImage

Medium = ProcessedImage | PooledVideo
"""What a prompt shows. A video that is not pooled is so many pictures."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One tokenised prompt and what it shows, in order.

    Every picture has as many placeholder ids in the prompt as `Planner.segments` says, mostly one; a pooled video one
    for every pooled frame.
    """

    token_ids: Sequence[int]
    media: Sequence[Medium] = ()

    @property
    def images(self) -> list[ProcessedImage]:
        """All pictures, the frames of pooled videos among them."""
        return [image for medium in self.media for image in images_of(medium)]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Arrays of one batch, and the token counts of the real rows.

    Attributes:
      cache_lengths: of the cache of every layer of the decoder.
      kept, schedule: with a budget inside the decoder, what it leaves of each row, and where.
    """

    prompts: Prompts
    tiles: Tiles | None
    counts: list[Counts]
    cache_lengths: tuple[int, ...]
    kept: Kept | None = None
    schedule: Schedule | SparseSchedule | None = None


class Planner:
    """Lays out batches for one model.

    Args:
      config: the model.
      dtype: of the computation.
      pad_id: id at padding positions; any valid id will do.
      between_tiles: tokens of text between tiles that are written as a picture each; counted in original positions.
    """

    def __init__(self, config: ModelConfig, dtype: str, pad_id: int, between_tiles: int = 0):
        self.config, self.dtype, self.pad_id, self.between_tiles = config, dtype, pad_id, between_tiles
        self.tokens_per_tile = config.vlm.tokens_per_tile if config.pictures is None else config.pictures.cells**2
        self.max_tiles, self.max_tower_tiles = config.max_tiles, config.max_tower_tiles

    def effective(self, budget: Budget | None) -> Budget | None:
        """The budget, or None where keeping everything is the same as having none.

        Raises:
          BudgetError: the model's projector sees more than patches.
        """
        if budget is None or budget.is_full:
            return None
        class_token = self.config.vlm.keep_class_token and self.config.vlm.vision.has_class_token
        if class_token and budget.step("tokens") is not None:
            raise BudgetError(
                "a budget chooses among patches, and this model keeps the class token of the tower among its tokens",
                where=f"budget {str(budget)!r}",
                fix="Use the model without a budget.",
            )
        return budget

    def visual_count(self, geometry: TileGeometry, budget: Budget | None) -> int:
        """Visual tokens of a picture of this geometry that the decoder is given, known before any pixel is read."""
        step = self.token_step(budget)
        if step is not None:
            return total_tokens(step, geometry, self.tower_step(budget))
        return sum(len(segment) for segment in self.segment_tokens(geometry, self.newline_index(budget, 0)))

    def segments(self, geometry: TileGeometry, budget: Budget | None) -> int:
        """Placeholders that a picture has in a prompt: one, but for tiles that are written as a picture each."""
        return len(self.segment_tokens(geometry, 0)) if self.token_step(budget) is None else 1

    def token_step(self, budget: Budget | None) -> Step | None:
        """The step that chooses tokens; where there is none behind a step inside the tower, that step itself."""
        budget = self.effective(budget)
        return None if budget is None else budget.step("tokens") or budget.step("tower")

    def selects(self, budget: Budget | None) -> bool:
        """Whether tokens are chosen, or merged, in front of the decoder."""
        return self.token_step(budget) is not None

    def keeps_positions(self, budget: Budget | None) -> bool:
        """Whether the tokens that are left have the positions that they have without the budget."""
        step = self.token_step(budget)
        return step is not None and step.token_method.positions == "original"

    def visual_span(self, geometry: TileGeometry, budget: Budget | None) -> int:
        """Positions that a picture takes up: as many as `visual_count`, or with original ones all of its own."""
        if self.keeps_positions(budget):
            return self._places(geometry, budget)[1]
        return self.visual_count(geometry, budget)

    def _places(self, geometry: TileGeometry, budget: Budget | None) -> tuple[Int[np.ndarray, " M"], int]:
        segments = self.segment_tokens(geometry, self.newline_index(budget, -1))
        return places_in_picture(segments, geometry.num_tiles * self.tokens_per_tile, self.between_tiles)

    def tower_step(self, budget: Budget | None) -> Step | None:
        budget = self.effective(budget)
        return None if budget is None else budget.step("tower")

    def newline_index(self, budget: Budget | None, newline: int) -> int | None:
        """The index of the newline token, which no budget keeps."""
        budget = self.effective(budget)
        return newline if budget is None or budget.step("picture") is None else None

    def tower_tiles(self, geometry: TileGeometry) -> int:
        """Tiles of a picture that the tower sees, all scales together."""
        pictures = self.config.pictures
        if pictures is None or not pictures.scales:
            return geometry.num_tiles
        return self.max_tower_tiles - (self.max_tiles - geometry.num_tiles)

    def layout(self, requests: Sequence[Request], budget: Budget | None, new_tokens: int) -> Layout:
        """Lays out a batch; its sizes are rounded up to buckets.

        Raises:
          PromptError: there is no prompt, an empty one, or one with another number of placeholders than its media.
          ContextLengthError: a prompt with its visual tokens and `new_tokens` does not fit the context.
          BudgetError: the budget cannot be met.
        """
        rows, pools = self.rows(requests, budget, new_tokens)
        images, counts = [image for request in requests for image in request.images], [row.count for row in rows]
        tiles = self.tiles(images, budget) if images else None
        if tiles is not None and pools is not None:
            tiles = dataclasses.replace(tiles, pools=pools.index(count_bucket(len(images))))
        limit, longest = self.config.context_length, max(count.prompt for count in counts)
        arrays = [(row.token_ids, row.source) for row in rows]
        padded = pad_batch(arrays, prompt_bucket(longest, limit), count_bucket(len(rows)), self.pad_id)
        bases = [row.base for row in rows if row.base is not None]
        in_batch = pad_rows(bases, padded.token_ids.shape) if bases and images else None
        prompts = Prompts(padded.token_ids, padded.source, padded.lengths, in_batch)
        length = max(cache_bucket(longest + new_tokens, limit), padded.token_ids.shape[1])
        plan = self._decoder_plan(budget, prompts, counts, length, new_tokens)
        if plan is None:
            return Layout(prompts, tiles, counts, (length,) * self.config.vlm.decoder.num_layers)
        return Layout(prompts, tiles, counts, plan.cache_lengths, plan.kept, plan.schedule)

    def rows(
        self, requests: Sequence[Request], budget: Budget | None, new_tokens: int
    ) -> tuple[list["PromptRow"], PoolTable | None]:
        """The rows of a batch, still of their own lengths, and what is pooled of its videos; errors as of `layout`."""
        if not requests:
            raise PromptError("there is no prompt", where="prompt", fix="Give at least one.")
        geometries = [image.geometry for request in requests for image in request.images]
        pools = self._pools([medium for request in requests for medium in request.media], geometries, budget)
        sources = iter(self._sources(geometries, budget))
        rows = [
            self._row(request, [_segments_of(medium, sources, pools) for medium in request.media], budget)
            for request in requests
        ]
        check_lengths([row.count for row in rows], new_tokens, self.config.context_length)
        return rows, pools

    def _row(self, request: Request, segments: list[list[Int[np.ndarray, " _"]]], budget: Budget | None) -> "PromptRow":
        placeholder, own = self.config.image_token_id, [segment for medium in segments for segment in medium]
        token_ids, source = expand(request.token_ids, placeholder, own)
        slots = [len(segment) for segment in own]
        full = sum(self._full_count(medium) for medium in request.media)
        count = Counts(text=len(token_ids) - sum(slots), visual_full=full, visual_kept=sum(slots))
        placeholders = [len(medium) for medium in segments]
        if not self.keeps_positions(budget):
            return PromptRow(token_ids, source, None, count, placeholders, slots, slots)
        spans = [self.visual_span(image.geometry, budget) for image in request.images]
        base, end = base_positions(request.token_ids, placeholder, slots, spans)
        count = dataclasses.replace(count, skipped=end - count.prompt)
        return PromptRow(token_ids, source, base, count, placeholders, slots, spans)

    def _decoder_plan(
        self, budget: Budget | None, prompts: Prompts, counts: list[Counts], cache_length: int, new_tokens: int
    ) -> DecoderPlan | None:
        """What a budget inside the decoder does to the batch; None where it has nothing to do."""
        step = None if budget is None else budget.step("decoder")
        if step is None or not any(count.visual_kept for count in counts):
            return None
        batch, width = prompts.source.shape
        last_visual = np.where(prompts.source >= 0, np.arange(width), -1).max(axis=1)
        questions = np.where(last_visual < 0, 0, prompts.lengths - 1 - last_visual)  # of rows that lose tokens
        return plan_decoder(
            step,
            self.config.vlm.decoder.num_layers,
            [(count.text, count.visual_kept) for count in counts],
            batch=batch,
            full=(width, cache_length),
            question=int(questions.max()),
            new_tokens=new_tokens,
            limit=self.config.context_length,
        )

    def tiles(self, images: Sequence[ProcessedImage], budget: Budget | None) -> Tiles:
        """Lays out the pictures of a batch.

        Raises:
          BudgetError: the budget cannot be met.
        """
        geometries = [image.geometry for image in images]
        rows, most = count_bucket(len(images)), self._most_tiles(geometries)
        step, tower = self.token_step(budget), self.tower_step(budget)
        packed = pack(images, self.max_tower_tiles, reduced=tower is not None)
        scales, spec = self._scales(images, packed, rows), self.spec(budget, most)
        if step is None:
            return Tiles(tuple(images), packed, scales, None, spec, self.max_tower_tiles)
        salts = [zlib.crc32(image.pixels.tobytes()) for image in images]
        plans = [make_plan(step, own, most, salt, tower) for own, salt in zip(geometries, salts, strict=True)]
        first = self._first_tiles(geometries)
        own_tiles = [start + np.arange(own.num_tiles) for start, own in zip(first, geometries, strict=True)]
        pictures = Pictures(table(own_tiles, (rows, most)), stack_plans(plans, rows))
        if self.keeps_positions(budget):
            places = [self._places(geometry, budget)[0] for geometry in geometries]
            pictures = pictures._replace(places=pad_rows(places, (rows, most * self.tokens_per_tile)))
        return Tiles(tuple(images), packed, scales, pictures, spec, self.max_tower_tiles)

    def spec(self, budget: Budget | None, most: int) -> Spec:
        """The static part of a batch whose pictures have at most so many tiles."""
        if (step := self.token_step(budget)) is None:
            return Spec(self.config.vlm, self.dtype)
        tower = self.tower_step(budget)
        slots = capacity(step, most, self.tokens_per_tile, tower)
        return Spec(self.config.vlm, self.dtype, step, slots, self._reduction(tower))

    def _reduction(self, tower: Step | None) -> TowerReduction | None:
        if tower is None:
            return None
        left = tokens_of_tile(tower, self.config.vlm.vision.num_patches)
        return make_reduction(tower.tower_method, left, self.config.vlm)

    def _scales(self, images: Sequence[ProcessedImage], packed: Packed, rows: int) -> Scales | None:
        """The tables of pictures that the tower sees at several scales, padded to common sizes."""
        if self.config.vlm.num_scales == 1:
            return None
        tables = [image.scales.index for image in images if image.scales is not None]
        assert len(tables) == len(images)
        index = np.full((rows, self._most_tiles([i.geometry for i in images]), *tables[0].shape[1:]), -1, np.int32)
        for i, own in enumerate(tables):
            index[i, : len(own)] = own
        most = tiles_reserved([len(image.pixels) for image in images], self.max_tower_tiles)
        return Scales(table(packed.rows, (rows, most)), index)

    def _most_tiles(self, geometries: Sequence[TileGeometry]) -> int:
        return tiles_reserved([geometry.num_tiles for geometry in geometries], self.max_tiles)

    def _first_tiles(self, geometries: Sequence[TileGeometry]) -> Int[np.ndarray, " I"]:
        """The row of every picture's first tile; blocks come in equal shares, as `compose` puts them together."""
        return self._tile_rows(geometries)[0]

    def _num_rows(self, geometries: Sequence[TileGeometry]) -> int:
        """Tiles (blocks) of the batch, padding included."""
        return self._tile_rows(geometries)[1]

    def _tile_rows(self, geometries: Sequence[TileGeometry]) -> tuple[Int[np.ndarray, " I"], int]:
        if self.config.vlm.num_scales > 1:
            most = self._most_tiles(geometries)
            return np.arange(len(geometries)) * most, count_bucket(len(geometries)) * most
        firsts, end = np.zeros(len(geometries), int), 0
        for group in by_size(geometries):
            counts = [geometries[i].num_tiles for i in group]
            firsts[group] = end + running(counts)
            end += tile_bucket(counts, tiles_reserved(counts, self.max_tiles))
        return firsts, end

    def segment_tokens(self, geometry: TileGeometry, newline: int | None) -> list[Int[np.ndarray, " tokens"]]:
        """Rows of a picture's own tiles in token order, one array per placeholder; None leaves newline tokens out."""
        if self.config.vlm.keep_class_token and self.config.vlm.vision.has_class_token:
            return [np.arange(self.tokens_per_tile, dtype=np.int32)]  # a single tile: checked with the config
        if newline is None:
            return [segment[segment >= 0] for segment in geometry.segments(-1)]
        return geometry.segments(newline)

    def _sources(self, geometries: list[TileGeometry], budget: Budget | None) -> list[list[Int[np.ndarray, " tokens"]]]:
        """For every placeholder of every picture, the rows of the batch's table of visual tokens that it points to."""
        if not geometries:
            return []
        if (step := self.token_step(budget)) is not None:
            slots = self.spec(budget, self._most_tiles(geometries)).slots
            totals = [total_tokens(step, geometry, self.tower_step(budget)) for geometry in geometries]
            return [[i * slots + np.arange(total, dtype=np.int32)] for i, total in enumerate(totals)]
        newline = self._num_rows(geometries) * self.tokens_per_tile
        firsts = self._first_tiles(geometries) * self.tokens_per_tile
        return [
            [
                np.where(segment == newline, newline, segment + first).astype(np.int32)
                for segment in self.segment_tokens(geometry, self.newline_index(budget, newline))
            ]
            for geometry, first in zip(geometries, firsts, strict=True)
        ]

    def _full_count(self, medium: Medium) -> int:
        """Visual tokens of a medium without a budget."""
        if isinstance(medium, ProcessedImage):
            return self.visual_count(medium.unlimited or medium.geometry, None)
        assert self.config.video.tsp is not None
        return self.config.video.tsp.num_tokens(len(medium.frames), medium.frames[0].geometry.side)

    def _pools(self, media: list[Medium], geometries: list[TileGeometry], budget: Budget | None) -> PoolTable | None:
        """An empty table of pools; None without pooled videos."""
        videos = [medium for medium in media if isinstance(medium, PooledVideo)]
        if not videos:
            return None
        budget = self.effective(budget)
        if budget is not None and (budget.step("picture") or self.selects(budget)):
            raise BudgetError(
                "a budget chooses among the patches of pictures, and this model pools those of a video",
                where=f"budget {str(budget)!r}",
                fix="Ask about videos without a budget.",
            )
        assert self.config.video.tsp is not None
        first = self._num_rows(geometries) * self.tokens_per_tile + self.config.vlm.has_newline
        return PoolTable(self.config.video.tsp, videos[0].frames[0].geometry.side, first)


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """A prompt with the slots of its visual tokens.

    Attributes:
      base: with original positions, see `Prompts`.
      placeholders: of every medium.
      slots, spans: of every placeholder: its tokens, and the positions that it takes up.
    """

    token_ids: Int[np.ndarray, " T"]
    source: Int[np.ndarray, " T"]
    base: Int[np.ndarray, " T"] | None
    count: Counts
    placeholders: list[int]
    slots: list[int]
    spans: list[int]


def images_of(medium: Medium) -> Sequence[ProcessedImage]:
    return medium.frames if isinstance(medium, PooledVideo) else (medium,)


def _segments_of(
    medium: Medium, sources: Iterator[list[Int[np.ndarray, " tokens"]]], pools: PoolTable | None
) -> list[Int[np.ndarray, " tokens"]]:
    """For every placeholder of a medium, the rows that it points to; takes those of its pictures from `sources`."""
    if isinstance(medium, ProcessedImage):
        return next(sources)
    assert pools is not None
    return pools.add(np.concatenate([segment for _ in medium.frames for segment in next(sources)]))
