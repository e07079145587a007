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

from vila_jax.assemble import make_form, make_preprocessor, make_style
from vila_jax.budgets import Budget
from vila_jax.budgets.check import check_budget
from vila_jax.chat import Chat
from vila_jax.dist.rules import ShardingRules
from vila_jax.encoder import Encoder, Messages, is_single
from vila_jax.errors import PromptError
from vila_jax.hf.checkpoint import Checkpoint, open_checkpoint
from vila_jax.hf.load import OnTensor, WeightPlan, default_dtype, plan_weights
from vila_jax.infer.answers import Answers, Generation, Row
from vila_jax.infer.engine import Engine, OnCompile
from vila_jax.infer.fuse import check_one_device, fuse_products
from vila_jax.infer.layout import Request
from vila_jax.infer.likelihood import Likelihood, in_order, make_probes
from vila_jax.infer.pictures import limit_of
from vila_jax.infer.prefixes import PrefixCache
from vila_jax.infer.sampler import SamplingOptions
from vila_jax.quantize import Quantization, check_pays
from vila_jax.quantize.spec import parse
from vila_jax.text.prompts import PromptForm
from vila_jax.text.styles import Style
from vila_jax.vision.preprocess import Preprocessor, ProcessedImage
from vila_jax.vision.vila import VilaPreprocessor

BudgetLike = Budget | str | None
OWN = "own"
"""As a budget: the one that the model was loaded with."""


class Model:
    """A vision-language model ready to answer; made by `from_pretrained`.

    Attributes:
      checkpoint: what was loaded.
      form: how pictures and text become token ids.
      budget: used where a call names none.
      style: how conversations are written; None where the checkpoint's own chat template says it.
      encoder: makes requests of prompts.
      end_tokens: ids that end an answer.
      quantization: of its weights and cache.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        form: PromptForm,
        preprocessor: Preprocessor | VilaPreprocessor,
        budget: Budget | None,
        style: Style | None,
        quantization: Quantization | None = None,
    ):
        self.quantization = quantization
        self.checkpoint, self.engine, self.form = checkpoint, engine, form
        self.preprocessor, self.budget, self.style = preprocessor, budget, style
        self.config, self.tokenizer = checkpoint.config, form.tokenizer
        self.encoder = Encoder(checkpoint.config, form, style, preprocessor, engine.planner)
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
        return results[0] if is_single(prompt, messages) else results

    def stream(
        self,
        prompt: str | None = None,
        images: Sequence[Any] | None = None,
        *,
        messages: Messages | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """As `generate` for one prompt, but yields the text piece by piece as it becomes certain."""
        if not is_single(prompt, messages):
            raise PromptError("streaming takes one prompt", where="prompt", fix="Use `answers` for a batch.")
        answers = self.answers(prompt, images, messages=messages, **options)
        return (piece for [piece] in answers if piece)

    def answers(
        self,
        prompt: str | Sequence[str] | None = None,
        images: Sequence[Any] | None = None,
        *,
        messages: Messages | Sequence[Messages] | None = None,
        budget: BudgetLike = OWN,
        **options: Any,
    ) -> Answers:
        """Starts a batch: iterate over the result for the new text of every row, then ask it for `results()`.

        Args:
          prompt, images, messages: see `generate`.
          budget: `hired:0.2`, a `Budget`, or None for all visual tokens; by default the model's own.
          **options: see `answers_to`.

        Raises:
          VilaError: whatever is wrong with the request, before the device is used.
        """
        start, chosen = time.perf_counter(), self._budget(budget)
        encoded = self.encoder.encode(prompt, images, messages, chosen)
        requests = [self.encoder.spliced(own) for own in encoded]
        return self.answers_to(requests, budget=chosen, since=start, **options)

    def answers_to(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int = 128,
        budget: BudgetLike = OWN,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        since: float | None = None,
        prefixes: PrefixCache | None = None,
    ) -> Answers:
        """As `answers`, of prompts that were prepared by `request`, perhaps in other threads.

        Args:
          requests: a batch.
          max_new_tokens: generation ends there at the latest.
          budget: the one that the requests were prepared for.
          temperature, top_k, top_p: see `SamplingOptions`; temperature 0 is greedy.
          seed: of the sampling; for a batch one for all or one per row. A row samples as it would alone.
          stop: strings that end an answer.
          ignore_eos: go on after end tokens.
          since: when their preparation began, by `time.perf_counter`; by default now.
          prefixes: for a single prompt, what earlier ones have left there is not read again; see `chat`.

        Raises:
          VilaError: whatever is wrong with the request, before the device is used.
        """
        start = time.perf_counter() if since is None else since
        if max_new_tokens < 1:
            raise PromptError(f"got {max_new_tokens}", where="max_new_tokens", fix="Ask for at least one token.")
        chosen = self._budget(budget)
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(requests)
        if len(seeds) != len(requests):
            raise PromptError(
                f"{len(seeds)} seeds for {len(requests)} prompts", where="seed", fix="Give one seed, or one per prompt."
            )
        sampling = [SamplingOptions(temperature, top_k, top_p, own) for own in seeds]
        ends = () if ignore_eos else self.end_tokens
        rows = [Row(self.tokenizer, stop, ends) for _ in requests]
        run = self.engine.generate(
            requests, sampling, max_new_tokens, budget=chosen, end_tokens=ends, prefixes=prefixes
        )
        return Answers(run, rows, time.perf_counter() - start)

    def wait(self) -> None:
        """Waits for weights that are on their way, see `from_pretrained`.

        Raises:
          VilaError: what went wrong there.
        """
        self.engine.wait()

    def chat(self, system: str | None = None, *, prefixes: PrefixCache | None = None, **options: Any) -> Chat:
        """Begins a conversation of several turns, each of which reads only what is new; see `vila_jax.chat.Chat`."""
        return Chat(self, system=system, prefixes=prefixes, **options)

    def log_likelihoods(
        self, messages: Messages, answers: Sequence[str], images: Sequence[Any] = (), *, budget: BudgetLike = OWN
    ) -> list[Likelihood]:
        """How probable each of several answers to a conversation is, its end token included.

        Args:
          messages: a conversation that waits for an answer, see `generate`.
          answers: texts; those that differ in their last token alone are read off one row.
          images: pictures of the parts that name none.
          budget: see `answers`.

        Raises:
          PromptError: whatever is wrong with conversation, answers or pictures.
          BudgetError: answers of several tokens under a budget inside the decoder, see `Engine.log_likelihoods`.
        """
        chosen = self._budget(budget)
        found = self.finished(messages, answers, images, budget=chosen)
        probes = make_probes([request for request, _ in found], [ids for _, ids in found])
        return in_order(probes, self.engine.log_likelihoods(probes, budget=chosen))

    def finished(
        self, messages: Messages, answers: Sequence[str], images: Sequence[Any] = (), *, budget: BudgetLike = OWN
    ) -> list[tuple[Request, list[int]]]:
        """For each of several answers, the prepared conversation that waits for it, and its ids with the end token."""
        found = self.encoder.continued(messages, images, answers, self._budget(budget))
        return [(request, self._up_to_end(ids)) for request, ids in found]

    def _up_to_end(self, ids: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(ids) if token in self.end_tokens), len(ids))
        return ids[: end + 1]

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
        return self.encoder.spliced(self.encoder.encode_one(prompt, images, messages, self._budget(budget)))

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
        return self.encoder.encode_one(prompt, images, messages, self._budget(budget)).token_ids

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


def from_pretrained(  # noqa: PLR0913 - the front door: all but the first are by name
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
    quantize: Quantization | str | None = None,
    fuse: bool = False,
    wait: bool = True,
    mmap: bool = False,
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
      quantize: weights and cache in fewer bits, e.g. `int8` or `int4,kv=int8`; see `vila_jax.quantize.spec`.
      fuse: whether products of one input become one, see `vila_jax.infer.fuse`; on one device alone.
      wait: False returns while threads still read the weights, so that requests can be prepared and compiled
        (`Answers.compile`); what runs first waits for them, as does `Model.wait`. With `fuse` they are waited for.
      mmap: whether weights on a CPU may stay in the pages of their files, see `vila_jax.hf.pages`: nothing is copied
        then, and nobody may write into those files meanwhile.

    Raises:
      QuantizationError: it cannot be parsed, or makes the model slower on this device.
      ConfigError: products are to be fused over a mesh.
      VilaError: the checkpoint cannot be found, read or understood. Nothing is on a device by then.
    """
    quantization = parse(quantize)
    check_pays(quantization, None if mesh is None else mesh.devices.flat[0])
    if fuse:
        check_one_device(mesh)
    checkpoint = open_checkpoint(path_or_hub_id, revision=revision, era=era)
    chosen = parse_budget(budget, checkpoint)
    form = make_form(checkpoint)
    written = make_style(checkpoint, form.tokenizer, str(path_or_hub_id), style)
    preprocessor = make_preprocessor(checkpoint)
    dtype = jnp.dtype(default_dtype() if dtype is None else dtype)
    plan = plan_weights(checkpoint, dtype=dtype, mesh=mesh, rules=rules, quantization=quantization, mmap=mmap)
    engine = _start_engine(
        checkpoint,
        plan,
        fuse,
        on_tensor,
        dtype=dtype.name,
        cache_dtype=None if quantization is None else quantization.kv,
        on_compile=on_compile,
        between_tiles=form.between_segments,
        image_cache=image_cache,
    )
    if wait:
        engine.wait()
    return Model(checkpoint, engine, form, preprocessor, chosen, written, quantization)


def _start_engine(
    checkpoint: Checkpoint, plan: WeightPlan, fuse: bool, on_tensor: OnTensor | None, **options: Any
) -> Engine:
    """An engine, with its other options, whose weights are being read; with `fuse` they are there."""
    state = plan.start_reading(on_tensor)
    if fuse:
        return Engine(*fuse_products(plan.graphdef, state.result()), checkpoint.config, **options)
    return Engine(plan.graphdef, state, checkpoint.config, shapes=plan.shapes, **options)
