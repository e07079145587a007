"""Composition of scales against the reference's S2 and dynamic S2."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vila_jax.nn.scales import compose, compose_scores


def area_table(grids: list[tuple[int, int]], side: int, blocks: tuple[int, int], block_side: int) -> np.ndarray:
    """The gather table of one picture, by brute force.

    Scale `s` is a mosaic of `grids[s]` tiles (rows, columns), each `side x side` patches; the result is a mosaic of
    `blocks`, each `block_side x block_side`.
    """
    height, width = blocks[0] * block_side, blocks[1] * block_side
    entries = {}
    for y, x in np.ndindex(height, width):
        block = y // block_side * blocks[1] + x // block_side
        patch = y % block_side * block_side + x % block_side
        first_tile = 0
        for s, (rows, cols) in enumerate(grids):
            entries[block, patch, s] = [
                (first_tile + v // side * cols + u // side) * side**2 + v % side * side + u % side
                for v in overlapping(y, height, rows * side)
                for u in overlapping(x, width, cols * side)
            ]
            first_tile += rows * cols
    widest = max(map(len, entries.values()))
    table = np.full((blocks[0] * blocks[1], block_side**2, len(grids), widest), -1, np.int32)
    for place, patches in entries.items():
        table[place][: len(patches)] = patches
    return table


def overlapping(part: int, parts: int, others: int) -> list[int]:
    """With an edge cut into `parts` and into `others` equal pieces, which of the latter touch one of the former."""
    return [i for i in range(others) if i * parts < (part + 1) * others and (i + 1) * parts > part * others]


def batch(tables: list[np.ndarray], counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """`tiles` and `index` of pictures with tables `[B, P, S, W]` and so many tiles, one after the other."""
    shape = (len(tables), *np.max([table.shape for table in tables], axis=0))
    index, tiles = np.full(shape, -1, np.int32), np.zeros((len(tables), max(counts)), np.int32)
    for i, (table, count) in enumerate(zip(tables, counts, strict=True)):
        index[i][tuple(slice(size) for size in table.shape)] = table
        tiles[i, :count] = sum(counts[:i]) + np.arange(count)
    return tiles, index


def as_map(blocks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """`[B, P, E]` -> `[E, H, W]`."""
    side = round(blocks.shape[1] ** 0.5)
    parts = blocks[: grid[0] * grid[1]].reshape(*grid, side, side, -1)
    return parts.transpose(4, 0, 2, 1, 3).reshape(-1, grid[0] * side, grid[1] * side)


def dynamic_s2_case(golden, case: int):
    """Features, expected maps, grids of the results, `tiles` and `index`."""
    folder = golden / "vila" / "modules"
    data = np.load(folder / "dynamic_s2_merge.npz")
    about = json.loads((folder / "dynamic_s2_merge.json").read_text())[case]
    features, scales = data[f"in_{case}"], about["scales"]
    side, new_grids = round(features.shape[1] ** 0.5), [tuple(grid) for grid in about["new_block_sizes"]]
    tables, counts = [], []
    for grid, new_grid in zip(about["block_sizes"], new_grids, strict=True):
        if grid is None:  # a single tile stands for every scale
            table, count = np.repeat(area_table([(1, 1)], side, (1, 1), side), len(scales), axis=2), 1
        else:
            grids = [(scale // scales[0],) * 2 for scale in scales[:-1]] + [tuple(grid)]
            table, count = area_table(grids, side, new_grid, side), sum(rows * cols for rows, cols in grids)
        tables.append(table)
        counts.append(count)
    assert sum(counts) == len(features)
    expected = [data[f"out_{case}_{i}"][0] for i in range(len(tables))]
    return features, expected, new_grids, *batch(tables, counts)


@pytest.mark.parametrize("case", range(6))
def test_dynamic_s2(case, golden):
    features, expected, grids, tiles, index = dynamic_s2_case(golden, case)
    composed = np.asarray(jax.jit(compose)(features, tiles, index))
    for blocks, grid, wanted in zip(composed, grids, expected, strict=True):
        np.testing.assert_allclose(as_map(blocks, grid), wanted, atol=1e-6)
        assert not blocks[grid[0] * grid[1] :].any(), "blocks that fill up the batch"


@pytest.mark.parametrize("case", [2, 4])
def test_scores(case, golden):
    """Features read as scores of six heads: the mean over the scales of what was concatenated."""
    features, expected, grids, tiles, index = dynamic_s2_case(golden, case)
    scores = np.asarray(jax.jit(compose_scores)(features.swapaxes(1, 2), tiles, index))
    for blocks, grid, wanted in zip(scores, grids, expected, strict=True):
        mean = wanted.reshape(-1, 6, *wanted.shape[1:]).mean(0)
        np.testing.assert_allclose(as_map(blocks.swapaxes(1, 2), grid), mean, atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(24, 8), (24, 16), (10, 24), (25, 10)])
def test_area(before, after, golden):
    data = np.load(golden / "vila" / "modules" / "s2_wrapper.npz")
    feature_map = data[f"area_in_{before}_{after}"]
    features = feature_map.reshape(1, 2, -1).swapaxes(1, 2)
    index = area_table([(1, 1)], before, (1, 1), after)[None]
    composed = np.asarray(jax.jit(compose)(features, np.zeros((1, 1), int), index))
    np.testing.assert_allclose(as_map(composed[0], (1, 1)), data[f"area_out_{before}_{after}"][0], atol=1e-6)


@pytest.mark.parametrize(("scales", "output"), [((8, 16, 24), 0), ((8, 16), 0), ((8, 16, 24), 2)])
def test_s2(scales, output, golden):
    """The whole wrapper around a tower that is one convolution of 4 x 4 pixels."""
    data = np.load(golden / "vila" / "modules" / "s2_wrapper.npz")
    parts = []
    for scale in scales:
        pixels = data["input"] if scale == 24 else data[f"bicubic_{scale}"]
        n = scale // 8
        patches = pixels.reshape(2, 3, n, 2, 4, n, 2, 4)
        features = np.einsum("ecpq,icyhpxwq->iyxhwe", data["conv_weight"], patches)
        parts.append(features.reshape(2, n * n, 4, 6))
    features = np.concatenate(parts, axis=1)  # of both pictures, tiles of all scales
    grids, blocks = [(scale // 8,) * 2 for scale in scales], (scales[output] // 8,) * 2
    tiles, index = batch([area_table(grids, 2, blocks, 2)] * 2, [features.shape[1]] * 2)
    composed = np.asarray(jax.jit(compose)(features.reshape(-1, 4, 6), tiles, index))
    wanted = data[f"out_sizes{'_'.join(map(str, scales))}_max8_idx{output}"]
    for blocks_of_one, vectors in zip(composed, wanted, strict=True):
        flat = as_map(blocks_of_one, blocks).reshape(vectors.shape[1], -1).T
        np.testing.assert_allclose(flat, vectors, atol=1e-5)


def test_averages_in_float32_and_keeps_the_dtype():
    """Three values of which bfloat16 would lose the small ones in a running sum."""
    features = jnp.asarray([256.0, 1.0, 1.0], jnp.bfloat16).reshape(1, 3, 1)
    composed = jax.jit(compose)(features, jnp.zeros((1, 1), int), jnp.arange(3).reshape(1, 1, 1, 1, 3))
    assert composed.dtype == jnp.bfloat16
    assert composed.item() == jnp.bfloat16(86.0)
