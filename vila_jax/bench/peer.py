"""Ours beside transformers + PyTorch: the same weights, prompts and machine, one run, repeats taking turns.

The one module of the package that imports torch and transformers (the `test` extra); nothing imports it but
`vila-jax bench peer`.
"""

import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from vila_jax.bench.presets import PRESETS, preset_json
from vila_jax.bench.results import Row
from vila_jax.bench.subject import Batch, Case, Subject
from vila_jax.bench.timing import REPEATS, Times, interleaved
from vila_jax.errors import VilaError
from vila_jax.hf.keys import LLAVA
from vila_jax.infer.layout import Request
from vila_jax.infer.sampler import SamplingOptions
from vila_jax.nn.params import dotted

OURS, EAGER, COMPILED = "vila_jax", "PyTorch, sdpa", "PyTorch, sdpa, torch.compile"

Answer = Callable[[int], np.ndarray]
"""Generates so many tokens for every row, and returns them, `[B, new]`."""


def require_torch() -> None:
    """Before minutes of work rather than after them.

    Raises:
      VilaError: torch or transformers is not installed.
    """
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise VilaError(f"{name} is not installed", where="vila-jax bench peer", fix="pip install 'vila-jax[test]'")


def versions() -> dict[str, str]:
    """Of the other side."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers")}


def compare_sides(
    subject: Subject,
    case: Case,
    source: str,
    *,
    repeats: int = REPEATS,
    compiled: bool = True,
    on_step: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Times both sides in turns: the full prompt on ours and theirs, and ours with the budget of the case.

    Args:
      source: the preset, or the path of the checkpoint, that the subject was made from.
      compiled: whether theirs is also timed through `torch.compile`.

    Raises:
      VilaError: transformers has no class for this model.
    """
    if subject.config.layout != "llava":
        fix = "Compare one of LLaVA's: llava-1.5-7b, llava-next-7b, mid-0.3b."
        raise VilaError(f"transformers has no model of the kind of {subject.name}", where="MODEL", fix=fix)
    on_step("copying weights to PyTorch")
    theirs = _Theirs(_torch_model(subject, source), subject, dataclasses.replace(case, budget=None))
    budgets = dict.fromkeys([None, case.budget])
    answers = {_our_name(budget): _ours(subject, dataclasses.replace(case, budget=budget)) for budget in budgets}
    answers[EAGER] = theirs.eager
    if compiled:
        answers[COMPILED] = theirs.compiled
    on_step("comparing answers")
    difference = _logit_difference(subject, theirs)
    same = bool((answers[OURS](case.new_tokens) == theirs.eager(case.new_tokens)).all())
    on_step("timing both sides in turns")
    times = interleaved({name: _clocks(answer, case.new_tokens) for name, answer in answers.items()}, repeats)
    about = {"model": subject.name, "dtype": subject.dtype} | dataclasses.asdict(case)
    rows = []
    for name, own in times.items():
        facts = _facts(own, times[EAGER], case)
        if name == OURS:
            facts |= {"logit_difference": difference, "same_ids": same}
        budget = case.budget if name == _our_name(case.budget) else None
        rows.append(Row("peer", about | {"side": name, "budget": budget}, own, facts))
    return rows


def _our_name(budget: str | None) -> str:
    return OURS if budget is None else f"{OURS}, {budget}"


def _facts(own: dict[str, Times], peer: dict[str, Times], case: Case) -> dict[str, Any]:
    return {
        "decode_tokens_per_second": case.batch / own["step"].median,
        "prefill_against_peer": peer["prefill"].median / own["prefill"].median,
        "decode_against_peer": peer["step"].median / own["step"].median,
    }


def _clocks(answer: Answer, new_tokens: int) -> Callable[[], dict[str, float]]:
    """The time to the first token, from prepared pictures, and of each further step of a longer answer."""

    def clocks() -> dict[str, float]:
        start = time.perf_counter()
        answer(1)
        first = time.perf_counter() - start
        start = time.perf_counter()
        answer(new_tokens)
        return {"prefill": first, "step": (time.perf_counter() - start - first) / (new_tokens - 1)}

    return clocks


def _ours(subject: Subject, case: Case) -> Answer:
    batch = Batch(subject, case)
    requests = batch.requests(batch.pictures())

    def answer(new_tokens: int) -> np.ndarray:
        sampling = [SamplingOptions()] * len(requests)
        run = subject.engine.generate(requests, sampling, new_tokens, budget=batch.budget, end_tokens=())
        chunks = [chunk.tokens for chunk in run]
        return np.asarray([[token for chunk in chunks for token in chunk[row]] for row in range(len(requests))])

    return answer


def _logit_difference(subject: Subject, theirs: "_Theirs") -> float:
    """The largest, over all positions of the first prompt."""
    ours = subject.engine.logits(theirs.requests[0], budget=None)
    return float(np.abs(ours - theirs.logits()).max())


class _Theirs:
    """The other side: greedy generation by transformers.

    Args:
      model: of transformers.
      subject, case: whose requests it answers, all tokens of them.
    """

    def __init__(self, model: Any, subject: Subject, case: Case):
        import torch

        self.model = model
        batch = Batch(subject, case)
        pictures = batch.pictures()
        self.requests: Sequence[Request] = batch.requests(pictures)
        planner, placeholder = subject.engine.planner, subject.config.image_token_id
        ids = []
        for request, picture in zip(self.requests, pictures, strict=True):
            count = planner.visual_count(picture.geometry, None)
            own = [[token] * (count if token == placeholder else 1) for token in request.token_ids]
            ids.append([token for part in own for token in part])
        pixels = np.stack([picture.pixels for picture in pictures])
        if subject.config.model_type == "llava":
            pixels = pixels[:, 0]  # a single tile each
        self.inputs = {
            "input_ids": torch.tensor(ids, device=model.device),
            "attention_mask": torch.ones((len(ids), len(ids[0])), dtype=torch.long, device=model.device),
            "pixel_values": torch.from_numpy(pixels).to(model.device, model.dtype),
        }
        if subject.config.model_type == "llava_next":
            sizes = [picture.geometry.image_size for picture in pictures]
            self.inputs["image_sizes"] = torch.tensor(sizes, device=model.device)
        self._forward, self._longest = model.forward, case.new_tokens

    def eager(self, new_tokens: int) -> np.ndarray:
        return self._generate(new_tokens)

    def compiled(self, new_tokens: int) -> np.ndarray:
        """With one cache of static length for answers of every length, so that there is one program of each kind."""
        import torch

        with torch.inference_mode():
            self._cache.reset()
        self.model.forward = self._compiled
        try:
            return self._generate(new_tokens, past_key_values=self._cache, disable_compile=True)
        finally:
            self.model.forward = self._forward

    @functools.cached_property
    def _cache(self) -> Any:
        """Keys and values of a prompt and of the longest answer."""
        from transformers import StaticCache

        config = self.model.config.get_text_config()
        return StaticCache(config=config, max_cache_len=self.inputs["input_ids"].shape[1] + self._longest)

    @functools.cached_property
    def _compiled(self) -> Any:
        """Made when it is first asked for, since importing the compiler alone takes seconds."""
        import torch

        return torch.compile(self._forward)

    def logits(self) -> np.ndarray:
        """Of the first row, `[T, C]`."""
        import torch

        with torch.inference_mode():
            first = {name: value[:1] for name, value in self.inputs.items()}
            return self.model(**first).logits[0].float().cpu().numpy()

    def _generate(self, new_tokens: int, **options: Any) -> np.ndarray:
        import torch

        with torch.inference_mode():
            out = self.model.generate(
                **self.inputs,
                **options,
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return out[:, self.inputs["input_ids"].shape[1] :].cpu().numpy()  # waits for the device


def _torch_model(subject: Subject, source: str) -> Any:
    """The model of transformers, with the subject's weights, on its device and in its dtype."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        fix = "Install PyTorch with CUDA, or set JAX_PLATFORMS=cpu."
        raise VilaError("PyTorch does not see the GPU that JAX uses", where="vila-jax bench peer", fix=fix)
    options = {"dtype": getattr(torch, subject.dtype), "attn_implementation": "sdpa"}
    model: Any  # what transformers declares says less
    if source not in PRESETS:
        model = AutoModelForImageTextToText.from_pretrained(source, **options)
        return model.to(device).eval()
    config = preset_json(source)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.for_model(config.pop("model_type"), **config), **options
        ).eval()
    _copy_weights(subject, model)
    return model


def _copy_weights(subject: Subject, model: Any) -> None:
    """One weight after another, through the host; what lies behind the feature layer stays as it is."""
    import torch

    flat = nnx.to_flat_state(subject.engine.phases.programs.state)
    ours = {dotted(path): leaf.get_value() for path, leaf in flat}
    vlm = subject.config.vlm
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            path = LLAVA.from_hf(name)
            if path in ours:
                parameter.copy_(_as_torch(np.asarray(ours.pop(path))).view(parameter.shape))
            elif not LLAVA.is_unused(name, vlm):
                raise VilaError(f"transformers has a weight {name} that we have not", where=subject.name)
    if ours:
        raise VilaError(f"transformers lacks {', '.join(sorted(ours)[:3])}", where=subject.name)


def _as_torch(array: np.ndarray) -> Any:
    """A tensor of the same values; NumPy's bfloat16 is unknown to torch."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Lets go of the memory of both sides afterwards, so that another dtype finds room."""
    yield
    gc.collect()
    jax.clear_caches()
    import torch

    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
