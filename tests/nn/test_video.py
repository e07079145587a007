"""TSP pooling against the reference's video encoder, which also puts text embeddings around the frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vila_jax.nn.video import tsp_pool

POOLS = {
    "tsp_8_1_1": [(8, 1, 1)],
    "tsp_4_2_2": [(4, 2, 2)],
    "tsp_multi_16_1_1__4_2_2__1_4_4": [(16, 1, 1), (4, 2, 2), (1, 4, 4)],
}


@pytest.mark.parametrize("name", POOLS)
def test_golden(name, golden):
    data = np.load(golden / "vila" / "modules" / "video_encoders.npz")
    pooled = [np.asarray(jax.jit(tsp_pool, static_argnums=1)(data["features"], pool)) for pool in POOLS[name]]
    start, end, sep = data["start_embeds"], data["end_embeds"], data["sep_embeds"]
    ended = [part for frames in pooled for frame in frames for part in (frame, end)]
    np.testing.assert_allclose(np.concatenate(ended), data[f"{name}_end"], atol=1e-6)
    separated = []
    for frames in pooled:
        separated += [part for frame in frames for part in (start, frame, end)] + [sep]
    np.testing.assert_allclose(np.concatenate(separated), data[f"{name}_start_end_sep"], atol=1e-6)


@pytest.mark.parametrize(
    ("pool", "message"),
    [((3, 1, 1), "4 frames.*by 3"), ((1, 4, 1), "6 rows.*by 4"), ((2, 3, 5), "6 columns.*by 5")],
)
def test_sizes_must_divide(pool, message):
    with pytest.raises(ValueError, match=message):
        tsp_pool(jnp.zeros((4, 36, 2)), pool)


def test_frames_must_be_square():
    with pytest.raises(ValueError, match="35 vectors of a frame are no square"):
        tsp_pool(jnp.zeros((4, 35, 2)), (1, 1, 1))
