"""The public face: `from_pretrained`, and a `Model` that answers."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float
from PIL import Image

from vila_jax.assemble import make_form, make_preprocessor, make_style
from vila_jax.budgets import Budget
from vila_jax.budgets.check import check_budget
from vila_jax.chat import Chat
from vila_jax.dist.rules import ShardingRules
from vila_jax.errors import PromptError
from vila_jax.hf.checkpoint import Checkpoint, open_checkpoint
from vila_jax.hf.load import OnTensor, load_state
from vila_jax.infer.answers import Answers, Generation, Row
from vila_jax.infer.engine import Engine, OnCompile
from vila_jax.infer.layout import Medium, Request
from vila_jax.infer.pictures import limit_of, prepare
from vila_jax.infer.prefixes import PrefixCache
from vila_jax.infer.sampler import SamplingOptions
from vila_jax.text.messages import VideoSource, fill_images
from vila_jax.text.prompts import PromptForm
from vila_jax.text.styles import Style
from vila_jax.vision.open import open_image
from vila_jax.vision.pooling import PooledVideo
from vila_jax.vision.preprocess import Preprocessor, ProcessedImage
from vila_jax.vision.video import open_frames
from vila_jax.vision.vila import VilaPreprocessor

BudgetLike = Budget | str | None
OWN = "own"
"""As a budget: the one that the model was loaded with."""

Messages = Sequence[dict[str, Any]]

Writer = Callable[[Any, Sequence[int | None]], str]
"""Makes a text of a prompt and what it shows: for each video its number of frames, for each picture None."""


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A tokenised prompt, with placeholders for the pictures and videos that it shows in this order."""

    token_ids: list[int]
    media: list[Medium]


class Model:
    """A vision-language model ready to answer; made by `from_pretrained`.

    Attributes:
      checkpoint: what was loaded.
      form: how pictures and text become token ids.
      budget: used where a call names none.
      style: how conversations are written; None where the checkpoint's own chat template says it.
      end_tokens: ids that end an answer.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        form: PromptForm,
        preprocessor: Preprocessor | VilaPreprocessor,
        budget: Budget | None,
        style: Style | None,
    ):
        self.checkpoint, self.engine, self.form = checkpoint, engine, form
        self.preprocessor, self.budget, self.style = preprocessor, budget, style
        self.config, self.tokenizer = checkpoint.config, form.tokenizer
        self.end_tokens = tuple(dict.fromkeys((*self.config.eos_ids, *form.stop_ids(style))))

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        images: Sequence[Any] | None = None,
        *,
        messages: Messages | Sequence[Messages] | None = None,
        max_new_tokens: int = 128,
        **options: Any,
    ) -> Generation | list[Generation]:
        """Answers a prompt, or a batch of them.

        Args:
          prompt: raw text with one `<image>` per picture; a list makes a batch.
          images: pictures in the order of their placeholders (paths, bytes, data URIs, PIL images, arrays), and
            `VideoSource(...)` for a `<vila/video>`; for a batch one list per prompt.
          messages: instead of a prompt, a conversation in the Hugging Face form, which goes through the checkpoint's
            chat template; a list of conversations makes a batch.
          max_new_tokens: generation ends there at the latest.
          **options: see `answers`.

        Returns:
          A `Generation`; for a batch a list of them.

        Raises:
          VilaError: whatever is wrong with the request, before the device is used.
        """
        answers = self.answers(prompt, images, messages=messages, max_new_tokens=max_new_tokens, **options)
        for _ in answers:
            pass
        results = answers.results()
        return results[0] if _is_single(prompt, messages) else results

    def stream(
        self,
        prompt: str | None = None,
        images: Sequence[Any] | None = None,
        *,
        messages: Messages | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """As `generate` for one prompt, but yields the text piece by piece as it becomes certain."""
        if not _is_single(prompt, messages):
            raise PromptError("streaming takes one prompt", where="prompt", fix="Use `answers` for a batch.")
        answers = self.answers(prompt, images, messages=messages, **options)
        return (piece for [piece] in answers if piece)

    def answers(
        self,
        prompt: str | Sequence[str] | None = None,
        images: Sequence[Any] | None = None,
        *,
        messages: Messages | Sequence[Messages] | None = None,
        max_new_tokens: int = 128,
        budget: BudgetLike = OWN,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        prefixes: PrefixCache | None = None,
    ) -> Answers:
        """Starts a batch: iterate over the result for the new text of every row, then ask it for `results()`.

        Args:
          prompt, images, messages, max_new_tokens: see `generate`.
          budget: `hired:0.2`, a `Budget`, or None for all visual tokens; by default the model's own.
          temperature, top_k, top_p: see `SamplingOptions`; temperature 0 is greedy.
          seed: of the sampling; for a batch one for all or one per row. A row samples as it would alone.
          stop: strings that end an answer.
          ignore_eos: go on after end tokens.
          prefixes: for a single prompt, what earlier ones have left there is not read again; see `chat`.

        Raises:
          VilaError: whatever is wrong with the request, before the device is used.
        """
        start = time.perf_counter()
        if max_new_tokens < 1:
            raise PromptError(f"got {max_new_tokens}", where="max_new_tokens", fix="Ask for at least one token.")
        chosen = self._budget(budget)
        requests = [self._spliced(encoded) for encoded in self._encoded(prompt, images, messages, chosen)]
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(requests)
        if len(seeds) != len(requests):
            raise PromptError(
                f"{len(seeds)} seeds for {len(requests)} prompts", where="seed", fix="Give one seed, or one per prompt."
            )
        sampling = [SamplingOptions(temperature, top_k, top_p, own) for own in seeds]
        ends = () if ignore_eos else self.end_tokens
        how: dict[str, Any] = {"budget": chosen, "end_tokens": ends, "prefixes": prefixes}
        run = self.engine.generate(requests, sampling, max_new_tokens, **how)
        return Answers(run, [Row(self.tokenizer, stop, ends) for _ in requests], time.perf_counter() - start)

    def chat(self, system: str | None = None, *, prefixes: PrefixCache | None = None, **options: Any) -> Chat:
        """Begins a conversation of several turns, each of which reads only what is new; see `vila_jax.chat.Chat`."""
        return Chat(self, system=system, prefixes=prefixes, **options)

    def logits(
        self,
        prompt: str | None = None,
        images: Sequence[Any] | None = None,
        *,
        messages: Messages | None = None,
        budget: BudgetLike = OWN,
    ) -> Float[np.ndarray, "T C"]:
        """Float32 logits of all tokens of the spliced prompt: text and kept visual tokens.

        Of a budget inside the decoder these are the tokens that its last layer reads.
        """
        chosen = self._budget(budget)
        return self.engine.logits(self.request(prompt, images, messages=messages, budget=chosen), budget=chosen)

    def embeddings(
        self,
        prompt: str | None = None,
        images: Sequence[Any] | None = None,
        *,
        messages: Messages | None = None,
        budget: BudgetLike = OWN,
    ) -> Float[np.ndarray, "T D"]:
        """What the decoder reads: the embeddings of the spliced prompt."""
        chosen = self._budget(budget)
        return self.engine.embeddings(self.request(prompt, images, messages=messages, budget=chosen), budget=chosen)

    def request(
        self,
        prompt: str | None = None,
        images: Sequence[Any] | None = None,
        *,
        messages: Messages | None = None,
        budget: BudgetLike = OWN,
    ) -> Request:
        """A single prompt as the engine takes it: token ids and prepared pictures."""
        return self._spliced(self._single(prompt, images, messages, self._budget(budget)))

    def token_ids(
        self,
        prompt: str | None = None,
        images: Sequence[Any] | None = None,
        *,
        messages: Messages | None = None,
        budget: BudgetLike = OWN,
    ) -> list[int]:
        """Ids of a prompt, with one placeholder (`form.image_id`) per picture, or per tile that is written as one.

        A pooled video has one placeholder as well, the id of `<vila/video>`.
        """
        return self._single(prompt, images, messages, self._budget(budget)).token_ids

    def features(self, image: ProcessedImage) -> Float[np.ndarray, "P N Dv"]:
        """What the vision tower says of every patch of a picture's tiles; see `preprocessor` for the tiles."""
        return self.engine.features(image)

    def count_tokens(self, image_size: tuple[int, int], budget: BudgetLike = OWN) -> int:
        """Visual tokens of a picture of (height, width) pixels; no pixel is needed."""
        chosen = self._budget(budget)
        geometry = self.preprocessor.geometry(image_size)
        if (limit := limit_of(chosen)) is not None:
            geometry = self.preprocessor.within(image_size, limit(geometry)).geometry(image_size)
        return self.engine.planner.visual_count(geometry, chosen)

    def _budget(self, budget: BudgetLike) -> Budget | None:
        if budget == OWN:
            return self.budget
        return parse_budget(budget, self.checkpoint)

    def _single(self, prompt: Any, images: Any, messages: Any, budget: Budget | None) -> EncodedPrompt:
        if not _is_single(prompt, messages):
            raise PromptError("expected a single prompt", where="prompt", fix="Call it for one prompt after another.")
        [encoded] = self._encoded(prompt, images, messages, budget)
        return encoded

    def _encoded(
        self, prompt: Any, images: Sequence[Any] | None, messages: Any, budget: Budget | None
    ) -> list[EncodedPrompt]:
        """Tokenised prompts with prepared pictures, one per row."""
        if (prompt is None) == (messages is None):
            raise PromptError("expected either a prompt or messages", where="prompt", fix="Give exactly one of them.")
        single = _is_single(prompt, messages)
        if prompt is not None:
            prompts = [prompt] if single else list(prompt)
            sources = _per_row(images, len(prompts), single)
            write: Writer = self.form.place_frames
        else:
            prompts = [messages] if single else list(messages)
            given = _per_row(images, len(prompts), single)
            sources = [fill_images(c, g) for c, g in zip(prompts, given, strict=True)]
            write = self._render
        return [self._encode(write, own, media, budget) for own, media in zip(prompts, sources, strict=True)]

    def _render(self, messages: Messages, media: Sequence[int | None]) -> str:
        return self.form.render(messages, self.style, media)

    def _encode(self, write: Writer, prompt: Any, sources: Sequence[Any], budget: Budget | None) -> EncodedPrompt:
        """One row, its pictures and videos prepared."""
        opened = [self._frames(s) if isinstance(s, VideoSource) else [open_image(s)] for s in sources]
        videos = [isinstance(source, VideoSource) for source in sources]
        text = write(prompt, [len(own) if video else None for own, video in zip(opened, videos, strict=True)])
        media = self._prepared(opened, videos, budget)
        pictures = [medium for medium in media if isinstance(medium, ProcessedImage)]
        segments = [self.engine.planner.segments(picture.geometry, budget) for picture in pictures]
        return EncodedPrompt(self.form.encode(text, segments), media)

    def _spliced(self, encoded: EncodedPrompt) -> Request:
        """With what the model reads in the places of pictures and videos."""
        tsp = self.config.video.tsp
        videos = [medium for medium in encoded.media if isinstance(medium, PooledVideo)]
        pooled = [tsp.pooled_frames(len(video.frames)) for video in videos] if tsp is not None else []
        return Request(self.form.splice(encoded.token_ids, self.config.image_token_id, pooled), encoded.media)

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


def _is_single(prompt: Any, messages: Any) -> bool:
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


def parse_budget(budget: BudgetLike, checkpoint: Checkpoint) -> Budget | None:
    """A budget that this model can meet.

    Raises:
      BudgetError: it cannot be parsed, or the model lacks what the method needs.
    """
    if budget is None:
        return None
    parsed = Budget.parse(budget) if isinstance(budget, str) else budget
    check_budget(parsed, checkpoint.config.vlm)
    return parsed


def default_dtype() -> DTypeLike:
    """bfloat16 on accelerators, float32 on CPUs, whose bfloat16 products are many times slower."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def from_pretrained(
    path_or_hub_id: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    budget: BudgetLike = None,
    mesh: jax.sharding.Mesh | None = None,
    revision: str | None = None,
    rules: ShardingRules | None = None,
    on_tensor: OnTensor | None = None,
    on_compile: OnCompile | None = None,
    era: str | None = None,
    style: str | None = None,
    image_cache: int = 0,
) -> Model:
    """Loads a model from a folder or the Hugging Face Hub.

    Args:
      path_or_hub_id: a folder (`gs://` works), or an id such as `llava-hf/llava-v1.6-vicuna-7b-hf`.
      dtype: of weights and computation; by default bfloat16 on accelerators and float32 on CPUs.
      budget: visual-token budget of every call that names none, e.g. `hired:0.2`.
      mesh: devices to shard the weights over, see `vila_jax.dist`; one device without it.
      revision: branch, tag or commit on the Hub.
      rules: how logical axes map to the mesh.
      on_tensor, on_compile: called while weights are read and before a program is compiled, for progress bars.
      era: `v1`, `vila1.5` or `nvila`: the order of merged tokens and the form of prompts, for a VILA checkpoint that
        does not show its own (`vila-jax inspect` says what it shows).
      style: name of a conversation style (see `vila_jax.text`); by default the one that the checkpoint asks for.
      image_cache: bytes of device memory for pictures that are not encoded again; 0 keeps none.

    Raises:
      VilaError: the checkpoint cannot be found, read or understood. Nothing is on a device by then.
    """
    checkpoint = open_checkpoint(path_or_hub_id, revision=revision, era=era)
    chosen = parse_budget(budget, checkpoint)
    form, preprocessor = make_form(checkpoint), make_preprocessor(checkpoint)
    written = make_style(checkpoint, form.tokenizer, str(path_or_hub_id), style)
    dtype = jnp.dtype(default_dtype() if dtype is None else dtype)
    graphdef, state = load_state(checkpoint, dtype=dtype, mesh=mesh, rules=rules, on_tensor=on_tensor)
    engine = Engine(
        graphdef,
        state,
        checkpoint.config,
        dtype=dtype.name,
        on_compile=on_compile,
        between_tiles=form.between_segments,
        image_cache=image_cache,
    )
    return Model(checkpoint, engine, form, preprocessor, chosen, written)
