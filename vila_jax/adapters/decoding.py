"""Generation arguments of the harnesses, as ours."""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any

from vila_jax.errors import ConfigError

_log = logging.getLogger(__name__)

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_READ = (*_LENGTHS, "until", "do_sample", "temperature", "top_k", "top_p")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "min_p": (0,),
}
"""Arguments that change answers and that we lack, with the values that ask for nothing."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How an answer is generated; requests that agree in it may share a batch. The fields are those of `answers_to`."""

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, arguments: Mapping[str, Any], new_tokens: int) -> "Decoding":
        """Reads `generation_kwargs` of a task.

        Sampling is on where `do_sample` says so, or says nothing beside a temperature above 0; `temperature: 0.2` with
        `do_sample: false`, which several tasks write, is greedy, as it is in transformers.

        Args:
          arguments: of the task; None stands for the default of any.
          new_tokens: where the task names no length.

        Raises:
          ConfigError: an argument asks for what there is not, such as beams.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        for name, value in given.items():
            if name in _NEUTRAL and value not in _NEUTRAL[name]:
                raise ConfigError(
                    f"{name}={value!r} is not supported",
                    where="generation_kwargs",
                    fix=f"Set it to {_NEUTRAL[name][0]} in the task, or with --gen_kwargs.",
                )
            if name not in _NEUTRAL and name not in _READ:
                _say_ignored(name)
        length = next((int(given[name]) for name in _LENGTHS if name in given), new_tokens)
        until = given.get("until", ())
        stop = tuple(filter(None, (until,) if isinstance(until, str) else until))
        temperature = float(given.get("temperature", 1.0 if given.get("do_sample") else 0.0))
        if temperature == 0 or not given.get("do_sample", True):
            return cls(length, stop=stop)
        return cls(length, temperature, int(given.get("top_k", 0)), float(given.get("top_p", 1.0)), stop)


@functools.cache
def _say_ignored(name: str) -> None:
    _log.warning("generation_kwargs: %s means nothing to this model and is ignored", name)
