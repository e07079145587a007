"""ToMe against vectors of the published code, and inside towers against the published algorithm in PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.budgets.towers import DEPTH, PATCHES, first_patch, in_torch, pixels, reduced
from tests.nn.oracle import close
from vila_jax.budgets import Step
from vila_jax.budgets.tome import ToMe, constant_schedule, halving_schedule, match, merge
from vila_jax.errors import BudgetError
from vila_jax.nn.tower_tokens import Tokens


@pytest.mark.parametrize("pairs", [16, 64, 200])
@pytest.mark.parametrize("first", [0, 1])
def test_published_vectors(golden, first, pairs):
    data = np.load(golden / "budgets" / "tome.npz")
    x, metric = (data[name][:, 1 - first :] for name in ("x", "metric"))
    tokens = Tokens.of(jnp.asarray(x), first, jnp.ones((len(x), 576), bool))
    merged = merge(tokens, match(jnp.asarray(metric[:, first:]), first, pairs))
    name = f"{'cls' if first else 'nocls'}_r{pairs}"
    close(merged.x, data[f"{name}_x"], atol=1e-5)
    assert np.array_equal(merged.size, data[f"{name}_size"][:, first:])
    if not first:
        assert np.array_equal(merged.holder, data[f"{name}_dest_of_token"])


class Published:
    """The algorithm of the paper as its authors wrote it: matching, merging and the trace of sources."""

    def __init__(self, kind: str, left: tuple[int, ...]):
        self.first, self.left, self.size, self.source = first_patch(kind), left, None, None

    def bias(self) -> torch.Tensor | None:
        return None if self.size is None else self.size[..., 0].log()

    def __call__(self, block: int, x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        metric, tokens = keys.mean(2), x.shape[1]
        r = tokens - self.first - self.left[block]
        if r == 0:
            return x
        metric = metric / metric.norm(dim=-1, keepdim=True)
        a, b = metric[:, ::2], metric[:, 1::2]
        scores = a @ b.transpose(1, 2)
        if self.first:
            scores[:, 0] = -torch.inf
        node_max, node_idx = scores.max(dim=-1)
        edge_idx = node_max.argsort(dim=-1, descending=True)[..., None]
        unm_idx, src_idx = edge_idx[:, r:], edge_idx[:, :r]
        dst_idx = node_idx[..., None].gather(-2, src_idx)
        if self.first:
            unm_idx = unm_idx.sort(dim=1)[0]

        def summed(values: torch.Tensor) -> torch.Tensor:
            src, dst = values[:, ::2], values[:, 1::2]
            width = values.shape[-1]
            unmerged = src.gather(1, unm_idx.expand(-1, -1, width))
            moved = src.gather(1, src_idx.expand(-1, -1, width))
            return torch.cat([unmerged, dst.scatter_add(1, dst_idx.expand(-1, -1, width), moved)], dim=1)

        size = torch.ones_like(x[..., :1]) if self.size is None else self.size
        source = torch.eye(tokens).expand(len(x), -1, -1) if self.source is None else self.source
        self.size, self.source = summed(size), summed(source)
        return summed(x * size) / self.size


@pytest.mark.parametrize(
    ("kind", "r", "kept"), [("clip", 0, 20), ("clip", 9, 16), ("siglip", 0, 4), ("siglip", 20, 12)]
)
def test_tower_is_that_of_the_published_algorithm(kind, r, kept):
    rule = ToMe(r)
    reference = Published(kind, rule.schedule(PATCHES, kept, DEPTH))
    tokens = in_torch(kind, pixels(), reference, reference.bias)
    first = reference.first
    assert tokens.shape[1] == kept + first
    holder = reference.source.argmax(dim=1)[:, first:]
    expected = tokens.gather(1, holder[..., None].expand(-1, -1, tokens.shape[-1]))
    states, stand_in = reduced(kind, rule, kept, pixels())
    close(states, expected, atol=2e-5)
    for own, tile in zip(stand_in, holder.tolist(), strict=True):
        assert own.tolist() == [tile.index(token) for token in tile]
        assert len(set(own.tolist())) == kept


def test_a_tile_does_not_depend_on_its_batch():
    together, _ = reduced("clip", ToMe(), 20, pixels())
    for i in range(len(together)):
        alone, _ = reduced("clip", ToMe(), 20, pixels()[i : i + 1])
        close(alone[0], together[i], atol=1e-5)


def test_a_token_stands_where_it_shows_the_picture():
    shown = np.zeros((3, PATCHES), bool)
    shown[:, 14:35] = True
    states, everywhere = reduced("clip", ToMe(), 12, pixels())
    again, stand_in = reduced("clip", ToMe(), 12, pixels(), shown)
    close(again, states, atol=0)
    for own, all_shown, real in zip(stand_in, everywhere, shown, strict=True):
        for token in set(all_shown.tolist()):
            members = np.flatnonzero(all_shown == token)
            first = next((m for m in members if real[m]), members[0])
            assert set(own[members].tolist()) == {first}


@pytest.mark.parametrize("scores", ["nan", "constant"])
def test_exactly_so_many_for_any_keys(scores):
    metric = jnp.full((2, PATCHES, 4), jnp.nan if scores == "nan" else 1.0)
    tokens = Tokens.of(jnp.ones((2, PATCHES, 3)), 0, jnp.ones((2, PATCHES), bool))
    merged = merge(tokens, match(metric, 0, 20))
    assert merged.x.shape == (2, 29, 3)
    assert all(sorted(set(row)) == list(range(29)) for row in merged.holder.tolist())
    assert merged.size.sum(axis=1).tolist() == [PATCHES] * 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant_schedule(576, 346, 10, 23), tuple(range(566, 345, -10))),
        (constant_schedule(576, 400, 100, 4), (476, 400, 400, 400)),
        (constant_schedule(100, 10, 60, 4), (50, 25, 13, 10)),
        (halving_schedule(576, 300, 4), (507, 438, 369, 300)),
        (halving_schedule(100, 13, 3), (52, 26, 13)),
        (halving_schedule(100, 100, 2), (100, 100)),
    ],
)
def test_schedules(schedule, expected):
    assert schedule[: len(expected)] == expected and set(schedule[len(expected) :]) <= {expected[-1]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: constant_schedule(576, 100, 10, 23), "10 fewer in each of 23 blocks leave 346 of 576.*larger r"),
        (lambda: halving_schedule(576, 100, 2), "2 blocks leave 144 of 576 or more, not 100.*at least 144"),
        (lambda: Step.parse("tome:0.5,r=-1"), "r is -1"),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(BudgetError, match=message):
        call()
