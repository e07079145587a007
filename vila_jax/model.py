"""The public face: `from_pretrained`, and a `Model` that answers."""

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from vila_jax.budgets import Budget, required_intermediates
from vila_jax.dist.rules import ShardingRules
from vila_jax.errors import ConfigError, PromptError
from vila_jax.hf.checkpoint import Checkpoint, open_checkpoint
from vila_jax.hf.load import OnTensor, load_state
from vila_jax.infer.answers import Answers, Generation, Row
from vila_jax.infer.engine import Engine, OnCompile
from vila_jax.infer.layout import Request
from vila_jax.infer.sampler import SamplingOptions
from vila_jax.text.messages import fill_images
from vila_jax.text.styles import Style, style_for
from vila_jax.text.template import render
from vila_jax.text.tokenizer import Tokenizer
from vila_jax.vision.open import open_image
from vila_jax.vision.preprocess import PreprocessConfig, Preprocessor

BudgetLike = Budget | str | None
OWN = "own"
"""As a budget: the one that the model was loaded with."""

Messages = Sequence[dict[str, Any]]


class Model:
    """A vision-language model ready to answer; made by `from_pretrained`.

    Attributes:
      checkpoint: what was loaded.
      budget: used where a call names none.
      style: how conversations are written where the checkpoint has no chat template.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        tokenizer: Tokenizer,
        preprocessor: Preprocessor,
        budget: Budget | None,
        style: Style,
    ):
        self.checkpoint, self.engine, self.tokenizer = checkpoint, engine, tokenizer
        self.preprocessor, self.budget, self.style = preprocessor, budget, style
        self.config = checkpoint.config
        self._end_tokens = tuple(dict.fromkeys((*self.config.eos_ids, *tokenizer.eos_ids)))

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
          images: pictures in the order of their placeholders (paths, bytes, data URIs, PIL images, arrays); for a
            batch one list per prompt.
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
    ) -> Answers:
        """Starts a batch: iterate over the result for the new text of every row, then ask it for `results()`.

        Args:
          prompt, images, messages, max_new_tokens: see `generate`.
          budget: `hired:0.2`, a `Budget`, or None for all visual tokens; by default the model's own.
          temperature, top_k, top_p: see `SamplingOptions`; temperature 0 is greedy.
          seed: of the sampling; for a batch one for all or one per row. A row samples as it would alone.
          stop: strings that end an answer.
          ignore_eos: go on after end tokens.

        Raises:
          VilaError: whatever is wrong with the request, before the device is used.
        """
        start = time.perf_counter()
        if max_new_tokens < 1:
            raise PromptError(f"got {max_new_tokens}", where="max_new_tokens", fix="Ask for at least one token.")
        requests = self._requests(prompt, images, messages)
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(requests)
        if len(seeds) != len(requests):
            raise PromptError(
                f"{len(seeds)} seeds for {len(requests)} prompts", where="seed", fix="Give one seed, or one per prompt."
            )
        sampling = [SamplingOptions(temperature, top_k, top_p, own) for own in seeds]
        ends = () if ignore_eos else self._end_tokens
        rows = [Row(self.tokenizer, stop, ends) for _ in requests]
        run = self.engine.generate(requests, sampling, max_new_tokens, budget=self._budget(budget), end_tokens=ends)
        return Answers(run, rows, time.perf_counter() - start)

    def logits(
        self, prompt: str, images: Sequence[Any] | None = None, *, budget: BudgetLike = OWN
    ) -> Float[np.ndarray, "T C"]:
        """Float32 logits at every position of the spliced prompt: text and kept visual tokens."""
        [request] = self._requests(prompt, images, None)
        return self.engine.logits(request, budget=self._budget(budget))

    def count_tokens(self, image_size: tuple[int, int], budget: BudgetLike = OWN) -> int:
        """Visual tokens of a picture of (height, width) pixels; no pixel is needed."""
        return self.engine.planner.visual_count(self.preprocessor.geometry(image_size), self._budget(budget))

    def _budget(self, budget: BudgetLike) -> Budget | None:
        if budget == OWN:
            return self.budget
        return parse_budget(budget, self.checkpoint)

    def _requests(self, prompt: Any, images: Sequence[Any] | None, messages: Any) -> list[Request]:
        """Tokenised prompts with prepared pictures, one per row."""
        if (prompt is None) == (messages is None):
            raise PromptError("expected either a prompt or messages", where="prompt", fix="Give exactly one of them.")
        single = _is_single(prompt, messages)
        if prompt is not None:
            texts = [prompt] if single else list(prompt)
            sources = _per_row(images, len(texts), single)
        else:
            conversations = [messages] if single else list(messages)
            texts = [render(conversation, self.tokenizer, self.style) for conversation in conversations]
            given = _per_row(images, len(texts), single)
            sources = [fill_images(c, g) for c, g in zip(conversations, given, strict=True)]
        return [self._request(text, own) for text, own in zip(texts, sources, strict=True)]

    def _request(self, text: str, sources: Sequence[Any]) -> Request:
        return Request(
            self.tokenizer.encode_prompt(text), [self.preprocessor(open_image(source)) for source in sources]
        )


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
      BudgetError: it cannot be parsed, or the model's tower lacks what the method needs.
    """
    if budget is None:
        return None
    parsed = Budget.parse(budget) if isinstance(budget, str) else budget
    vlm = checkpoint.config.vlm
    required_intermediates(parsed, vlm.vision, vlm.vision_depth)
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

    Raises:
      VilaError: the checkpoint cannot be found, read or understood. Nothing is on a device by then.
    """
    checkpoint = open_checkpoint(path_or_hub_id, revision=revision)
    chosen = parse_budget(budget, checkpoint)
    tokenizer = Tokenizer.from_folder(checkpoint.folder, image_token_id=checkpoint.config.image_token_id)
    preprocessor = make_preprocessor(checkpoint)
    dtype = jnp.dtype(default_dtype() if dtype is None else dtype)
    graphdef, state = load_state(checkpoint, dtype=dtype, mesh=mesh, rules=rules, on_tensor=on_tensor)
    engine = Engine(graphdef, state, checkpoint.config, dtype=dtype.name, on_compile=on_compile)
    decoder = (checkpoint.raw_config.get("text_config") or {}).get("model_type", "llama")
    style = style_for(decoder, str(path_or_hub_id))
    return Model(checkpoint, engine, tokenizer, preprocessor, chosen, style)


def make_preprocessor(checkpoint: Checkpoint) -> Preprocessor:
    """The preprocessing that the checkpoint's own file describes.

    Raises:
      ConfigError: there is none, or it contradicts the model's config.
    """
    vision, model_type = checkpoint.config.vlm.vision, checkpoint.config.model_type
    files = checkpoint.processor.get("image_processor") or checkpoint.preprocessor
    config = PreprocessConfig.from_hf(files, model_type=model_type)
    if config.tile_size != vision.image_size:
        raise ConfigError(
            f"pictures are prepared at {config.tile_size} pixels, but the vision tower expects {vision.image_size}",
            where=f"{checkpoint.folder}/preprocessor_config.json",
            fix="Use the processor files that were published with this model.",
        )
    if set(config.pinpoints or ()) != set(checkpoint.config.grid_pinpoints or ()):
        raise ConfigError(
            f"pictures are cut along {config.pinpoints}, but the model expects {checkpoint.config.grid_pinpoints}",
            where=f"{checkpoint.folder}, key `image_grid_pinpoints`",
            fix="Use the processor files that were published with this model.",
        )
    return Preprocessor(config, vision.patch_size)
