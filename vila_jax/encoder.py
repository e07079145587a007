"""From prompts and pictures to requests: opens, prepares, writes and tokenises. Runs on the host, sees no weights."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from vila_jax.budgets import Budget
from vila_jax.errors import PromptError
from vila_jax.hf.config import ModelConfig
from vila_jax.infer.layout import Medium, Planner, Request
from vila_jax.infer.pictures import prepare
from vila_jax.text.messages import VideoSource, fill_images
from vila_jax.text.prompts import PromptForm
from vila_jax.text.styles import Style
from vila_jax.vision.open import open_image
from vila_jax.vision.pooling import PooledVideo
from vila_jax.vision.preprocess import Preprocessor, ProcessedImage
from vila_jax.vision.video import open_frames
from vila_jax.vision.vila import VilaPreprocessor

Messages = Sequence[dict[str, Any]]

Writer = Callable[[Any, Sequence[int | None]], str]
"""Makes a text of a prompt and what it shows: for each video its number of frames, for each picture None."""


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A tokenised prompt, with placeholders for the pictures and videos that it shows in this order."""

    token_ids: list[int]
    media: list[Medium]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Makes requests of prompts, the way a model wants them.

    Attributes:
      config: of the model.
      form: how pictures and text become token ids.
      style: how conversations are written; None where the checkpoint's own chat template says it.
      preprocessor: of pictures.
      planner: knows how many tokens a picture becomes.
    """

    config: ModelConfig
    form: PromptForm
    style: Style | None
    preprocessor: Preprocessor | VilaPreprocessor
    planner: Planner

    def encode(
        self, prompt: Any, images: Sequence[Any] | None, messages: Any, budget: Budget | None
    ) -> list[EncodedPrompt]:
        """Tokenised prompts with prepared pictures, one per row; for the arguments see `Model.generate`.

        Raises:
          VilaError: whatever is wrong with the prompts or their pictures.
        """
        if (prompt is None) == (messages is None):
            raise PromptError("expected either a prompt or messages", where="prompt", fix="Give exactly one of them.")
        single = is_single(prompt, messages)
        if prompt is not None:
            prompts = [prompt] if single else list(prompt)
            sources, write = _per_row(images, len(prompts), single), self.form.place_frames
            return [self._encode([write], *row, budget)[0] for row in zip(prompts, sources, strict=True)]
        prompts = [messages] if single else list(messages)
        sources = [
            fill_images(own, given) for own, given in zip(prompts, _per_row(images, len(prompts), single), strict=True)
        ]
        return [self._encode([self._render], *row, budget)[0] for row in zip(prompts, sources, strict=True)]

    def encode_one(
        self, prompt: Any, images: Sequence[Any] | None, messages: Any, budget: Budget | None
    ) -> EncodedPrompt:
        """As `encode`, and refuses a batch."""
        if not is_single(prompt, messages):
            raise PromptError("expected a single prompt", where="prompt", fix="Call it for one prompt after another.")
        [encoded] = self.encode(prompt, images, messages, budget)
        return encoded

    def continued(
        self, messages: Messages, images: Sequence[Any], answers: Sequence[str], budget: Budget | None
    ) -> list[tuple[Request, list[int]]]:
        """For each of several answers, the conversation that waits for it, and the ids that finish it.

        The finished conversation is tokenised whole; what it has beyond the tokens of the waiting one are those of the
        answer and of whatever ends it. Pictures are prepared once, and shared.

        Raises:
          PromptError: there is no list of answers, or one leaves no token of its own.
        """
        if isinstance(answers, str) or not answers:
            raise PromptError("expected a list of answers", where="answers", fix="Write answers=[text].")
        finishing = (functools.partial(self._render_finished, answer) for answer in answers)
        writers: list[Writer] = [self._render, *finishing]
        before, *finished = self._encode(writers, messages, fill_images(messages, images), budget)
        found = []
        for answer, whole in zip(answers, finished, strict=True):
            same = (one == other for one, other in zip(before.token_ids, whole.token_ids, strict=False))
            shared = len(list(itertools.takewhile(bool, same)))
            if shared == len(whole.token_ids):
                raise PromptError(f"{answer!r} has no token of its own", where="answers", fix="Give it a text.")
            context = dataclasses.replace(whole, token_ids=whole.token_ids[:shared])
            found.append((self.spliced(context), whole.token_ids[shared:]))
        return found

    def spliced(self, encoded: EncodedPrompt) -> Request:
        """With what the model reads in the places of pictures and videos."""
        tsp = self.config.video.tsp
        videos = [medium for medium in encoded.media if isinstance(medium, PooledVideo)]
        pooled = [tsp.pooled_frames(len(video.frames)) for video in videos] if tsp is not None else []
        return Request(self.form.splice(encoded.token_ids, self.config.image_token_id, pooled), encoded.media)

    def _render(self, messages: Messages, media: Sequence[int | None]) -> str:
        return self.form.render(messages, self.style, media)

    def _render_finished(self, answer: str, messages: Messages, media: Sequence[int | None]) -> str:
        finished = [*messages, {"role": "assistant", "content": answer.strip()}]
        return self.form.render(finished, self.style, media, add_generation_prompt=False)

    def _encode(
        self, writers: Sequence[Writer], prompt: Any, sources: Sequence[Any], budget: Budget | None
    ) -> list[EncodedPrompt]:
        """One row, its pictures and videos prepared; as every one of the writers writes it."""
        opened = [self._frames(s) if isinstance(s, VideoSource) else [open_image(s)] for s in sources]
        videos = [isinstance(source, VideoSource) for source in sources]
        shown = [len(own) if video else None for own, video in zip(opened, videos, strict=True)]
        texts = [write(prompt, shown) for write in writers]
        media = self._prepared(opened, videos, budget)
        pictures = [medium for medium in media if isinstance(medium, ProcessedImage)]
        segments = [self.planner.segments(picture.geometry, budget) for picture in pictures]
        return [EncodedPrompt(self.form.encode(text, segments), media) for text in texts]

    def _frames(self, video: VideoSource) -> list[Image.Image]:
        """The frames of a video: as many as are asked for, else as the checkpoint was trained with."""
        if video.num_frames is not None:
            return open_frames(video.source, video.num_frames)
        return open_frames(video.source, self.config.video.num_frames, fps=self.config.video.fps)

    def _prepared(self, opened: list[list[Image.Image]], videos: list[bool], budget: Budget | None) -> list[Medium]:
        """The pictures of a prompt, and its videos: pooled ones whole, of others every frame as a picture."""
        tsp, preprocessor = self.config.video.tsp, self.preprocessor
        if tsp is None or not any(videos):
            return list(prepare(preprocessor, [image for own in opened for image in own], budget))
        assert isinstance(preprocessor, VilaPreprocessor)
        shown = [own[0] for own, video in zip(opened, videos, strict=True) if not video]
        pictures = iter(prepare(preprocessor, shown, budget))
        for number, frames in enumerate(own for own, video in zip(opened, videos, strict=True) if video):
            tsp.check_frames(len(frames), where=f"video {number}")
        return [
            PooledVideo(tuple(preprocessor.frames(own))) if video else next(pictures)
            for own, video in zip(opened, videos, strict=True)
        ]


def is_single(prompt: Any, messages: Any) -> bool:
    """Whether this is one request (a text, or one list of messages) rather than a batch."""
    if prompt is not None:
        return isinstance(prompt, str)
    return all(isinstance(message, dict) for message in messages or ())


def _per_row(images: Sequence[Any] | None, rows: int, single: bool) -> list[Sequence[Any]]:
    """The pictures of each row."""
    if images is None:
        return [()] * rows
    per_row = [images] if single else images
    lists = isinstance(per_row, list | tuple) and all(isinstance(own, list | tuple) for own in per_row)
    if lists and len(per_row) == rows:
        return list(per_row)
    raise PromptError(
        "expected a list of pictures" if single else f"expected {rows} lists of pictures, one per prompt",
        where="images",
        fix="Write images=[picture]." if single else "Give an empty list for a prompt without pictures.",
    )
