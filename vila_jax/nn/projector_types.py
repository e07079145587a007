"""VILA's names of projectors, `V` being the width of a patch's features and `H` that of the decoder.

    identity                    V                 nothing at all
    linear                      V H
    mlpNx_gelu                  V H .. H          N linear layers
    mlp_downsample              4V H H            windows of 2 x 2, norms; `mlp_downsample_2x2_fix` is the same
    mlp_downsample_3x3_fix      9V 3V H H         windows of 3 x 3, norms; so are the next two
    mlp_downsample_3x3_s2       9V 3V V V/3 H H
    mlp_downsample_3x3_s2_new   9V 4V 2V V V/3 H H

`mlp_downsample` emitted its tokens column by column before NVILA. That is a matter of the order of the tokens alone
(`vila_jax.vision.geometry`): the projector is the same.
"""

import re
from typing import NamedTuple

from vila_jax.errors import ConfigError
from vila_jax.nn.config import ProjectorConfig

SUPPORTED = (
    "identity",
    "linear",
    "mlpNx_gelu (N = 1, 2, ..)",
    "mlp_downsample",
    "mlp_downsample_2x2_fix",
    "mlp_downsample_3x3_fix",
    "mlp_downsample_3x3_s2",
    "mlp_downsample_3x3_s2_new",
)


class LayerIndices(NamedTuple):
    """Where the modules of a projector stand in a checkpoint: `N` of the tensors `layers.N.*`.

    Attributes:
      norms: of `projector.norms.i`, for every `i`.
      layers: of `projector.layers.i`, for every `i`.
    """

    norms: tuple[int, ...]
    layers: tuple[int, ...]


def projector_config(kind: str, in_features: int, out_features: int) -> ProjectorConfig:
    """The projector that VILA calls `kind` (`mm_projector_type`).

    Args:
      kind: one of `SUPPORTED`.
      in_features: width of the features of one patch, all scales and layers together.
      out_features: width of the decoder.

    Raises:
      ConfigError: an unknown kind, or an identity between different widths.
    """
    v, h = in_features, out_features
    merging = {
        "mlp_downsample": (2, ()),
        "mlp_downsample_2x2_fix": (2, ()),
        "mlp_downsample_3x3_fix": (3, (3 * v,)),
        "mlp_downsample_3x3_s2": (3, (3 * v, v, v // 3)),
        "mlp_downsample_3x3_s2_new": (3, (4 * v, 2 * v, v, v // 3)),
    }
    if kind in merging:
        window, hidden = merging[kind]
        return ProjectorConfig((window * window * v, *hidden, h, h), window=window, norms=True)
    if kind == "identity":
        if v != h:
            raise ConfigError(
                f"'identity' leaves features {v} wide, but the language model is {h} wide",
                where="mm_projector_type",
                fix="Check mm_hidden_size and hidden_size.",
            )
        return ProjectorConfig((v,))
    if kind == "linear":
        return ProjectorConfig((v, h))
    if match := re.fullmatch(r"mlp([1-9]\d*)x_gelu", kind):
        return ProjectorConfig((v, *[h] * int(match[1])))
    raise ConfigError(
        f"unknown projector {kind!r}", where="mm_projector_type", fix=f"Supported: {', '.join(SUPPORTED)}."
    )


def layer_indices(config: ProjectorConfig) -> LayerIndices:
    """The numbers under which a checkpoint holds the weights.

    Merging, norms, linear layers and activations are counted together, in the order in which they run. `linear` alone
    is written without any number (`layers.weight`); `mlp1x_gelu`, the same network, with it.
    """
    norms, layers = [], []
    position = int(config.window > 1)
    for i in range(len(config.widths) - 1):
        if config.norms and i < len(config.widths) - 2:
            norms.append(position)
            position += 1
        layers.append(position)
        position += 2  # itself and the activation
    return LayerIndices(tuple(norms), tuple(layers))
