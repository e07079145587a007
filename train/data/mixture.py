"""Which record comes when.

    coyo_25m+mmc4core+sharegpt4v*2      every record once, those of the last data set twice (the reference's grammar)
    coyo_25m=0.3+mmc4core=0.7           shares of what is seen, whatever the sizes: small sets begin anew

The order is a shuffle of all records that depends on the seed alone. Hosts take turns in it, so that no record is lost
or seen twice, whatever their number. Source of the grammar: VILA `llava/data/builder.py`; there the tail of every data
set that does not fill a batch is dropped, here nothing is.
"""

import dataclasses
import difflib
import functools
import re
import sys
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import grain

from vila_jax.errors import ConfigError

_TERM = re.compile(r"(?P<name>[^*+=\s]+)(?:\*(?P<times>\d+)|=(?P<share>[0-9.eE+-]+))?$")


@dataclasses.dataclass(frozen=True)
class Term:
    """A data set of a mixture: how often it is repeated, or its share of what is seen."""

    name: str
    times: int = 1
    share: float | None = None


def parse_mixture(text: str) -> tuple[Term, ...]:
    """Reads `a+b*2` or `a=0.3+b=0.7`.

    Raises:
      ConfigError: it does not follow the grammar, names a data set twice, or gives shares to some sets only.
    """
    terms = tuple(_parse_term(term.strip(), text) for term in text.split("+"))
    names = [term.name for term in terms]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{doubled!r} stands twice", where=f"mixture {text!r}", fix=f"Write {doubled}*2.")
    if len({term.share is None for term in terms}) > 1:
        raise ConfigError(
            "some data sets have a share and some have none",
            where=f"mixture {text!r}",
            fix="Give every data set a share (name=0.3), or none (name*2 repeats it).",
        )
    return terms


def _parse_term(term: str, text: str) -> Term:
    match = _TERM.match(term)
    times, share = (int(match["times"] or 1), match["share"]) if match else (0, None)
    try:
        weight = None if share is None else float(share)
    except ValueError:
        weight = 0.0
    if match is None or times < 1 or (weight is not None and not 0 < weight < float("inf")):
        raise ConfigError(
            f"{term!r} is not a data set of a mixture",
            where=f"mixture {text!r}",
            fix="Join names by `+`; `name*2` repeats a set, `name=0.3` gives it a share.",
        )
    return Term(match["name"], times, weight)


def counts(terms: tuple[Term, ...], sizes: Mapping[str, int], total: int | None = None) -> list[int]:
    """Records of each data set that a run sees.

    Args:
      terms: of `parse_mixture`.
      sizes: records of each data set.
      total: records of the run. None for one round: every set as often as it is repeated; with shares, until the set
        that is used up first has been seen once.

    Raises:
      ConfigError: a data set is unknown or empty.
    """
    for term in terms:
        _check_size(term.name, sizes)
    if terms[0].share is None:
        weights = [Fraction(sizes[term.name] * term.times) for term in terms]
        total = int(sum(weights)) if total is None else total
    else:
        weights = [Fraction(term.share or 0.0) for term in terms]
        if total is None:
            total = int(min(sizes[t.name] * sum(weights) / w for t, w in zip(terms, weights, strict=True)))
    return _share_out(weights, total)


def _share_out(weights: list[Fraction], total: int) -> list[int]:
    """Whole numbers in proportion to the weights that sum to `total`; the largest remainders are rounded up."""
    quotas = [total * weight / sum(weights) for weight in weights]
    numbers = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: numbers[i] - quotas[i])
    for i in by_remainder[: total - sum(numbers)]:
        numbers[i] += 1
    return numbers


def _check_size(name: str, sizes: Mapping[str, int]) -> None:
    if name not in sizes:
        close = difflib.get_close_matches(name, sizes, 1)
        fix = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(sizes)}."
        raise ConfigError(f"there is no data set {name!r}", where="mixture", fix=fix)
    if not sizes[name]:
        raise ConfigError(f"the data set {name!r} is empty", where="mixture", fix="Prepare it again, or leave it out.")


def mix(
    mixture: str,
    datasets: Mapping[str, grain.MapDataset],
    *,
    total: int | None = None,
    seed: int = 0,
    host: int = 0,
    hosts: int = 1,
    turn: int = 0,
) -> grain.MapDataset[Any]:
    """The records of one host, in the order in which it sees them.

    Args:
      mixture: see `parse_mixture`.
      datasets: by name.
      total: records that all hosts together see; None for one round of the mixture.
      seed: decides the order.
      host, hosts: this host's turn.
      turn: the round; the next one goes on in every data set where this one ends, in an order of its own.

    Raises:
      ConfigError: see `parse_mixture` and `counts`.
    """
    terms = parse_mixture(mixture)
    numbers = counts(terms, {name: len(dataset) for name, dataset in datasets.items()}, total)
    parts = []
    for i, (term, number) in enumerate(zip(terms, numbers, strict=True)):
        if number:  # every round of a set has an order of its own
            whole = datasets[term.name].seed(seed + i).shuffle().repeat()
            parts.append(whole[turn * number : (turn + 1) * number])
    return grain.MapDataset.concatenate(parts).seed(seed + turn).shuffle()[host::hosts]


class Rounds(grain.MapDataset[Any]):
    """The records of one host in round after round of a mixture, without an end.

    Args:
      See `mix`.

    Attributes:
      round: records of a round, of all hosts.
    """

    def __init__(
        self, mixture: str, datasets: Mapping[str, grain.MapDataset], *, seed: int = 0, host: int = 0, hosts: int = 1
    ):
        super().__init__()
        # Two, as threads still read the last records of a round when the next one begins.
        self._order = functools.lru_cache(maxsize=2)(lambda turn: mix(mixture, datasets, seed=seed, turn=turn))
        self._host, self._hosts = host, hosts
        self.round = len(self._order(0))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        turn, place = divmod(index * self._hosts + self._host, self.round)
        return self._order(turn)[place]
