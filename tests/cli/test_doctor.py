"""`vila-jax doctor`."""

import importlib.metadata
import json
import platform

import pytest

from vila_jax.bench import machine
from vila_jax.cli import cache


@pytest.fixture(autouse=True)
def _fixed_rates(monkeypatch):
    monkeypatch.setattr(machine, "measure_matmul", lambda dtype: {"float32": 2e12, "bfloat16": 7.9e14}[dtype])
    monkeypatch.setattr(machine, "measure_bandwidth", lambda: 4.3e12)


def test_the_object(vila_jax_cli):
    code, out, err = vila_jax_cli("doctor", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["jax"] == importlib.metadata.version("jax")
    assert [device["platform"] for device in facts["devices"]] == ["cpu"] * 8
    assert facts["dtype"]["default"] == "float32"
    assert facts["attention"] == {"implementation": "xla", "why": "no flash kernel for cpu"}
    assert facts["measured"]["matmul_bfloat16_flops_per_s"] == 7.9e14


def test_the_table(vila_jax_cli):
    code, out, _ = vila_jax_cli("doctor")
    assert code == 0
    lines = {line[:16].strip(): line[16:].strip() for line in out.splitlines()}
    assert lines["matmul bfloat16"].endswith("790 TFLOP/s")
    assert lines["bandwidth"].endswith("4.30 TB/s read and written")


@pytest.mark.parametrize(
    ("setting", "state"), [("off", "switched off"), ("/dev/null/cache", "/dev/null/cache cannot be written to")]
)
def test_why_there_is_no_compile_cache(vila_jax_cli, monkeypatch, setting, state):
    import jax

    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv(cache.VARIABLE, setting)
    try:
        _, out, _ = vila_jax_cli("doctor", "--json")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    found = json.loads(out)["compile_cache"]
    assert found["folder"] is None
    assert found["state"].endswith(state)
