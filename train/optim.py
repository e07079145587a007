"""Optimizers: a learning rate for each group, and no decay of norms and biases.

    gradient → clipped by its norm over all groups → rule → + decay of matrices → x learning rate of the group

    adamw      what the recipes use
    muon       Jordan, 2024, with updates of the size of AdamW's as in Liu et al., "Muon is Scalable for LLM Training"
               (arXiv 2502.16982): the matrices of blocks and projector. Embeddings, heads, vectors and low-rank
               additions are AdamW's.
    adafactor  Shazeer and Stern, 2018 (arXiv 1804.04235), as in Zhai et al., "Scaling Vision Transformers" (arXiv
               2106.04560) but without a first moment. Steps do not depend on the size of a weight, and learning rates
               are of the size of AdamW's.

Weights are flat, by dotted names. A star in a name stands for the blocks of a transformer, which the first axis of the
array counts, as in `decoder.layers.*.norm1.weight`. Every block is moved as if it had an array of its own.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train import recipe
from train.weights import Flat, group_of

_ROWS_ARE_OUTPUTS = optax.contrib.MuonDimensionNumbers(reduction_axis=-1, output_axis=-2)
_MUON_SIZE = 0.2  # RMS of AdamW's updates, as measured by Liu et al.


def make_optimizer(optimizer: recipe.Optimizer, rates: Mapping[str, float], steps: int) -> optax.GradientTransformation:
    """The optimizer of a stage, for flat weights of the groups of `rates`.

    The leaves of its state lie under the names of the weights, and those of AdamW and Muon have their shapes.

    Args:
      rates: peak of the learning rate of every group that is trained.
      steps: of the whole stage.
    """
    clip = optax.identity() if optimizer.clip is None else optax.clip_by_global_norm(optimizer.clip)
    return optax.chain(
        clip,
        _RULES[optimizer.rule](optimizer),
        optax.add_decayed_weights(optimizer.weight_decay, mask=decays),
        _scale_by_groups(rates, lambda step: share_of_peak(optimizer, steps, step)),
    )


def share_of_peak(optimizer: recipe.Optimizer, steps: int, step: Any) -> Any:
    """Learning rate after `step` updates, which a warm-up begins with 0, as share of its peak.

    Args:
      step: a number, a NumPy or a JAX array; so is what is returned.
    """
    xp = jnp if isinstance(step, jax.Array) else np
    warmup = math.ceil(optimizer.warmup * steps)
    gone = xp.clip((step - warmup) / max(1, steps - warmup), 0.0, 1.0)
    left = {"cosine": 0.5 * (1 + xp.cos(math.pi * gone)), "linear": 1 - gone, "none": gone * 0 + 1}[optimizer.decay]
    return xp.where(step < warmup, step / max(1, warmup), optimizer.last + (1 - optimizer.last) * left)


def learning_rates(optimizer: recipe.Optimizer, rates: Mapping[str, float], steps: int, step: int) -> dict[str, float]:
    """Learning rate of every group after `step` updates, skipped ones not counted; computed on the host."""
    share = float(share_of_peak(optimizer, steps, step))
    return {group: peak * share for group, peak in rates.items()}


def decays(params: optax.Params) -> Any:
    """True for matrices; vectors (norms, biases, single embeddings) are not decayed.

    Source: VILA `llava/train/llava_trainer.py`.
    """
    return _by_name(lambda name, p: _rank(name, p) > 1, params)


def _by_name(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """`function(dotted name, leaf)` of every leaf of a flat or nested dict."""

    def call(path: tuple[Any, ...], leaf: Any) -> Any:
        return function(jax.tree_util.keystr(path, simple=True, separator="."), leaf)

    return jax.tree_util.tree_map_with_path(call, tree)


def _is_stacked(name: str) -> bool:
    return "*" in name.split(".")


def _rank(name: str, p: Any) -> int:
    """Axes of a weight; of those of a stack, the axis that counts them left out."""
    return p.ndim - _is_stacked(name)


def _scale_by_groups(rates: Mapping[str, float], share: Callable[[jax.Array], jax.Array]) -> Any:
    """Takes updates times the learning rates of their groups away."""

    def init(params: Flat) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    def update(updates: Flat, state: optax.ScaleByScheduleState, params: Flat | None = None) -> Any:
        now = share(state.count)
        scaled = {name: (-rates[group_of(name)] * now).astype(u.dtype) * u for name, u in updates.items()}
        return scaled, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(init, update)


def _adam(optimizer: recipe.Optimizer) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2)


def _muon(optimizer: recipe.Optimizer) -> optax.GradientTransformation:
    def numbers(updates: optax.Params) -> Any:
        return jax.tree.map(lambda _: _ROWS_ARE_OUTPUTS, updates)

    def size(update: jax.Array) -> jax.Array:
        return _MUON_SIZE * math.sqrt(max(update.shape[-2:])) * update

    scale = optax.stateless(lambda updates, _: jax.tree.map(size, updates))
    rule = optax.chain(optax.contrib.scale_by_muon(weight_dimension_numbers=numbers), scale)
    return optax.partition({"muon": rule, "adam": _adam(optimizer)}, lambda params: _by_name(_muon_or_adam, params))


def _muon_or_adam(name: str, p: Any) -> str:
    """Which of the two trains a weight: Muon has the matrices `[out, in]` of blocks and projector."""
    parts = name.split(".")
    is_inside = "layers" in parts and group_of(name) in ("tower", "projector", "decoder")
    return "muon" if is_inside and parts[-1] == "weight" and _rank(name, p) == 2 else "adam"


def _adafactor(optimizer: recipe.Optimizer) -> optax.GradientTransformation:
    def moment(step: jax.Array, exponent: float) -> jax.Array:
        """Decay of the second moment: from 0 upwards, as of an average of all steps, until it reaches `b2`."""
        return jnp.minimum(optimizer.b2, 1 - (step + 1.0) ** -exponent)

    return _block_by_block(optax.chain(optax.scale_by_factored_rms(decay_rate_fn=moment), optax.clip_by_block_rms(1.0)))


def _block_by_block(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """A rule that looks at whole arrays, applied to each weight and to each block of a stack for itself."""
    one = jax.tree.structure(jax.eval_shape(rule.init, jax.ShapeDtypeStruct((), jnp.float32)))

    def mapped(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        return jax.vmap(function) if _is_stacked(name) else function

    def init(params: Flat) -> Any:
        states = {name: mapped(rule.init, name)(p) for name, p in params.items()}
        return jax.tree.transpose(jax.tree.structure(dict.fromkeys(params, 0)), one, states)

    def update(updates: Flat, state: Any, params: Flat | None = None) -> tuple[Flat, Any]:
        assert params is not None
        names = jax.tree.structure(dict.fromkeys(updates, 0))
        states = jax.tree.transpose(one, names, state)
        both = {n: mapped(rule.update, n)(u, states[n], params[n]) for n, u in updates.items()}
        new = jax.tree.transpose(names, one, {name: state for name, (_, state) in both.items()})
        return {name: u for name, (u, _) in both.items()}, new

    return optax.GradientTransformation(init, update)


_RULES: dict[str, Callable[[recipe.Optimizer], optax.GradientTransformation]] = {
    "adamw": _adam,
    "muon": _muon,
    "adafactor": _adafactor,
}
