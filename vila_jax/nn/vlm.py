"""The vision-language model: tower, projector, splice, decoder.

What the splice does, for a prompt with one picture of three tokens (`source` is -1 for text, otherwise a row of the
table of visual tokens, all pictures of the batch one after another):

    token_ids   <s>  USER  <image>  <image>  <image>  what  ?          ids at visual slots are placeholders
    source      -1    -1      0        1        2      -1   -1
    embeddings  e     e       v0       v1       v2      e    e          one gather from each table, no scatter
"""

from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vila_jax.nn.config import VLMConfig
from vila_jax.nn.decoder import Decoder
from vila_jax.nn.params import normal, weight
from vila_jax.nn.projector import Projector
from vila_jax.nn.scorer import Scorer
from vila_jax.nn.tower_tokens import Reduction
from vila_jax.nn.vit import Intermediates, VisionTower


class VLM(nnx.Module):
    """A LLaVA-style model. Its methods are the phases of a request; `vila_jax.infer` jits them together."""

    def __init__(self, config: VLMConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.feature_layers = config.feature_layers
        self.drops_class_token = config.vision.has_class_token and not config.keep_class_token
        self.vision_tower = VisionTower(config.vision, config.vision_depth, rngs=rngs, dtype=dtype)
        self.projector = Projector(config.projector, rngs=rngs, dtype=dtype)
        self.decoder = Decoder(config.decoder, rngs=rngs, dtype=dtype)
        self.newline = (
            weight((config.decoder.hidden_size,), ("norm",), normal(0.02), rngs=rngs, dtype=dtype)
            if config.has_newline
            else None
        )
        self.scorer = (
            Scorer(config.projector.widths[0], config.scorer_width, rngs=rngs, dtype=dtype)
            if config.scorer_width is not None
            else None
        )

    def encode(
        self, pixels: Float[Array, "R 3 h w"], wanted: Collection[str] = ()
    ) -> tuple[Float[Array, "R P Dv"], Intermediates]:
        """Tower features of normalised tiles, one vector per patch (and the class token, if the model keeps it).

        Beside the intermediates of the tower, `class_token` may be wanted: its feature, `[R, 1, Dv]`.
        """
        of_tower = [name for name in wanted if name != "class_token"]
        states, intermediates = self.vision_tower(pixels, of_tower, self.feature_layers)
        features = _side_by_side(states)
        if "class_token" in wanted:
            intermediates["class_token"] = features[:, :1]
        return features[:, 1:] if self.drops_class_token else features, intermediates

    def encode_reduced(
        self, pixels: Float[Array, "R 3 h w"], reduction: Reduction, shown: Bool[Array, "R N"]
    ) -> tuple[Float[Array, "R P Dv"], Int[Array, "R N"]]:
        """As `encode`, with tokens that become fewer inside the tower; see `VisionTower.reduced`."""
        states, stand_in = self.vision_tower.reduced(pixels, reduction, shown)
        features = _side_by_side([states[layer] for layer in self.feature_layers])
        return features[:, 1:] if self.drops_class_token else features, stand_in

    def merge(self, features: Float[Array, "R P Dv"]) -> Float[Array, "R M Dm"]:
        """What the projector takes, one vector per visual token: the patches of each of its windows in one."""
        with jax.named_scope("projector"):
            return self.projector.merge(features)

    def project(self, merged: Float[Array, "*batch Dm"]) -> Float[Array, "*batch D"]:
        """Visual tokens from merged vectors, each by itself; any selection of them may be given."""
        with jax.named_scope("projector"):
            return self.projector(merged)

    def score(self, merged: Float[Array, "*batch Dm"]) -> Float[Array, "*batch"]:
        """What the token scorer, which the model must have, gives merged vectors: float32, larger for what matters."""
        assert self.scorer is not None, "this model has no token scorer"
        with jax.named_scope("scorer"):
            return self.scorer(merged)

    def with_newline(self, visual: Float[Array, "V D"]) -> Float[Array, "W D"]:
        """Appends the newline embedding, so that `source` can point at it with the index `V`."""
        return visual if self.newline is None else jnp.concatenate([visual, self.newline[...][None, :]])

    def splice(
        self, token_ids: Int[Array, "B T"], source: Int[Array, "B T"], visual: Float[Array, "V D"]
    ) -> Float[Array, "B T D"]:
        """Embeddings of text and visual tokens in one sequence."""
        with jax.named_scope("splice"):
            picture = visual[jnp.maximum(source, 0)]
            return jnp.where((source >= 0)[:, :, None], picture, self.decoder.embed(token_ids))


def _side_by_side(states: Sequence[Float[Array, "R P D"]]) -> Float[Array, "R P Dv"]:
    """The states of the feature layers as one vector."""
    return states[0] if len(states) == 1 else jnp.concatenate(states, axis=-1)
