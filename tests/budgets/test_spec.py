"""The spec: what it means, that it is written as it is read, and that every wrong one is refused with a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vila_jax.budgets import METHODS, Budget, Step
from vila_jax.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "keep"),
    [("0.2", 0.2), ("20%", 0.2), ("33.3%", 0.333), (".5", 0.5), ("115", 115), ("2", 2)]
    + [(one, 1.0) for one in ("1", "1.0", "1.", "100%")],
)
def test_keep(text, keep):
    step = Step.parse(f"hired:{text}")
    assert step.keep == keep and type(step.keep) is type(keep)


def test_options():
    step = Step.parse(" hired : 0.2 , variant = code, alpha=0.3 , swap=false,score_layer=-2")
    assert step == Step("hired", 0.2, (("alpha", 0.3), ("variant", "code"), ("swap", False), ("score_layer", -2)))
    assert (step.rule.alpha, step.rule.variant, step.rule.swap, step.rule.score_layer) == (
        0.3,
        "code",
        False,
        -2,
    )
    assert Step.parse("hired:0.2").rule.alpha == 0.5
    assert Step("hired", 0.2, (("alpha", 1),)).rule.alpha == 1.0
    assert hash(step) == hash(Step.parse(str(step)))


@pytest.mark.parametrize(
    "text", ["hired:0.2,alpha=0.5,variant=code", "hired:115", "random:0.4,seed=3", "hired:1.0,variant=code,swap=false"]
)
def test_written_as_read(text):
    assert str(Budget.parse(text)) == text


@given(
    keep=st.floats(0, 1, exclude_min=True) | st.integers(1, 10**9),
    alpha=st.floats(0, 1),
    variant=st.sampled_from(["paper", "code"]),
    first=st.integers(-100, 100),
)
def test_round_trip(keep, alpha, variant, first):
    budget = Budget.of("hired", keep, (("alpha", alpha), ("variant", variant), ("first_layer", first)))
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("hired:1", True),
        ("hired:0.999", False),
        ("hired:2880", False),
        ("hired:1,variant=code", False),
        ("random:1", True),
    ],
)
def test_is_full(text, full):
    assert Budget.parse(text).is_full is full


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hird:0.2", ["'hird'", "Did you mean 'hired'", *METHODS]),
        ("zzz:0.2", ["unknown budget method 'zzz'", *METHODS]),
        ("HIRED:0.2", ["'HIRED'", *METHODS]),
        ("hired:0.2,alhpa=1", ["'alhpa'", "Did you mean 'alpha'", "variant", "swap", "first_layer", "score_layer"]),
        ("random:0.2,alpha=0.5", ["unknown option 'alpha'", "random", "seed"]),
        ("hired:0.2,alpha=high", ["alpha", "number", "'high'"]),
        ("hired:0.2,alpha=nan", ["alpha", "finite", "'nan'"]),
        ("hired:0.2,alpha=1.5", ["alpha", "1.5", "0 to 1"]),
        ("hired:0.2,variant=cod", ["variant", "'cod'", "Did you mean 'code'", "paper"]),
        ("hired:0.2,swap=no,variant=code", ["swap", "true or false", "'no'"]),
        ("hired:0.2,first_layer=0.5", ["first_layer", "whole number", "'0.5'"]),
        ("hired:0.2,swap=false", ["swap=false", "variant=code"]),
        ("hired:0.2,alpha=0.1,alpha=0.2", ["alpha", "twice"]),
        ("random:0.2,seed=-1", ["seed", "-1", "negative"]),
        ("hired:0", ["KEEP is 0", "(0, 1]"]),
        ("hired:0.0", ["KEEP is 0.0", "(0, 1]"]),
        ("hired:-0.2", ["-0.2"]),
        ("hired:-5", ["-5"]),
        ("hired:1.5", ["1.5", "above 1", "number of tokens"]),
        ("hired:150%", ["1.5", "above 1"]),
        ("hired:nan", ["'nan'", "not a number"]),
        ("hired:inf", ["'inf'", "not a number"]),
        ("hired:1e-3", ["'1e-3'", "not a number"]),
        ("hired:" + "9" * 5000, ["not a number"]),
        ("hired:alpha=0.5", ["'alpha=0.5'", "not a number"]),
        ("hired", ["malformed", "'hired'", "NAME:KEEP"]),
        ("hired:", ["malformed", "NAME:KEEP"]),
        ("hired,alpha=0.5", ["malformed", "NAME:KEEP"]),
        (":0.2", ["malformed", "NAME:KEEP"]),
        ("", ["malformed", "NAME:KEEP"]),
        ("hired:0.2,alpha", ["malformed option 'alpha'", "OPTION=VALUE"]),
        ("hired:0.2,", ["malformed option ''"]),
        ("hired:0.2,=3", ["malformed option '=3'"]),
        ("hired:0.4+random:0.5", ["hired and random both work between the vision tower and the decoder"]),
        ("pool:0.4,positions=original", ["pool makes tokens of several patches", "no position", "Leave it out"]),
        ("visionzip:0.4,positions=original", ["visionzip makes tokens of several patches"]),
        ("prumerge:0.4,positions=renumbered", ["prumerge makes tokens of several patches"]),
        ("prumerge+:0.4,positions=original", ["prumerge+ makes tokens of several patches"]),
        ("tome:0.4,positions=original", ["tome makes tokens of several patches"]),
        (
            "tome:0.4+random:0.5,positions=original",
            ["random is asked for original positions, and tome makes tokens of"],
        ),
        ("tower_norm:0.4,positions=original+random:0.5", ["random counts", "positions=original to random"]),
        ("downsample:0.4,positions=original", ["unknown option 'positions'", "downsample"]),
        ("hired:0.4,positions=old", ["positions", "'old'", "original", "renumbered"]),
        ("hired:0.4,variant=code,positions=original", ["exchange of rows and columns", "swap=false"]),
        ("hired:0.4+fastx:0.5", ["unknown budget method 'fastx'"]),
    ],
)
def test_refused(text, said):
    with pytest.raises(BudgetError) as error:
        Budget.parse(text)
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize("keep", [float("nan"), float("inf"), -1, 0, True, 1.0001])
def test_refused_number(keep):
    with pytest.raises(BudgetError, match="KEEP is"):
        Step("hired", keep)
