"""Classifiers on the tower that exist only while it is trained.

They give every patch a target (colour and content of what it shows) and the class token a global one (what is present
in the tile), so that the class token learns to look at what matters: the attention that HiRED reads.
"""

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from vila_jax.nn.layers import Linear
from vila_jax.scenes import NUM_COLORS, NUM_CONTENTS


class LabelHeads(nnx.Module):
    """Linear classifiers on the features of patches and class token."""

    def __init__(self, width: int, presence: int, *, rngs: nnx.Rngs):
        def head(labels: int) -> Linear:
            return Linear(width, labels, (None, None), bias=True, rngs=rngs, dtype=jnp.float32)

        self.color, self.content, self.presence = head(NUM_COLORS), head(NUM_CONTENTS), head(presence)

    def loss(
        self,
        features: Float[Array, "R P D"],
        colors: Int[Array, "R N"],
        contents: Int[Array, "R N"],
        present: Float[Array, "R L"],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean cross entropy of the labels; `features` hold the class token first."""
        patches, token = features[:, 1:], features[:, 0]
        color, content = self.color(patches), self.content(patches)
        losses = (
            _balanced(color, colors),
            _balanced(content, contents),
            jnp.mean(optax.sigmoid_binary_cross_entropy(self.presence(token), present)) * 4.0,
        )
        shown = contents > 0
        right = jnp.where(shown, jnp.argmax(content, -1) == contents, False)
        return sum(losses, start=jnp.float32(0)), {"patch_accuracy": jnp.sum(right) / jnp.sum(shown)}


def _balanced(logits: Float[Array, "R N L"], labels: Int[Array, "R N"]) -> Float[Array, ""]:
    """Cross entropy in which background patches, by far the most, count a fifth."""
    weight = jnp.where(labels > 0, 1.0, 0.2)
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, labels) * weight) / jnp.sum(weight)
