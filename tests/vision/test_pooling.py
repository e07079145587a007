"""Pooling by tables of boxes against the reference's video encoder, which also puts text around the frames."""

import jax.numpy as jnp
import numpy as np
import pytest

from vila_jax.errors import PromptError
from vila_jax.nn.means import mean_rows
from vila_jax.vision.pooling import TSP, pool_boxes

POOLS = {
    "tsp_8_1_1": [(8, 1, 1)],
    "tsp_4_2_2": [(4, 2, 2)],
    "tsp_multi_16_1_1__4_2_2__1_4_4": [(16, 1, 1), (4, 2, 2), (1, 4, 4)],
}


@pytest.mark.parametrize("name", POOLS)
def test_golden(name, golden):
    data = np.load(golden / "vila" / "modules" / "video_encoders.npz")
    features = data["features"]
    table = jnp.asarray(features.reshape(-1, features.shape[2]))
    pooled = [np.asarray(mean_rows(table, jnp.asarray(pool_boxes(size, 16, 4)))) for size in POOLS[name]]
    start, end, sep = data["start_embeds"], data["end_embeds"], data["sep_embeds"]
    ended = [part for frames in pooled for frame in frames for part in (frame, end)]
    np.testing.assert_allclose(np.concatenate(ended), data[f"{name}_end"], atol=1e-6)
    separated = []
    for frames in pooled:
        separated += [part for frame in frames for part in (start, frame, end)] + [sep]
    np.testing.assert_allclose(np.concatenate(separated), data[f"{name}_start_end_sep"], atol=1e-6)
    assert TSP(tuple(POOLS[name])).num_tokens(16, 4) == sum(frames.shape[0] * frames.shape[1] for frames in pooled)


def test_boxes_of_unequal_edges():
    """Two frames of 2 x 2 tokens in boxes of two frames and one row of two columns."""
    assert pool_boxes((2, 1, 2), 2, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    assert pool_boxes((1, 2, 1), 2, 2).tolist() == [[[0, 2], [1, 3]], [[4, 6], [5, 7]]]


def test_unused_entries_do_not_count():
    table = jnp.asarray([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    means = mean_rows(table, jnp.asarray([[0, 1, 2], [2, -1, 1], [-1, -1, -1]]))
    np.testing.assert_allclose(np.asarray(means), [[3, 30], [4, 40], [0, 0]])


def test_means_are_taken_in_float32():
    table = jnp.full((512, 1), 1.0, jnp.bfloat16).at[0].set(256)  # bfloat16 cannot even count to 512
    assert mean_rows(table, jnp.arange(512)[None]).tolist() == [[(256 + 511) / 512]]


def test_frames_must_divide():
    tsp = TSP(((8, 1, 1), (6, 2, 2)))
    tsp.check_frames(24, "video")
    with pytest.raises(PromptError, match=r"video 1: 16 frames cannot be pooled by 6.*\[6, 2, 2\].*multiple of 24"):
        tsp.check_frames(16, "video 1")
