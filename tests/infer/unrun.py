"""A model's programs for shapes alone: traced, to be compiled or exported; there are no weights, and nothing runs."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any
from unittest import mock

import jax
import numpy as np

from vila_jax.bench import presets
from vila_jax.bench.subject import Batch, Case, Subject
from vila_jax.hf.load import abstract_model
from vila_jax.infer.engine import Engine
from vila_jax.infer.layout import Layout
from vila_jax.infer.programs import Programs
from vila_jax.infer.sampler import Sampler, SamplingOptions


@dataclasses.dataclass(frozen=True)
class Unrun:
    """A program, and the shapes of its arguments.

    Attributes:
      jitted: of `args`, the weights first.
    """

    jitted: Any
    args: tuple[Any, ...]

    def compile(self) -> jax.stages.Compiled:
        return self.jitted.lower(*self.args).compile()

    def export(self, platform: str) -> jax.export.Exported:
        return jax.export.export(self.jitted, platforms=[platform])(*self.args)


class UnrunPrograms(Programs):
    """In place of an engine's programs: calls return shapes.

    Attributes:
      unrun: the programs, by name.
    """

    def __init__(self, programs: Programs, donate: bool):
        super().__init__(programs.graphdef, programs.state)
        self._donate = donate
        self.unrun: dict[str, Unrun] = {}

    def call(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.compile(name, function, *args, **options)
        return jax.eval_shape(self.unrun[name].jitted, *self.unrun[name].args)

    def compile(
        self, name: str, function: Callable[..., Any], *args: Any, donate: tuple[str, ...] = (), **static: Hashable
    ) -> Callable[..., Any]:
        whole = functools.partial(function, self.graphdef, **static)
        self.unrun[name] = Unrun(jax.jit(whole, donate_argnames=donate if self._donate else ()), (self.state, *args))
        return self.unrun[name].jitted


def programs_of(
    data: dict[str, Any], case: Case, dtype: str = "float32", *, donate: bool = True
) -> tuple[dict[str, Unrun], Layout]:
    """The programs of a request, from pixels to a chunk of further tokens, and the arrays of its batch.

    Args:
      data: a `config.json`, as of a preset.
      donate: whether decoding takes the memory of the cache over, as it always does.
    """
    name = "of a test"
    with mock.patch.dict(presets._CONFIGS, {name: data}):
        config, preprocessor = presets.preset(name), presets.preset_preprocessor(name)
    engine = Engine(*abstract_model(config.vlm, dtype), config, dtype=dtype)
    batch = Batch(Subject(name, config, engine, preprocessor), case)
    layout = batch.layout(batch.pictures())
    engine.phases.programs = programs = UnrunPrograms(engine.phases.programs, donate)
    rows = len(layout.prompts.token_ids)
    sampler, ends = Sampler.of([SamplingOptions()] * rows), np.asarray([2], np.int32)
    phases, limit = engine.phases, np.full(rows, case.new_tokens, np.int32)
    progress = phases.prefill(layout, phases.visual_tokens(layout.tiles), sampler, limit, ends)
    phases.compile_decode(progress, np.zeros(rows, bool), sampler, ends, layout.schedule)
    return programs.unrun, layout
