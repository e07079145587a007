"""Two real processes: each keeps its own position, one signal stops both behind the same step, and both go on."""

import json
import signal
import socket
import subprocess
import sys

import pytest

from vila_jax.cli import exits
from vila_jax.errors import CheckpointError

pytestmark = pytest.mark.slow

HOST = """
import json, sys, time
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
folder, port, host, hosts, steps = sys.argv[1], *map(int, sys.argv[2:])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2 // hosts)
if hosts > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", hosts, host, cluster_detection_method="deactivate")
from train.checkpoints import Checkpoints, abstract_like
from train.recipe import Safety
from train.stopping import Stopping
from vila_jax.dist import make_mesh
from vila_jax.errors import VilaError

split = NamedSharding(make_mesh({"fsdp": 2}), PartitionSpec("fsdp"))
values = np.arange(8, dtype=np.float32)
state = {"w": jax.make_array_from_callback((8,), split, lambda index: values[index])}
add = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), out_shardings={"w": split}, donate_argnums=0)
def said(*what):
    print(json.dumps(what), flush=True)
try:
    with Stopping() as stopping, Checkpoints(folder, Safety(), page={}, seed=0) as checkpoints:
        restored = checkpoints.restore(abstract_like(state))
        step = 0
        if restored:
            step, state = restored.step, restored.state
            said("restored", step, restored.position, restored.damaged)
        while step < steps:
            step, state = step + 1, add(state)
            time.sleep(0.02)
            said("step", step)
            stop = stopping.asked(step)
            if stop or step == steps:
                checkpoints.save(step, state, {"host": host, "taken": step})
                checkpoints.wait()
                said("saved", step, [shard.data.tolist() for shard in state["w"].addressable_shards])
            if stop:
                break
except VilaError as error:
    said("error", str(error))
    sys.exit(error.exit_code)
sys.exit(stopping.exit_code)
"""


def start(folder, steps, hosts=2):
    """The processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", HOST, str(folder), str(port)]
    return [
        subprocess.Popen(
            [*command, str(host), str(hosts), str(steps)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for host in range(hosts)
    ]


def ended(processes):
    """Exit codes, and the lines of each process."""
    out = [process.communicate(timeout=240)[0] for process in processes]
    lines = [[json.loads(line) for line in own.splitlines() if line.startswith('["')] for own in out]
    return [process.returncode for process in processes], lines


def test_one_signal_stops_both_and_both_go_on(tmp_path):
    processes = start(tmp_path, 5000)
    for process in processes:
        while process.stdout.readline() != '["step", 3]\n':
            assert process.poll() is None
    processes[1].send_signal(signal.SIGTERM)
    codes, lines = ended(processes)
    assert codes == [exits.STOPPED] * 2
    [a], [b] = ([line for line in own if line[0] == "saved"] for own in lines)
    step = a[1]
    assert b[1] == step and (a[2], b[2]) == ([[step + i for i in range(4)]], [[step + i for i in range(4, 8)]])
    folder = tmp_path / "steps" / str(step)
    assert {p.name for p in folder.glob("seal.*")} == {"seal.0-of-2.json", "seal.1-of-2.json"}

    codes, lines = ended(start(tmp_path, step + 2))
    assert codes == [0, 0]
    for host, own in enumerate(lines):
        assert own[0] == ["restored", step, {"host": host, "taken": step}, []]
        assert own[-1][:2] == ["saved", step + 2]

    # one host finds the newest damaged: both take the one before
    part = next(p for p in (tmp_path / "steps" / str(step + 2) / "state").rglob("d/*"))
    part.write_bytes(part.read_bytes()[:-1])
    codes, lines = ended(start(tmp_path, step))
    assert codes == [0, 0] and all(own[0][1] == step and own[0][3] == [step + 2] for own in lines)

    codes, [[line]] = ended(start(tmp_path, step, hosts=1))
    assert codes == [CheckpointError.exit_code] and "was written by 2 hosts, and there are 1" in line[1]
