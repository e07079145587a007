"""Frozen descriptions of the networks, independent of any file format.

`vila_jax.hf.config` builds these from a checkpoint's `config.json`; the modules of `vila_jax.nn` read nothing else.
All are hashable, so that they can be static arguments of `jax.jit`.
"""

import dataclasses
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]


TowerKind = Literal["clip", "siglip", "intern"]


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """A vision transformer.

    clip:    class token, norm before the blocks
    siglip:  no class token, patch bias
    intern:  InternViT: class token, patch bias, RMS norms, normalised queries and keys (`qk_norm`), one fused
             projection for queries, keys and values without bias, scaled residual branches

    `num_layers` is the number of blocks *in the checkpoint*; `VLMConfig.vision_depth` says how many are built.
    """

    kind: TowerKind
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    hidden_act: Activation
    norm_eps: float
    qk_norm: bool = False
    qkv_bias: bool = True

    @property
    def has_class_token(self) -> bool:
        return self.kind != "siglip"

    @property
    def side(self) -> int:
        """Patches along one edge of a tile."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.side**2

    @property
    def num_positions(self) -> int:
        return self.num_patches + self.has_class_token

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """From the tower's features to the decoder's width.

    Attributes:
      widths: of the vectors before, between and after the linear layers: `(in, out)` is one layer, `(in, out, out)` is
        `mlp2x_gelu`, a single width is the identity. Between two layers stands the activation.
      window: `k`: the vectors of each `k x k` patches of a tile are concatenated first, so that `widths[0]` is
        `k * k` times the width of the features; an odd edge is filled up with zeros below and to the right.
      norms: whether a LayerNorm stands before every linear layer but the last.
    """

    widths: tuple[int, ...]
    window: int = 1
    norms: bool = False
    hidden_act: Activation = "gelu"
    bias: bool = True

    @property
    def in_features(self) -> int:
        """Width of a patch's features."""
        return self.widths[0] // self.window**2

    @property
    def out_features(self) -> int:
        return self.widths[-1]


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding; `scaling` names the rule that `factor` and the other fields belong to.

    See `vila_jax.nn.rope` for what each rule does. `original_max_position` is the context of the unscaled model.
    """

    theta: float = 10_000.0
    scaling: Literal["default", "linear", "llama3", "dynamic", "yarn"] = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 1.0  # yarn: multiplies cos and sin
    truncate: bool = True  # yarn: round the correction range outwards


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A causal transformer with grouped-query attention and a gated MLP (Llama, Mistral, Qwen2)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_position: int
    rope: RopeConfig = RopeConfig()
    hidden_act: Activation = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    sliding_windows: tuple[int | None, ...] = ()
    """One entry a layer, `None` for full attention; empty means that every layer is full."""

    def sliding_window(self, layer: int) -> int | None:
        return self.sliding_windows[layer] if self.sliding_windows else None


@dataclasses.dataclass(frozen=True)
class VLMConfig:
    """A vision-language model: tower, projector, decoder, and how features become tokens.

    Attributes:
      feature_layers: hidden states that feed the projector, as indices 0..num_layers where 0 is the embedding and
        `i` the output of block `i - 1`; several are concatenated along the width, in this order.
      keep_class_token: whether the class token stays among the visual tokens (strategy `full` / `cls_patch`).
      has_newline: whether there is a learned `image_newline` embedding (LLaVA-NeXT).
      num_scales: feature maps of one picture at several scales that are concatenated along the width (S2).
      scorer_width: hidden width of the token scorer (`vila_jax.nn.scorer`); None without one.
    """

    vision: VisionConfig
    projector: ProjectorConfig
    decoder: DecoderConfig
    feature_layers: tuple[int, ...]
    keep_class_token: bool = False
    has_newline: bool = False
    num_scales: int = 1
    scorer_width: int | None = None

    @property
    def vision_depth(self) -> int:
        """Blocks of the tower that have to run: those after the last feature layer are not even built."""
        return max(self.feature_layers)

    @property
    def token_side(self) -> int:
        """Visual tokens along one edge of a tile, once the projector has merged its windows."""
        return -(-self.vision.side // self.projector.window)

    @property
    def tokens_per_tile(self) -> int:
        return self.token_side**2 + (self.keep_class_token and self.vision.has_class_token)
