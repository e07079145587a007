"""What a token scorer is to learn: how much the answers of a model attend to every visual token of a picture.

All questions about a picture are one row of segments. A question sees what comes before all of them (segment 0) and
itself, and its positions begin behind that, so that it is answered as if it stood alone. The queries, marked `^`, are
the places from which the tokens of the answers are predicted:

    token      <s> USER : v0 v1 .. v191 | what color ? ASSISTANT : red | is there .. ASSISTANT : yes | pad
    segment     0   0   0  0  0 ..  0   |  1    1    1     1     1  1  |  2   2   ..     2     2  2  | -1
    query                               |                        ^     |                       ^     |

The target is the attention of the queries, averaged over heads, layers and queries, as shares of the picture's tokens.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from PIL import Image

from vila_jax.infer.vision import Scales, block_features, encode_tiles
from vila_jax.model import Model
from vila_jax.nn.decoder import Decoder, DecoderBlock
from vila_jax.nn.rope import apply_rope, rotary_angles

PAD_SEGMENT = -1

_ROW_STEP, _QUERY_STEP = 64, 16  # rows and queries are padded to multiples, so that few programs are compiled


class Lesson(NamedTuple):
    """What one picture teaches.

    Attributes:
      cells: what the projector takes of every real cell, in flat order, in half precision: thousands of pictures are
        held in memory, `[n, D]`.
      shares: of the attention that the cells receive, float32, sum 1, `[n]`.
    """

    cells: Float[np.ndarray, "n D"]
    shares: Float[np.ndarray, " n"]


def lesson(
    model: Model,
    picture: Image.Image,
    questions: Sequence[str],
    answers: Sequence[Sequence[int]],
    layers: tuple[int, ...],
) -> Lesson:
    """The cells of a picture, and what the answers to some questions attend to.

    Args:
      answers: token ids of each, without the end token.
      layers: of the decoder, over which attention is averaged; 0-based.
    """
    requests = [model.request(messages=ask(question, picture), budget=None) for question in questions]
    layouts = [model.engine.planner.layout([request], None, 0) for request in requests]
    rows = [(layout.prompts, int(layout.prompts.lengths[0])) for layout in layouts]
    row = pack([(prompts.token_ids[0, :end], prompts.source[0, :end]) for prompts, end in rows], answers)
    tiles, geometry = layouts[0].tiles, requests[0].images[0].geometry
    assert tiles is not None
    parts, static = (tiles.pixels, tiles.scales, row), {"dtype": tiles.spec.dtype, "layers": layers}
    found = model.engine.phases.programs.call("answer attention", attended, *parts, **static)
    real = np.flatnonzero(geometry.real())
    cells, shares = (np.asarray(values)[real] for values in found)
    return Lesson(cells.astype(np.float16), shares / shares.sum())


def ask(question: str, picture: Image.Image) -> list[dict[str, Any]]:
    """The question about a picture, as a conversation."""
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]


class Row(NamedTuple):
    """The questions about one picture (NumPy or JAX arrays).

    Attributes:
      token_ids, source: as in `vila_jax.infer.prefill.Prompts`, `[1, T]`.
      positions, segments: see above, `[1, T]`.
      queries: index of every query in the row, -1 where unused, `[A]`.
    """

    token_ids: Int[Any, "1 T"]
    source: Int[Any, "1 T"]
    positions: Int[Any, "1 T"]
    segments: Int[Any, "1 T"]
    queries: Int[Any, " A"]


def pack(
    prompts: Sequence[tuple[Int[np.ndarray, " t"], Int[np.ndarray, " t"]]], answers: Sequence[Sequence[int]]
) -> Row:
    """Packs prompts about one picture, and their answers, into a row.

    Args:
      prompts: token ids and source of each, as `vila_jax.text.slots.expand` makes them.
      answers: token ids of each answer without the end token; an empty one still has its first query.
    """
    shared = _shared(prompts)
    ids, source = ([values[:shared]] for values in prompts[0])
    segments, positions, queries = [np.zeros(shared, np.int32)], [np.arange(shared)], list[int]()
    end = shared
    for number, ((own_ids, own_source), answer) in enumerate(zip(prompts, answers, strict=True), start=1):
        said = np.asarray(answer, np.int32)[:-1]  # nothing of the answer is predicted from its last token
        ids += [own_ids[shared:], said]
        source += [own_source[shared:], np.full(len(said), -1, np.int32)]
        length = len(own_ids) - shared + len(said)
        segments.append(np.full(length, number, np.int32))
        positions.append(shared + np.arange(length))
        queries += range(end + length - 1 - len(said), end + length)
        end += length
    size = -(-end // _ROW_STEP) * _ROW_STEP

    def column(parts: list[np.ndarray], fill: int) -> np.ndarray:
        return _padded(np.concatenate(parts), size, fill)[None]

    return Row(
        token_ids=column(ids, 0),
        source=column(source, -1),
        positions=column(positions, 0),
        segments=column(segments, PAD_SEGMENT),
        queries=_padded(np.asarray(queries), -(-len(queries) // _QUERY_STEP) * _QUERY_STEP, -1),
    )


def _shared(prompts: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """Tokens that all prompts begin with; each keeps at least one of its own."""
    shortest = min(len(ids) for ids, _ in prompts) - 1
    heads = np.stack([np.stack([values[:shortest] for values in prompt]) for prompt in prompts])
    differs = (heads != heads[0]).any(axis=(0, 1))
    return int(np.argmax(differs)) if differs.any() else shortest


def _padded(values: np.ndarray, size: int, fill: int) -> np.ndarray:
    return np.pad(values.astype(np.int32), (0, size - len(values)), constant_values=fill)


def attended(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    pixels: tuple[Float[Array, "R 3 h w"], ...],
    scales: Scales | None,
    row: Row,
    *,
    dtype: str,
    layers: tuple[int, ...],
) -> tuple[Float[Array, "M Dm"], Float[Array, " M"]]:
    """The cells of one picture, in flat order, and the attention that each receives from the answers.

    Args:
      pixels, scales: the picture alone, as `vila_jax.infer.layout.Planner.tiles` lays it out.
      dtype: of the computation.
      layers: of the decoder, over which attention is averaged.
    """
    model = nnx.merge(graphdef, state)
    encoded = encode_tiles(graphdef, state, pixels, dtype=dtype, wanted=())
    cells = model.merge(block_features(encoded, scales))
    visual = model.project(cells)
    table = model.with_newline(visual.reshape(-1, visual.shape[-1]))
    embedded = model.splice(row.token_ids, row.source, table)
    received = answer_attention(model.decoder, embedded, row, layers)
    slots = jnp.where(row.source[0] >= 0, row.source[0], len(table))
    shares = jnp.zeros(len(table) + 1).at[slots].add(received)
    cells = cells.reshape(-1, cells.shape[-1])
    return cells.astype(jnp.float32), shares[: len(cells)]


def answer_attention(
    decoder: Decoder, embedded: Float[Array, "1 T D"], row: Row, layers: tuple[int, ...]
) -> Float[Array, " T"]:
    """Attention that every token of a row receives from its queries: mean over heads, layers and queries, float32.

    Only the rows of the queries are computed a second time; the decoder's own attention stays the fast one.
    """
    rotation = rotary_angles(decoder.rope, decoder.head_dim, row.positions)
    x, total = embedded, jnp.zeros(embedded.shape[1])
    for number, block in enumerate(itertools.islice(decoder.layers, max(layers) + 1)):
        if number in layers:
            total = total + _received(block, block.norm1(x), rotation, row)
        x, _ = block(x, rotation, None, None, row.segments)
    return total / len(layers)


def _received(
    block: DecoderBlock, x: Float[Array, "1 T D"], rotation: tuple[Float[Array, "1 T half"], ...], row: Row
) -> Float[Array, " T"]:
    """Attention of one layer, mean over heads and queries."""
    attn, length = block.attn, x.shape[1]
    query = jnp.maximum(row.queries, 0)
    q, k = (apply_rope(f(x).reshape(1, length, -1, attn.head_dim), *rotation)[0] for f in (attn.q, attn.k))
    q = q[query].reshape(len(query), k.shape[1], -1, attn.head_dim)  # heads in groups that share a key head
    scores = jnp.einsum("AKGH,SKH->AKGS", q, k, preferred_element_type=jnp.float32) * attn.head_dim**-0.5
    visible = _visible(query, row.segments[0], attn.window)
    weights = jax.nn.softmax(jnp.where(visible[:, None, None, :], scores, -jnp.inf), axis=-1).mean(axis=(1, 2))
    used = row.queries >= 0
    return jnp.where(used[:, None], weights, 0.0).sum(0) / used.sum()


def _visible(query: Int[Array, " A"], segments: Int[Array, " T"], window: int | None) -> Bool[Array, "A T"]:
    """Which token each query sees, as `vila_jax.nn.attention` has it."""
    key, query = jnp.arange(len(segments))[None, :], query[:, None]
    own, other = segments[query], segments[None, :]
    seen = (key <= query) & ((own == other) | (other == 0))
    return seen if window is None else seen & (key > query - window)
