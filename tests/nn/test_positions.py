"""Resized position embeddings against the reference's."""

import ml_dtypes
import numpy as np
import pytest

from vila_jax.nn.positions import resize_positions_bicubic, resize_positions_linear


@pytest.mark.parametrize("size", [42, 56, 70, 98])
def test_linear(size, golden):
    data = np.load(golden / "vila" / "modules" / "pos_embed_resize_linear.npz")
    resized = resize_positions_linear(data["pos_in"], size // 14)
    np.testing.assert_array_equal(resized, data[f"pos_out_{size}"])  # holes included: all sizes but 56 have some


@pytest.mark.parametrize("size", [28, 84, 112])
def test_bicubic(size, golden):
    data = np.load(golden / "vila" / "modules" / "intern_vit.npz")
    resized = resize_positions_bicubic(data["param/embeddings.position_embedding"][0], size // 14)
    np.testing.assert_allclose(resized, data[f"pos_embed_resized_{size}"][0], atol=1e-6)


@pytest.mark.parametrize(("resize", "extra"), [(resize_positions_linear, 0), (resize_positions_bicubic, 1)])
def test_dtype_is_kept_and_the_same_size_is_untouched(resize, extra):
    rows = np.arange(2 * (9 + extra)).reshape(-1, 2).astype(ml_dtypes.bfloat16)
    resized = resize(rows, 5)
    assert resized.dtype == rows.dtype and resized.shape == (25 + extra, 2)
    np.testing.assert_array_equal(resize(rows, 3), rows)
