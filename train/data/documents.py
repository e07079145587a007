"""Pre-training text: documents in which pictures stand between sentences (MMC4), and captions (COYO).

Of the first six pictures each stands right before the sentence that it was matched to, and everything is learned but
the pictures:

    sentences  s0 s1 s2          text  s0 <image>s1 <image><image>s2 </s>
    matched    2 1 2             order of the pictures: 1 0 2

Source: VILA `llava/data/dataset_impl/mmc4.py` and `coyo.py` (main branch), `llava/data/dataset.py` (branch vila1.5).
Its filters by similarity and size are switched off there, and have no place here.
"""

from collections.abc import Callable, Sequence

import numpy as np

from train.data.labels import IGNORED, Tokens
from vila_jax.errors import PromptError
from vila_jax.text.prompts import MediaForm, PromptForm

MAX_PICTURES = 6


def picture_order(matched: Sequence[int], max_pictures: int = MAX_PICTURES) -> list[int]:
    """Indices of the pictures that are kept, in the order in which they stand in the text.

    Args:
      matched: for every picture, the index of its sentence.
    """
    return [int(i) for i in np.argsort(np.asarray(matched[:max_pictures], np.int64), kind="stable")]


def document_tokens(
    form: PromptForm,
    sentences: Sequence[str],
    matched: Sequence[int],
    segments: Callable[[int], int] = lambda picture: 1,
    *,
    max_pictures: int = MAX_PICTURES,
    behind_pictures_only: bool = False,
) -> tuple[Tokens, Tokens]:
    """Token ids of an interleaved document, and their targets (not shifted).

    Args:
      form: how the model wants its prompts written.
      sentences: its text; `<image>` in it is nothing but text.
      matched: for every picture, the index of the sentence that it stands before.
      segments: number of visual segments of a picture by its index; see `PromptForm.encode`.
      max_pictures: later ones are left out.
      behind_pictures_only: learn only sentences right behind a picture; sentences are then parted by padding tokens.

    Returns:
      `ids [T]`, with the placeholders of the pictures of `picture_order`, and `targets [T]`.

    Raises:
      PromptError: no sentence, or a picture matched to one that does not exist.
    """
    order = picture_order(matched, max_pictures)
    _check(sentences, [matched[i] for i in order])
    mark = _mark(form)
    lines = [sentence.replace("<image>", "<IMAGE>").strip() for sentence in sentences]
    for picture in reversed(order):
        lines[matched[picture]] = mark + lines[matched[picture]]
    between = _padding(form) if behind_pictures_only else " "
    text = between.join(lines)
    text = text.replace(" " + mark, mark).replace(mark + " ", mark)
    ids = _encode(form, text, [segments(picture) for picture in order])
    learned = ids != form.image_id
    if behind_pictures_only:
        learned &= _behind_pictures(ids, form.image_id, form.tokenizer.pad_id)
    return ids, np.where(learned, ids, IGNORED).astype(np.int32)


def caption_tokens(form: PromptForm, caption: str, segments: int = 1) -> tuple[Tokens, Tokens]:
    """Token ids of a picture and its caption, and their targets (not shifted): all text is learned.

    Raises:
      PromptError: the caption is empty.
    """
    caption = caption.replace("<image>", "<IMAGE>").strip()
    if not caption:
        raise PromptError("the caption is empty", where="caption")
    ids = _encode(form, _mark(form) + caption, [segments])
    return ids, np.where(ids == form.image_id, IGNORED, ids).astype(np.int32)


def _mark(form: PromptForm) -> str:
    """A picture in running text: NVILA writes a newline behind it."""
    return form.tokenizer.image_token + ("\n" if isinstance(form, MediaForm) else "")


def _padding(form: PromptForm) -> str:
    return form.tokenizer.decode([form.tokenizer.pad_id], skip_special_tokens=False)


def _encode(form: PromptForm, text: str, segments: Sequence[int]) -> Tokens:
    """Begun with BOS where the tokenizer has one, and ended."""
    end = form.tokenizer.special_tokens.get("eos_token", "")
    return np.asarray(form.encode(text + end, segments), np.int32)


def _behind_pictures(ids: Tokens, image_id: int, pad_id: int) -> np.ndarray:
    """Which tokens stand between a picture and the next padding token."""
    learned, on = np.zeros(len(ids), bool), False
    for index, token in enumerate(ids):
        on = (on or token == image_id) and token != pad_id
        learned[index] = on
    return learned


def _check(sentences: Sequence[str], matched: Sequence[int]) -> None:
    if not sentences:
        raise PromptError("the document has no sentence", where="text_list")
    wrong = [index for index in matched if not 0 <= index < len(sentences)]
    if wrong:
        raise PromptError(
            f"a picture belongs to sentence {wrong[0]}, but there are {len(sentences)}", where="matched_text_index"
        )
