"""How a model wants its pictures written into a prompt, and the prompt tokenised.

Three conventions, of a user who shows a picture and asks "Why?" (`i` is the placeholder, the rest are text tokens):

    LLaVA               … USER: <image>\\nWhy?        the whole text at once; <image> is a token of the vocabulary
                        1 … i 13 3750 29973
    VILA before NVILA   … USER: <image>\\nWhy?        the text between the pictures piece by piece; i is -200
                        1 … i 29871 13 11008 29973
    NVILA               … user\\n<image>Why?          as LLaVA, and `after_image`, the ids of a newline, behind the
                        … i [198] 10234 30            visual tokens of every picture

A picture has one placeholder for each of its visual segments: one, but for the tiles of NVILA's dynamic mode. A video
is written as its frames, a picture each; where a checkpoint pools its videos, it keeps the one placeholder
`<vila/video>`. `encode` stops at the placeholders; `splice` writes what the model reads in their places.
Sources: VILA `llava/mm_utils.py`, `llava/utils/media.py`, `llava/utils/tokenizer.py`, `llava/model/llava_arch.py`.
"""

import abc
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from vila_jax.errors import PromptError, VilaError
from vila_jax.text import messages as messages_lib
from vila_jax.text import template
from vila_jax.text.slots import check_placeholders
from vila_jax.text.styles import Style, render_style
from vila_jax.text.tokenizer import Tokenizer

VIDEO_TOKEN = "<vila/video>"
MEDIA_TOKENS = ("<vila/sentinel>", "<image>", VIDEO_TOKEN)
"""What VILA's code appends to every vocabulary that lacks them, in this order."""

LEGACY_IMAGE_ID = -200
_ANSWER = "kqzvxwj"  # a text that no template writes by itself
_DUMMY = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}] * 2


def vila_tokenizer(folder: epath.PathLike) -> Tokenizer:
    """The tokenizer of a VILA checkpoint of any era.

    Args:
      folder: the folder of its language model; for VILA v1 the one folder.

    Raises:
      CheckpointError: the files are missing or damaged.
    """
    return Tokenizer.from_folder(folder, added_tokens=MEDIA_TOKENS, legacy=False)


@dataclasses.dataclass(frozen=True)
class PromptForm:
    """LLaVA's convention; VILA's are derived from it.

    Attributes:
      tokenizer: of the checkpoint.
      image_id: placeholder of a visual segment among the token ids.
      after_image: ids of the text that follows the visual tokens of every segment, without being written in the text.
    """

    tokenizer: Tokenizer
    image_id: int
    after_image: tuple[int, ...] = ()

    @property
    def pools_videos(self) -> bool:
        """Whether `<vila/video>` stands for all that a video becomes."""
        return False

    @property
    def between_segments(self) -> int:
        """Tokens of text between two segments of one picture, `after_image` among them."""
        one, two = (self.splice(self.encode(self.tokenizer.image_token, [n]), -1) for n in (1, 2))
        return len(two) - len(one) - 1

    def render(
        self,
        messages: Any,
        style: Style | None,
        media: Sequence[int | None] = (),
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text of a conversation, with one `<image>` per picture and per frame of a video.

        Args:
          messages: the conversation, see `vila_jax.text.messages`.
          style: how it is written; None for the checkpoint's own chat template.
          media: what is shown, in order: for each video its number of frames, for each picture None.
          add_generation_prompt: whether the text ends by inviting the model to answer.

        Raises:
          PromptError: the messages are malformed, or hold another number of videos.
          CheckpointError: the template is broken, unsafe or exceeds a limit.
        """
        if messages_lib.has_videos(messages) and not self.pools_videos:
            messages, media = messages_lib.videos_as_images(messages, _frames(media)), ()
        return self.place_frames(self._render(messages, style, add_generation_prompt), media)

    def place_frames(self, text: str, media: Sequence[int | None]) -> str:
        """The text with every `<vila/video>` replaced by the marks of its frames; unchanged where videos are pooled.

        Args:
          media: as for `render`.

        Raises:
          PromptError: it holds another number of videos, or pictures and videos in another order.
        """
        frames = _frames(media)
        pieces = text.split(VIDEO_TOKEN)
        if len(pieces) - 1 != len(frames):
            raise PromptError(
                f"the prompt holds {len(pieces) - 1} video placeholders, but {len(frames)} videos were given",
                where="prompt",
                fix=f"Write one {VIDEO_TOKEN} per video, in order, or use messages with video parts.",
            )
        self._check_order(text, media)
        if self.pools_videos:
            return text
        mark = self._mark(text.count(self.tokenizer.image_token) + sum(frames))
        return pieces[0] + "".join(mark * n + piece for n, piece in zip(frames, pieces[1:], strict=True))

    def encode(self, text: str, segments: Sequence[int]) -> list[int]:
        """Token ids of a prompt. A text that writes BOS itself gets no second one.

        Args:
          text: the prompt, with one `<image>` per picture.
          segments: number of visual segments of each picture, in order.

        Returns:
          Ids with one `image_id` per segment; a pooled video has a placeholder of its own.

        Raises:
          PromptError: the text holds another number of pictures, or is not valid Unicode.
        """
        return self.tokenizer.encode_prompt(self._with_segments(text, segments, ""))

    def splice(self, ids: Sequence[int], placeholder: int, videos: Sequence[Sequence[int]] = ()) -> list[int]:
        """What the model reads of encoded ids: a placeholder per visual segment, and the text that belongs to it.

        Args:
          ids: of `encode`.
          placeholder: what stands for a visual segment in the result.
          videos: of each pooled video, in order, its numbers of pooled frames (segments), one for each pool.
        """
        pools = iter(videos)
        return [i for token in ids for i in self._spliced(token, placeholder, pools)]

    def stop_ids(self, style: Style | None) -> tuple[int, ...]:
        """Ids that end an answer: the tokenizer's end token, and whatever added token follows an answer.

        Args:
          style: as for `render`.
        """
        try:
            text = self.render(_DUMMY, style, add_generation_prompt=False)
        except VilaError:  # a template that cannot be rendered still leaves raw prompts
            return self.tokenizer.eos_ids
        after = [self.tokenizer.encode(end.lstrip(" "), add_special_tokens=False) for end in text.split(_ANSWER)[1:]]
        ends = [ids[0] for ids in after if ids and ids[0] in self.tokenizer.added_ids]
        return tuple(dict.fromkeys((*self.tokenizer.eos_ids, *ends)))

    def _render(self, messages: Any, style: Style | None, go: bool) -> str:
        if style is None:
            return self._render_own_template(messages, go)
        return template.render(messages, self.tokenizer, style, add_generation_prompt=go)

    def _render_own_template(self, messages: Any, go: bool) -> str:
        assert self.tokenizer.chat_template is not None
        return template.render_chat(
            messages,
            self.tokenizer.chat_template,
            special_tokens=self.tokenizer.special_tokens,
            image_token=self.tokenizer.image_token,
            add_generation_prompt=go,
        )

    def _mark(self, pictures: int) -> str:
        """What stands for one picture in the text of a prompt that has this many."""
        return f"{self.tokenizer.image_token}\n"

    def _spliced(self, token: int, placeholder: int, videos: Iterator[Sequence[int]]) -> Sequence[int]:
        return (placeholder, *self.after_image) if token == self.image_id else (token,)

    def _check_order(self, text: str, media: Sequence[int | None]) -> None:
        marks = re.findall("|".join(map(re.escape, (self.tokenizer.image_token, VIDEO_TOKEN))), text)
        shown, given = [mark == VIDEO_TOKEN for mark in marks], [frames is not None for frames in media]
        if len(shown) == len(given) and shown != given:
            raise PromptError(
                "pictures and videos are given in another order than they stand in",
                where="prompt",
                fix=f"Give them in the order of their placeholders, {self.tokenizer.image_token} and {VIDEO_TOKEN}.",
            )

    def _with_segments(self, text: str, segments: Sequence[int], between: str) -> str:
        mark = self.tokenizer.image_token
        pieces = text.split(mark)
        check_placeholders(len(pieces) - 1, len(segments))
        return pieces[0] + "".join(
            between.join([mark] * n) + piece for n, piece in zip(segments, pieces[1:], strict=True)
        )


@dataclasses.dataclass(frozen=True)
class VilaForm(PromptForm, abc.ABC):
    """What VILA's conventions share: pictures stand where the user puts them, and a chosen style goes before the
    checkpoint's own template."""

    def _render(self, messages: Any, style: Style | None, go: bool) -> str:
        contents = self._texts(messages_lib.validate(messages), style)
        flat = [{**message, "content": text} for message, text in zip(messages, contents, strict=True)]
        if style is None:
            return self._render_own_template(flat, go)
        return render_style(flat, style, add_generation_prompt=go)

    @abc.abstractmethod
    def _texts(self, messages: Sequence[messages_lib.Message], style: Style | None) -> list[str]:
        """The contents of checked messages as texts."""


@dataclasses.dataclass(frozen=True)
class LegacyForm(VilaForm):
    """The convention of VILA v1 and VILA1.5."""

    def encode(self, text: str, segments: Sequence[int]) -> list[int]:
        """See `PromptForm.encode`."""
        pieces = self._with_segments(text, segments, "").split(self.tokenizer.image_token)
        first, *others = map(self._for_sentencepiece, pieces)
        ids = self.tokenizer.encode_prompt(first)
        # Where the prompt begins with BOS, the first id of every later piece is taken for another BOS and dropped.
        drop = int(ids[:1] == [self.tokenizer.bos_id])
        for piece in others:
            ids += [self.image_id, *self.tokenizer.encode(piece)[drop:]]
        return ids

    def _texts(self, messages: Sequence[messages_lib.Message], style: Style | None) -> list[str]:
        mark = self._mark(1) if style is None else style.image.replace("{image}", self.tokenizer.image_token)
        return [messages_lib.interleaved_text(message["content"], mark) for message in messages]

    def _for_sentencepiece(self, piece: str) -> str:
        """The piece, written so that its ids are those of the sentencepiece package, which VILA then used.

        Both put a word start before a text. The `tokenizers` library leaves it out where the text begins with a space
        or an added token; sentencepiece does not, unless the token is special.
        """
        if self.tokenizer.encode(" a") != self.tokenizer.encode("a"):  # no word starts are put before texts
            return piece
        first = self.tokenizer.encode(piece, add_special_tokens=False)[:1]
        added = set(first) <= self.tokenizer.added_ids - self.tokenizer.special_ids
        return f" {piece}" if first and (added or piece.startswith((" ", "▁"))) else piece


@dataclasses.dataclass(frozen=True)
class PooledForm:
    """How a pooled video is written.

    Attributes:
      video_id: its placeholder among the ids of a prompt.
      start, end: ids of the texts around every pooled frame.
      sep: ids of the text after every pool.
    """

    video_id: int
    start: tuple[int, ...]
    end: tuple[int, ...]
    sep: tuple[int, ...]

    def spliced(self, placeholder: int, pooled_frames: Sequence[int]) -> list[int]:
        """What the model reads of a video with these numbers of pooled frames, one for each pool."""
        frame = (*self.start, placeholder, *self.end)
        return [i for count in pooled_frames for i in (*(frame * count), *self.sep)]


@dataclasses.dataclass(frozen=True)
class MediaForm(VilaForm):
    """The convention of NVILA.

    Attributes:
      dynamic: whether a picture that is alone in its conversation is cut into tiles, each a segment on its own line.
      pooled: how pooled videos are written; None where videos are written as their frames.
    """

    dynamic: bool = False
    pooled: PooledForm | None = None

    @property
    def pools_videos(self) -> bool:
        """See `PromptForm.pools_videos`."""
        return self.pooled is not None

    def encode(self, text: str, segments: Sequence[int]) -> list[int]:
        """See `PromptForm.encode`."""
        return self.tokenizer.encode_prompt(self._with_segments(text, segments, "\n"))

    def _spliced(self, token: int, placeholder: int, videos: Iterator[Sequence[int]]) -> Sequence[int]:
        if self.pooled is not None and token == self.pooled.video_id:
            return self.pooled.spliced(placeholder, next(videos))
        return super()._spliced(token, placeholder, videos)

    def _mark(self, pictures: int) -> str:
        return f"{self.tokenizer.image_token}\n" if self.dynamic and pictures == 1 else self.tokenizer.image_token

    def _texts(self, messages: Sequence[messages_lib.Message], style: Style | None) -> list[str]:
        token, contents = self.tokenizer.image_token, [message["content"] for message in messages]
        pictures = sum(messages_lib.interleaved_text(content, token).count(token) for content in contents)
        mark = self._mark(pictures)
        return [messages_lib.interleaved_text(content, mark, VIDEO_TOKEN).strip() for content in contents]


def prompt_form(
    tokenizer: Tokenizer,
    era: str | None,
    *,
    dynamic: bool = False,
    pool_texts: tuple[str | None, str | None, str | None] | None = None,
) -> PromptForm:
    """The convention of a model.

    Args:
      tokenizer: of the checkpoint; for VILA that of `vila_tokenizer`.
      era: generation of VILA: `v1`, `vila1.5` or `nvila`; None for LLaVA.
      dynamic: whether NVILA cuts pictures into tiles that are segments of their own.
      pool_texts: where NVILA pools videos, what stands before and after every pooled frame, and after every pool.
    """
    if era is None:
        return PromptForm(tokenizer, tokenizer.image_token_id)
    if era == "nvila":
        pooled = None
        if pool_texts is not None:
            [video_id] = tokenizer.encode(VIDEO_TOKEN, add_special_tokens=False)
            pooled = PooledForm(video_id, *(_own_text(tokenizer, text) for text in pool_texts))
        return MediaForm(tokenizer, tokenizer.image_token_id, _own_text(tokenizer, "\n"), dynamic, pooled)
    return LegacyForm(tokenizer, LEGACY_IMAGE_ID)


def _own_text(tokenizer: Tokenizer, text: str | None) -> tuple[int, ...]:
    """As the reference tokenises what it puts around visual tokens: after a Llama tokenizer's BOS and word start."""
    return () if text is None else tuple(tokenizer.encode(text))


def _frames(media: Sequence[int | None]) -> list[int]:
    """Numbers of frames of the videos among what is shown."""
    return [frames for frames in media if frames is not None]
