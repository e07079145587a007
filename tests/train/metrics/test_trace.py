"""`--profile FROM:TO` leaves a trace of these steps, and says how to look at it."""

import jax
import jax.numpy as jnp
import pytest

from train.metrics.trace import Trace
from vila_jax.errors import ConfigError


def run(trace, steps):
    """What the trace says after each step."""
    said = {}
    square = jax.jit(lambda x: x @ x)
    for step in steps:
        trace.before(step)
        if (text := trace.after(step, square(jnp.ones((8, 8))))) is not None:
            said[step] = text
    trace.close()
    return said


def test_some_steps_are_traced(tmp_path):
    said = run(Trace.parse("2:3", tmp_path / "profile"), range(1, 6))
    assert said.keys() == {3} and str(tmp_path / "profile") in said[3] and "xprof" in said[3]
    assert list((tmp_path / "profile").rglob("*.xplane.pb")) and list((tmp_path / "profile").rglob("*.trace.json.gz"))


def test_a_run_that_ends_early_leaves_what_there_is(tmp_path):
    assert run(Trace.parse("2:9", tmp_path), range(1, 4)) == {}
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_run_that_begins_later_traces_nothing(tmp_path):
    assert run(Trace.parse("2:3", tmp_path / "profile"), range(4, 6)) == {} and not (tmp_path / "profile").exists()


@pytest.mark.parametrize("text", ["", "3", "0:4", "5:4", "a:b", "1:2:3", "-1:2"])
def test_other_texts(text, tmp_path):
    with pytest.raises(ConfigError, match="--profile"):
        Trace.parse(text, tmp_path)
