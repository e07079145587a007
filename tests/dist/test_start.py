"""Who is started, who is left alone, and what is said of arguments that do not fit together."""

import os
import socket
import subprocess
import sys

import jax
import pytest

from vila_jax.dist import start
from vila_jax.errors import ConfigError

CLUSTERS = ("SLURM_", "KUBERNETES_", "OMPI_", "TPU_", "JAX_COORDINATOR", "JOB_COMPLETION_INDEX")


@pytest.fixture
def calls(monkeypatch):
    """Arguments that JAX is given, in an environment without a cluster."""
    for name in [name for name in os.environ if name.startswith(CLUSTERS)]:
        monkeypatch.delenv(name)
    seen = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: seen.append(given))
    return seen


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"processes": 2}, r"coordinator, process not given.*or none of them"),
        ({"coordinator": "10.0.0.1:1", "process": 0}, "processes not given"),
        ({"coordinator": "10.0.0.1", "processes": 2, "process": 0}, r"coordinator: got '10.0.0.1'.*HOST:PORT"),
        ({"coordinator": "h:1", "processes": 2, "process": 2}, r"2 is none of 2 processes.*from 0 to 1"),
    ],
)
def test_arguments_that_do_not_fit(calls, given, message):
    with pytest.raises(ConfigError, match=message):
        start(**given)
    assert not calls


def test_explicit_processes(calls):
    start("10.0.0.1:1234", processes=2, process=1)
    assert calls == [{"coordinator_address": "10.0.0.1:1234", "num_processes": 2, "process_id": 1}]
    start("10.0.0.1:1234", processes=1, process=0)
    assert len(calls) == 1  # one process needs no others


@pytest.mark.parametrize(
    ("environment", "alone"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, True),
        ({"SLURM_NTASKS": "16"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "TPU_WORKER_HOSTNAMES": "a,b"}, False),
    ],
)
def test_clusters_are_asked_unless_there_is_one_process(calls, monkeypatch, environment, alone):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    start()
    assert calls == ([] if alone else [{}])


def test_what_jax_says_reaches_the_user(calls, monkeypatch):
    def refuse(**given):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    error = ValueError("coordinator_address should be defined.")
    start()  # no cluster: one host
    error = ValueError("Number of processes must be defined.")
    with pytest.raises(ConfigError, match="Number of processes"):
        start()
    error = RuntimeError("must be called before\nany JAX calls")
    with pytest.raises(ConfigError, match="must be called before. Check that all processes"):
        start("h:1", processes=2, process=0)


PROGRAM = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
from vila_jax.dist import start
start(sys.argv[1], processes=2, process=int(sys.argv[2]))
print(jax.process_index(), jax.process_count(), jax.device_count())
"""


def test_two_processes_find_each_other():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", PROGRAM, address]
    pair = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in pair]
    devices = said[0][2]
    assert said == [["0", "2", devices], ["1", "2", devices]] and int(devices) % 2 == 0
