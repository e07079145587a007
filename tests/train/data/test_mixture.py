"""Proportions are exact, the order depends on the seed alone, and hosts share the records out."""

import collections
import itertools

import grain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.mixture import Term, counts, mix, parse_mixture
from vila_jax.errors import ConfigError


def sets(**sizes):
    return {n: grain.MapDataset.source([f"{n}{i}" for i in range(size)]) for n, size in sizes.items()}


def test_grammar():
    assert parse_mixture("a + b*2+c-d_1") == (Term("a"), Term("b", 2), Term("c-d_1"))
    assert parse_mixture("a=0.25+b=3") == (Term("a", share=0.25), Term("b", share=3.0))


@pytest.mark.parametrize(
    "text", ["", "a+", "a*0", "a*x", "a=0", "a=-1", "a=nan", "a=inf", "a b", "a=1+b", "a+a", "a*2.5"]
)
def test_bad_mixtures(text):
    with pytest.raises(ConfigError, match="mixture"):
        parse_mixture(text)


def test_unknown_and_empty_sets():
    with pytest.raises(ConfigError, match="Did you mean 'mmc4core'"):
        mix("mmc4cor", sets(mmc4core=3))
    with pytest.raises(ConfigError, match="empty"):
        mix("a+b", sets(a=3, b=0))


def test_repeats_are_the_reference_s():
    seen = collections.Counter(mix("a+b*3", sets(a=5, b=2)))
    assert seen == dict.fromkeys(["a0", "a1", "a2", "a3", "a4"], 1) | {"b0": 3, "b1": 3}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(1, 400))
def test_shares_are_exact(shares, total):
    names = [f"s{i}" for i in range(len(shares))]
    text = "+".join(f"{n}={share}" for n, share in zip(names, shares, strict=True))
    got = counts(parse_mixture(text), dict.fromkeys(names, 7), total)
    assert sum(got) == total
    assert all(abs(n - share * total / sum(shares)) < 1 for n, share in zip(got, shares, strict=True))


def test_a_small_set_begins_anew_only_when_all_of_it_was_seen():
    seen = collections.Counter(mix("a=1+b=1", sets(a=100, b=10), total=50))
    assert sum(n for name, n in seen.items() if name[0] == "b") == 25
    assert {seen[f"b{i}"] for i in range(10)} == {2, 3}


@pytest.mark.parametrize("hosts", [1, 2, 3, 8])
def test_hosts_share_the_records_out(hosts):
    parts = [list(mix("a*2+b", sets(a=10, b=7), seed=3, host=h, hosts=hosts)) for h in range(hosts)]
    assert sorted(itertools.chain(*parts)) == sorted(mix("a*2+b", sets(a=10, b=7), seed=5))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_order_depends_on_the_seed_alone():
    first, again, other = (list(mix("a+b", sets(a=20, b=20), seed=s)) for s in (1, 1, 2))
    assert first == again != other and sorted(first) == sorted(other)
    assert first != sorted(first)
