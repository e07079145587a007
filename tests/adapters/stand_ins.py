"""Small stand-ins of the parts of `lmms-eval` and `lm-eval` that the adapters derive from and call.

They repeat the interfaces of lmms-eval 0.7.3 and lm-eval 0.4.13, so that the adapters are tested where neither is
installed; the tests against the real packages stand beside these.
"""

import contextlib
import dataclasses
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

ADAPTERS = ("lmms_base", "lmms_simple", "lmms_chat", "lm_eval")


@dataclasses.dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclasses.dataclass
class GenerationResult:
    text: Any
    token_counts: TokenCounts | None = None


def unwrap(output: Any) -> tuple[Any, TokenCounts | None]:
    """What lmms-eval's evaluator makes of a result (`api.instance.unwrap_generation_output`)."""
    if isinstance(output, GenerationResult):
        return output.text, output.token_counts
    if isinstance(output, list) and all(isinstance(part, str) for part in output):
        return output, None
    return str(output), None


@dataclasses.dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclasses.dataclass
class Instance:
    """A request of either harness."""

    args: tuple


class LMMS:
    """`lmms_eval.api.model.lmms`."""

    is_simple = True

    def __init__(self):
        self._rank, self.task_dict = 0, {}

    @property
    def rank(self):
        return self._rank

    @staticmethod
    def _resolve_system_prompt(value):
        return value

    @classmethod
    def create_from_arg_string(cls, arguments: dict, additional: dict):
        return cls(**arguments, **{k: v for k, v in additional.items() if v is not None})


class Logger:
    """loguru's, which keeps what it is told."""

    def __init__(self):
        self.errors: list[str] = []
        self.infos: list[str] = []

    def error(self, text):
        self.errors.append(text)

    def info(self, text):
        self.infos.append(text)


class CacheHook:
    def __init__(self):
        self.kept: list[tuple] = []

    def add_partial(self, attr, req, res):
        self.kept.append((attr, req, res))


class TemplateLM:
    """`lm_eval.api.model.TemplateLM`: pairs of texts become pairs of token lists."""

    def __init__(self):
        self.cache_hook = CacheHook()

    def loglikelihood(self, requests, disable_tqdm: bool = False):
        pairs = []
        for context, continuation in (request.args for request in requests):
            if not context:
                ids = self.tok_encode(continuation, add_special_tokens=False)
                pairs.append(((context, continuation), [self.prefix_token_id], ids))
                continue
            whole, before = self.tok_encode(context + continuation), self.tok_encode(context)
            pairs.append(((context, continuation), before, whole[len(before) :]))
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)


def rolling_windows(token_list, prefix_token, max_seq_len, context_len):
    """`lm_eval.utils.get_rolling_token_windows` with a context of one token."""
    assert context_len == 1
    for start in range(0, len(token_list), max_seq_len):
        end = min(start + max_seq_len, len(token_list))
        if start == 0:
            yield [prefix_token, *token_list[: end - 1]], token_list[:end]
        else:
            yield token_list[end - max_seq_len - 1 : end - 1], token_list[start:end]


def disjoint(pair):
    """`lm_eval.utils.make_disjoint_window`."""
    context, predicted = pair
    return context[: len(context) - (len(predicted) - 1)], predicted


def _module(name: str, **contents: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    return module


@contextlib.contextmanager
def installed() -> Iterator[Logger]:
    """Puts the stand-ins in the places of the packages; the adapters that are imported inside use them."""
    logger = Logger()
    modules = [
        *map(_module, ("lmms_eval", "lmms_eval.api", "lmms_eval.models", "lm_eval", "lm_eval.api")),
        _module("lmms_eval.api.instance", GenerationResult=GenerationResult, TokenCounts=TokenCounts),
        _module("lmms_eval.api.model", lmms=LMMS),
        _module("lmms_eval.models.registry_v2", ModelManifest=ModelManifest),
        _module("loguru", logger=logger),
        _module("lm_eval.api.model", TemplateLM=TemplateLM),
        _module("lm_eval.api.registry", register_model=lambda name: lambda cls: cls),
        _module("lm_eval.utils", get_rolling_token_windows=rolling_windows, make_disjoint_window=disjoint),
    ]
    mine = [f"vila_jax.adapters.{name}" for name in ADAPTERS]
    before = {name: sys.modules.get(name) for name in (*(module.__name__ for module in modules), *mine)}
    for name in mine:
        sys.modules.pop(name, None)
    sys.modules.update({module.__name__: module for module in modules})
    try:
        yield logger
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def adapter(name: str) -> types.ModuleType:
    """A module of `vila_jax.adapters`, imported anew."""
    return importlib.import_module(f"vila_jax.adapters.{name}")
