"""Where the weights of a stage come from, and where they go.

    start     a finished run, a checkpoint folder, or a name on the Hub    `RUNS/NAME/export`, FOLDER
    parts     a language model and a vision tower, with a new projector    `vila_jax.hf.compose`
    new       random weights, the model as its config says                 `vila_jax.hf.new_model`

All three end as a `Checkpoint`, whose files say how prompts are written and pictures prepared, and which an export of
the stage repeats. What a page brings along itself (configs and tokenizers of `parts` and `new`) is written to
`RUNS/NAME/start`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.typing import DTypeLike

from train import lora as lora_lib
from train.lora import Lora
from train.losses import SoftTargets
from train.recipe import New, Parts, Stage
from train.runs import START, hint, locate_start
from train.weights import GROUPS, LORA, Flat, Structure, is_trained
from vila_jax.assemble import make_form, make_preprocessor, make_style
from vila_jax.dist.rules import sharding_for
from vila_jax.errors import ConfigError, HubError
from vila_jax.hf.checkpoint import Checkpoint, open_checkpoint
from vila_jax.hf.compose import compose
from vila_jax.hf.export import export
from vila_jax.hf.load import OnTensor, load_state, match_tensors, weight_shapes
from vila_jax.hf.new_model import NewModel
from vila_jax.hf.out_tensor import json_bytes
from vila_jax.hf.targets import LAYOUTS
from vila_jax.hf.writing import Written
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.params import Axes, abstract
from vila_jax.nn.vlm import VLM
from vila_jax.text.prompts import PromptForm
from vila_jax.text.styles import Style
from vila_jax.text.tokenizer import Tokenizer
from vila_jax.vision.preprocess import Preprocessor
from vila_jax.vision.vila import VilaPreprocessor

STAR = "*"
"""In a name: stands for the layers of a stack, which are the first axis of its array."""

_LAYOUT_NAMES = {layout: name for name, layout in LAYOUTS.items()}
_PARTS = {head for heads in (GROUPS[group] for group in ("tower", "projector", "decoder", "scorer")) for head in heads}


@dataclasses.dataclass(frozen=True)
class Origin:
    """A model before its first step. No weight is read before `load`.

    Attributes:
      checkpoint: its files; those of a new model have no weights.
      new: what a new model is written from; None where there is a checkpoint.
      form, style: how its prompts are written.
      preprocessor: of its pictures.
      trained: groups that the stage trains, see `train.weights`.
      lora: additions that it gives them.
      dtype: of the weights that are not trained; the others are float32.
      mesh: where weights lie, by `vila_jax.dist.rules`; None for the default device.
      seed: of the weights that are drawn.
    """

    checkpoint: Checkpoint
    new: NewModel | None
    form: PromptForm
    style: Style | None
    preprocessor: Preprocessor | VilaPreprocessor
    trained: tuple[str, ...]
    lora: Lora | None
    dtype: DTypeLike
    mesh: Mesh | None
    seed: int

    @property
    def vlm(self) -> VLMConfig:
        """The network."""
        return self.checkpoint.config.vlm

    def is_trained(self, name: str) -> bool:
        """Whether the stage trains the weight of this dotted name."""
        return is_trained(name, self.trained, self.lora.groups if self.lora is not None else ())

    def abstract(self) -> VLM:
        """The model with `jax.ShapeDtypeStruct` for weights, of the dtypes in which `load` gives them."""
        graphdef, state = abstract(self._build)
        structure, weights = Structure.of(nnx.merge(graphdef, state))
        typed: dict[str, Any] = {n: jax.ShapeDtypeStruct(x.shape, self._dtype(n)) for n, x in weights.items()}
        return structure.model(typed)

    def load(self, on_tensor: OnTensor | None = None) -> Flat:
        """All weights by dotted name, in their dtypes and places.

        Args:
          on_tensor: called after each tensor that is read.

        Raises:
          CheckpointError: the files changed since they were opened.
        """
        if self.new is not None:
            return self._drawn()
        rngs = nnx.Rngs(self.seed)
        graphdef, state = load_state(
            self.checkpoint, dtype=self.dtype, mesh=self.mesh, in_float32=self.is_trained, on_tensor=on_tensor
        )
        model = nnx.merge(graphdef, state)
        if self.lora is None:
            return Structure.of(model)[1]
        lora_lib.add(model, self.lora, rngs=rngs, dtype=jnp.float32)
        structure, weights = Structure.of(model)
        added = {name: value for name, value in weights.items() if self.is_trained(name)}
        return weights | {name: self._placed(value, structure.axes[name]) for name, value in added.items()}

    def soft_targets(self, std: float | None) -> SoftTargets | None:
        """Soft targets among the time tokens of the tokenizer, `<t0>`, `<t1>` …; None without `std`.

        Args:
          std: width of the Gaussian, in steps from one token to the next; VILA's is 1.

        Raises:
          ConfigError: the tokenizer has none, or the model has no embeddings for them.
        """
        if std is None:
            return None
        tokens = _time_tokens(self.checkpoint, self.form.tokenizer)
        rows = self.vlm.decoder.vocab_size
        if not tokens or max(tokens) >= rows:
            what = "has no time tokens" if not tokens else f"has {tokens[-1]} for a time, of {rows} embeddings"
            raise ConfigError(
                f"the tokenizer {what}", where="time_std", fix="Leave it out, or start from a model with time tokens."
            )
        return SoftTargets(tokens, std)

    def export(self, weights: Flat, folder: Path, *, dtype: str | None = None) -> Written | None:
        """Writes the model in the layout of its checkpoint, low-rank additions merged; an older export is replaced.

        What the stage does not train is copied from the checkpoint bit by bit, but for the dtype. On several hosts all
        of them call this, and the first writes.

        Args:
          weights: at least those that are trained, by dotted name, stacks included; of a new model all. Where a moving
            average is kept, the average of those that have one.
          folder: the checkpoint to write.
          dtype: name of the dtype to store; None keeps those of the checkpoint.

        Returns:
          What was written; None on the hosts that do not write.

        Raises:
          CheckpointError: the weights are not those of this model, or the folder cannot be written.
        """
        merged = lora_lib.merged(weights, self.lora) if self.lora is not None else {}
        wanted = {name: value for name, value in (weights | merged).items() if self._is_exported(name, merged)}
        arrays = _unstacked({name: _on_host(value, dtype) for name, value in wanted.items()})
        written = None
        if jax.process_index() == 0:
            source, to = self.new or self.checkpoint, _LAYOUT_NAMES[self.checkpoint.config.layout]
            partial = self.new is None
            written = export(source, arrays, folder, to=to, dtype=dtype, partial=partial, overwrite=True)
        _wait_for_all("export")
        return written

    def _is_exported(self, name: str, merged: Flat) -> bool:
        part = name.split(".", maxsplit=1)[0]
        if LORA in name.split(".") or part not in _PARTS:
            return False
        return self.new is not None or name in merged or self.is_trained(name)

    def _dtype(self, name: str) -> DTypeLike:
        return jnp.float32 if self.is_trained(name) else self.dtype

    def _placed(self, array: jax.Array, axes: Axes) -> jax.Array:
        return array if self.mesh is None else jax.device_put(array, sharding_for(axes, array.shape, self.mesh))

    def _drawn(self) -> Flat:
        """Random weights, each made where it lies."""
        structure, shapes = Structure.of(self.abstract())

        def draw() -> Flat:
            _, weights = Structure.of(self._build(nnx.Rngs(self.seed)))
            return {name: value.astype(shapes[name].dtype) for name, value in weights.items()}

        if self.mesh is None:
            return jax.jit(draw)()
        axes, mesh = structure.axes, self.mesh
        return jax.jit(draw, out_shardings={n: sharding_for(axes[n], x.shape, mesh) for n, x in shapes.items()})()

    def _build(self, rngs: nnx.Rngs) -> VLM:
        """The whole model in float32; without weights under `abstract`."""
        model = VLM(self.vlm, rngs=rngs)
        if self.lora is not None:
            lora_lib.add(model, self.lora, rngs=rngs)
        return model


def open_origin(stage: Stage, runs: Path, *, mesh: Mesh | None = None, dtype: DTypeLike | None = None) -> Origin:
    """Finds what a stage starts from; everything that can be wrong with it is found here.

    Args:
      stage: exactly one of its `start`, `parts` and `new` is given.
      runs: folder of all runs.
      mesh: see `Origin`.
      dtype: of what is not trained; by default that in which the stage computes.

    Raises:
      ConfigError: a run that has not finished, configs that are not supported or do not fit each other.
      CheckpointError: files that are missing, damaged, or do not fit the config.
      HubError: neither a run, nor a folder, nor a model on the Hub.
    """
    checkpoint, new = _opened(stage, runs)
    trained = tuple(stage.learning_rate)
    form = make_form(checkpoint)
    if stage.data.style is not None and checkpoint.config.era is None:  # its own template would go before
        form = dataclasses.replace(form, tokenizer=form.tokenizer.without_chat_template())
    origin = Origin(
        checkpoint=checkpoint,
        new=new,
        form=form,
        style=make_style(checkpoint, form.tokenizer, checkpoint.name, stage.data.style),
        preprocessor=make_preprocessor(checkpoint),
        trained=trained,
        lora=stage.lora,
        dtype=jnp.dtype(stage.compute.dtype if dtype is None else dtype),
        mesh=mesh,
        seed=stage.seed,
    )
    if new is None:
        _check_tensors(origin)
    return origin


def _opened(stage: Stage, runs: Path) -> tuple[Checkpoint, NewModel | None]:
    if stage.new is not None:
        return _new(stage.new, runs / stage.name / START)
    if stage.parts is not None:
        return _composed(stage.parts, stage.seed, runs / stage.name / START), None
    if stage.start is None:
        raise ConfigError("nothing to start from", where=stage.name, fix="Give one of start, parts and new.")
    if stage.start == stage.name:
        raise ConfigError("a run cannot start from itself", where="start", fix="Name the stage before it.")
    source = locate_start(stage.start, runs)
    try:
        return open_checkpoint(source), None
    except HubError as error:
        what = f"neither a finished run, nor a folder; as a name on the Hub: {error.what}"
        raise HubError(what, where=f"start = {stage.start!r}", fix=hint(stage.start, runs)) from error


def _time_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the tokens of times, in their order: those that the config names, or those that the tokenizer has."""
    named = checkpoint.raw_config.get("time_token_ids")
    if isinstance(named, list) and named:
        return tuple(int(token) for token in named)
    pattern = checkpoint.raw_config.get("time_token_format") or "<t{t}>"
    found: list[int] = []
    while True:
        ids = tokenizer.encode(pattern.replace("{t}", str(len(found))), add_special_tokens=False)
        if len(ids) != 1 or ids[0] not in tokenizer.added_ids:
            return tuple(found)
        found.append(ids[0])


def _new(new: New, folder: Path) -> tuple[Checkpoint, NewModel]:
    """A model from nothing, with its small files in `folder`."""
    write_files(folder, {**new.files, "config.json": json_bytes(dict(new.config))})
    return open_checkpoint(folder, weights=False), NewModel(new.config, new.files)


def _composed(parts: Parts, seed: int, folder: Path) -> Checkpoint:
    """A model out of parts, with its small files in `folder`."""
    composition = compose(**dataclasses.asdict(parts), seed=seed)
    write_files(folder, composition.files)
    return composition.checkpoint(folder)


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Writes small files, each as a whole; on several hosts the first does it and the others wait."""
    if jax.process_index() == 0:
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            partial.write_bytes(data.encode() if isinstance(data, str) else data)
            partial.replace(path)
    _wait_for_all("start")


def _check_tensors(origin: Origin) -> None:
    """What would come to light only at the end: the tensors, and positions that an export could not describe."""
    sources = match_tensors(origin.checkpoint, weight_shapes(origin.vlm))
    resized = [path for path, source in sources.items() if source.resize is not None and origin.is_trained(path)]
    if resized:
        raise ConfigError(
            f"{resized[0]} is resized for tiles of another size, and no export can describe the trained one",
            where=str(origin.checkpoint.folder),
            fix="Leave the tower out of `learning_rate`, or start from a tower of the size of its tiles.",
        )


def _unstacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under the names of single layers: the first axis of `decoder.layers.*.norm1.weight` are its layers."""
    single: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if STAR in name.split("."):
            single |= {name.replace(STAR, str(layer)): value for layer, value in enumerate(array)}
        else:
            single[name] = array
    return single


def _on_host(array: Any, dtype: str | None) -> np.ndarray:
    """A copy in the memory of this host, brought together from all; in bfloat16 already if it is stored so."""
    copied = array.astype(jnp.bfloat16) if dtype == "bfloat16" else array.copy()
    if isinstance(copied, jax.Array) and not copied.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(copied, tiled=True))
    return np.asarray(copied)


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
