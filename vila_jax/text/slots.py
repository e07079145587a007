"""From token ids with one placeholder per image to the row that the model reads.

The number of visual tokens of an image is known before its pixels are read (the budget is static), so that the whole
row is laid out on the host. With `7` as the image token, and the second image keeping three tokens:

    token_ids      1  22   7  31  32   7  33                    one placeholder per image
                           │           └────────┐
    token_ids      1  22   7   7  31  32   7   7   7  33  [0 0  what the model reads: T = 10, padded to a bucket of 12
    source        -1  -1   0   1  -1  -1   2   3   4  -1 -1 -1  row of the batch's table of visual tokens, -1 for text
    lengths       10

The model gathers its embeddings once: from the embedding table where `source` is -1, else from the visual tokens.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from vila_jax.errors import ContextLengthError, PromptError

TEXT = -1


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Rows of equal length, padded on the right.

    Attributes:
      token_ids: `[B, T]`; the image token at every visual slot, the padding token after the end.
      source: `[B, T]`; index into the batch's table of visual tokens, -1 for text and padding.
      lengths: `[B]`; positions of each row that count. Rows that only fill up the batch have length 1.
    """

    token_ids: Int32[np.ndarray, "B T"]
    source: Int32[np.ndarray, "B T"]
    lengths: Int32[np.ndarray, " B"]


def expand(
    token_ids: Sequence[int], image_token_id: int, slots_per_image: Sequence[Int[np.ndarray, " _"]]
) -> tuple[Int32[np.ndarray, " T"], Int32[np.ndarray, " T"]]:
    """Replaces every placeholder by the slots of its image.

    Args:
      token_ids: the tokenised prompt, with one `image_token_id` per image.
      image_token_id: the placeholder.
      slots_per_image: for each image, in order, the indices of its visual tokens in the batch's table; their number
        is the number of positions that the image takes.

    Returns:
      `token_ids [T]` with the placeholder at every slot, and `source [T]`: -1 for text, else the given index.

    Raises:
      PromptError: the prompt holds more or fewer placeholders than there are images.
    """
    ids = np.asarray(token_ids, dtype=np.int32).reshape(-1)
    is_image = ids == image_token_id
    check_placeholders(int(is_image.sum()), len(slots_per_image))
    repeats = np.ones(len(ids), dtype=np.int64)
    repeats[is_image] = [len(slots) for slots in slots_per_image]
    row = np.repeat(ids, repeats)
    source = np.full(len(row), TEXT, dtype=np.int32)
    source[np.repeat(is_image, repeats)] = np.concatenate([np.zeros(0, np.int32), *slots_per_image])
    return row, source


def check_placeholders(found: int, images: int) -> None:
    """Refuses a prompt with more or fewer placeholders than there are images.

    Raises:
      PromptError: the numbers differ.
    """
    if found != images:
        raise PromptError(
            f"the prompt holds {found} image placeholders, but {images} images were given",
            where="prompt",
            fix="Write one <image> per image, in order, and pass that many images; "
            "a chat message needs one image part per image.",
        )


def pad_batch(
    rows: Sequence[tuple[Int32[np.ndarray, " _"], Int32[np.ndarray, " _"]]], length: int, batch: int, pad_id: int
) -> PromptBatch:
    """Pads rows on the right to a common length, and the batch with filler rows.

    Args:
      rows: pairs `(token_ids, source)` of `expand`.
      length: T, at least the length of the longest row.
      batch: B, at least the number of rows. Rows added to reach it count one padding token as their text, so that no
        row of the batch attends to nothing.
      pad_id: token written after a row's end.

    Raises:
      ContextLengthError: a row is longer than `length`.
      PromptError: there are more rows than `batch`.
    """
    lengths = [len(ids) for ids, _ in rows]
    if max(lengths, default=0) > length:
        raise ContextLengthError(f"a prompt of {max(lengths)} positions does not fit a row of {length}", where="prompt")
    if len(rows) > batch:
        raise PromptError(f"{len(rows)} prompts do not fit a batch of {batch}", where="prompt")
    token_ids = np.full((batch, length), pad_id, dtype=np.int32)
    sources = np.full((batch, length), TEXT, dtype=np.int32)
    for index, (ids, source) in enumerate(rows):
        token_ids[index, : len(ids)] = ids
        sources[index, : len(ids)] = source
    return PromptBatch(token_ids, sources, np.array(lengths + [1] * (batch - len(rows)), dtype=np.int32))


def prompt_bucket(n: int, maximum: int) -> int:
    """The length that a prompt of `n` tokens is padded to, visual tokens included.

    Multiples of 32, of 64 beyond 1024, 128 beyond 2048, and so on: every position of padding costs as much as a token,
    and beyond 512 there is at most a sixteenth of it. A compiled prefill serves one such length.

    Args:
      maximum: the last bucket, of any value >= 1.

    Raises:
      ContextLengthError: `n` exceeds `maximum`.
    """
    _check(n, maximum)
    step = max(32, 1 << max((n - 1).bit_length() - 5, 0))
    return min(max(1, -(-n // step)) * step, maximum)


def cache_buckets(maximum: int) -> tuple[int, ...]:
    """The lengths that caches have: steps of 64 up to 256, then about x 1.25 in multiples of 64.

    Fewer than of prompts: a decode step reads the padding of its cache, which is little beside the weights.
    """
    sizes, size = [], 64
    while size < maximum:
        sizes.append(size)
        size = size + 64 if size < 256 else -(-size * 5 // 4 // 64) * 64
    return (*sizes, maximum)


def cache_bucket(n: int, maximum: int) -> int:
    """The smallest cache that holds `n` tokens.

    Raises:
      ContextLengthError: `n` exceeds `maximum`.
    """
    _check(n, maximum)
    return next(size for size in cache_buckets(maximum) if size >= n)


def _check(n: int, maximum: int) -> None:
    if n > maximum:
        raise ContextLengthError(
            f"the prompt has {n} tokens, and at most {maximum} fit", where="prompt", fix="Shorten it."
        )
