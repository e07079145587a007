"""Checkpoints come back bit for bit, on any mesh; damaged ones are noticed, kept aside and passed over."""

import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train import seals
from train.checkpoints import Checkpoints, abstract_like, flattened
from train.recipe import Safety
from train.update import Rules, TrainState, initial_state
from vila_jax.dist import make_mesh
from vila_jax.errors import CheckpointError, ConfigError

PAGE = {"name": "a", "steps": 10, "rows": {"rows": 4, "parts": 1}, "learning_rate": {"decoder": 0.1}}
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.partition(
        {"a": optax.adamw(0.1), "b": optax.sgd(0.1, momentum=0.9)}, {"decoder.layers.*.w": "a", "newline": "b"}
    ),
)


def state_of(seed: int, place=lambda x: x) -> TrainState:
    rng = np.random.default_rng(seed)
    weights = {"decoder.layers.*.w": rng.standard_normal((3, 8, 16)), "newline": rng.standard_normal(8)}
    trained = {name: place(jnp.asarray(x, jnp.float32)) for name, x in weights.items()}
    state = initial_state(trained, OPTIMIZER, Rules(average=0.9))
    return jax.tree.map(lambda x: place(x + jnp.asarray(rng.integers(1, 9), x.dtype)), state)


def on(mesh: Mesh):
    """Places arrays on a mesh: their last two axes over fsdp and tensor."""

    def place(x):
        spec = PartitionSpec(*[None] * (x.ndim - 2), "fsdp", "tensor") if x.ndim > 1 else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return place


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


class Told(list):
    """What was told to the person in front of the run."""

    def __call__(self, text):
        self.append(text)


def opened(folder, told=None, page=None, **safety):
    return Checkpoints(
        folder, Safety(**{"keep_last": 2} | safety), page=page or PAGE, seed=3, tell=Told() if told is None else told
    )


def saved(folder, steps=(1, 2), **options):
    """A folder with the states of these steps."""
    with opened(folder, **options) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, state_of(step), {"taken": step}, {"loss": step / 2})
    return folder


LIKE = abstract_like(state_of(0))


def test_everything_comes_back(tmp_path):
    with opened(tmp_path) as checkpoints:
        assert checkpoints.newest() is None and checkpoints.restore(LIKE) is None
        checkpoints.save(4, state_of(4), {"taken": 4, "source": {"bad": {"a": 1}, "rows": []}}, {"loss": 0.25})
        assert not checkpoints.save(4, state_of(4), {"taken": 4})
    with opened(tmp_path) as checkpoints:
        restored = checkpoints.restore(LIKE)
    assert (restored.step, restored.metrics, restored.damaged) == (4, {"loss": 0.25}, ())
    assert restored.position == {"taken": 4, "source": {"bad": {"a": 1}, "rows": []}}
    equal(restored.state, state_of(4))
    about = json.loads((tmp_path / "steps" / "4" / "about" / "about.json").read_text())
    assert about["page"] == PAGE and about["seed"] == 3 and about["hosts"] == 1
    assert seals.is_sealed(epath.Path(tmp_path / "steps" / "4"))


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    overwrite = jax.jit(lambda x: jax.tree.map(lambda y: y * 0 - 1, x), donate_argnums=0)
    with opened(tmp_path) as checkpoints:
        for step in range(1, 6):
            state = state_of(step)
            checkpoints.save(step, state, {})
            jax.block_until_ready(overwrite(state))
            checkpoints.wait()
            equal(checkpoints.restore(LIKE).state, state_of(step))


def test_on_a_mesh_of_another_shape(tmp_path):
    whole = state_of(7)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(7, jax.tree.map(on(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})), whole), {})
    other = on(make_mesh({"fsdp": 4, "tensor": 2}))
    for place in other, on(make_mesh({"data": 8})), lambda x: x:
        like = abstract_like(jax.tree.map(place, whole))
        with opened(tmp_path) as checkpoints:
            restored = checkpoints.restore(like).state
        equal(restored, whole)
        assert [x.sharding for x in jax.tree.leaves(restored)] == [x.sharding for x in jax.tree.leaves(like)]


def test_the_last_ones_and_every_nth_stay(tmp_path):
    saved(tmp_path, range(1, 9), keep_last=2, keep_every=3)
    assert sorted(int(p.name) for p in (tmp_path / "steps").iterdir()) == [3, 6, 7, 8]
    with opened(tmp_path, save_every=4) as checkpoints:
        assert [step for step in range(1, 13) if checkpoints.due(step)] == [4, 8, 12]


def largest(folder):
    """The file that holds most of the numbers."""
    return max((p for p in (folder / "state" / "ocdbt.process_0" / "d").iterdir()), key=lambda p: p.stat().st_size)


def _truncated(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _missing(folder):
    largest(folder).unlink()


def _flipped(folder):
    path = largest(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def _garbage(folder):
    path = folder / "about" / "about.json"
    path.write_bytes(os.urandom(path.stat().st_size))


def _empty_metadata(folder):
    for path in folder.rglob("_*METADATA"):
        path.write_bytes(b"")


def _half_deleted(folder):
    shutil.rmtree(folder / "state")


DAMAGES = [_truncated, _missing, _flipped, _garbage, _empty_metadata, _half_deleted]


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_kept(tmp_path, harm):
    harm(saved(tmp_path) / "steps" / "2")
    evidence = {p.name: p.read_bytes() for p in (tmp_path / "steps" / "2").rglob("*") if p.is_file()}
    told = Told()
    with opened(tmp_path, told) as checkpoints:
        restored = checkpoints.restore(LIKE)
        assert restored.step == 1 and restored.damaged == (2,) and restored.position == {"taken": 1}
        equal(restored.state, state_of(1))
        [text] = told
        assert "step 2 is damaged" in text and str(tmp_path / "damaged") in text
        [aside] = (tmp_path / "damaged").iterdir()
        assert {p.name: p.read_bytes() for p in aside.rglob("*") if p.is_file()} == evidence
        assert checkpoints.save(2, state_of(22), {})  # the step is done again
        checkpoints.wait()
        equal(checkpoints.restore(LIKE).state, state_of(22))


@pytest.mark.parametrize(
    "harm, what",
    [
        (_truncated, "OUT_OF_RANGE"),
        (_missing, "is missing"),
        (_garbage, "UnicodeDecodeError|JSONDecodeError"),
        (_empty_metadata, "Failed to load checkpointable: state"),
        (_half_deleted, "state"),
    ],
)
def test_without_a_seal_it_is_read_through(tmp_path, harm, what):
    """Killed between the end of a save and its seal: the checkpoint is used, if it can be read."""
    folder = saved(tmp_path / "100 % of a run")
    for path in (folder / "steps").rglob("seal.*"):
        path.unlink()
    told = Told()
    with opened(folder, told) as checkpoints:
        equal(checkpoints.restore(LIKE).state, state_of(2))
    assert not told
    harm(folder / "steps" / "2")
    with opened(folder, told) as checkpoints:
        equal(checkpoints.restore(LIKE).state, state_of(1))
    [text] = told
    assert "step 2 is damaged" in text and re.search(what, text)


def test_all_damaged_is_no_new_beginning(tmp_path):
    for step in 1, 2:
        _flipped(saved(tmp_path / str(step), (step,)) / "steps" / str(step))
        for _ in range(2):  # nor the next time
            with opened(tmp_path / str(step)) as checkpoints, pytest.raises(CheckpointError, match="no checkpoint"):
                checkpoints.restore(LIKE)


def test_what_a_killed_run_had_not_finished_is_removed(tmp_path):
    saved(tmp_path, (1,))
    unfinished = tmp_path / "steps" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with opened(tmp_path) as checkpoints:
        assert checkpoints.newest() == 1
        checkpoints.save(2, state_of(2), {})
    assert not unfinished.exists()


def test_frozen_weights_are_kept_once(tmp_path):
    frozen = {"vision_tower.layers.*.w": jnp.arange(24, dtype=jnp.bfloat16).reshape(2, 3, 4)}
    like = abstract_like(frozen)
    told = Told()
    with opened(tmp_path, told) as checkpoints:
        assert checkpoints.frozen({}) == {} and checkpoints.frozen(like) is None
        checkpoints.keep_frozen(jax.tree.map(lambda x: x + 1, frozen))
    with opened(tmp_path, told) as checkpoints:
        assert checkpoints.frozen(like) is None  # no checkpoint belongs to them: the page may have changed since
        checkpoints.keep_frozen(frozen)
        checkpoints.save(1, state_of(1), {})
    with opened(tmp_path, told) as checkpoints:
        equal(checkpoints.frozen(like), frozen)
        with pytest.raises(CheckpointError, match=r"w is bfloat16\[2, 3, 4\], and the run needs float32"):
            checkpoints.frozen({name: jax.ShapeDtypeStruct(x.shape, jnp.float32) for name, x in like.items()})
    assert not told
    _flipped(tmp_path / "frozen")
    with opened(tmp_path, told) as checkpoints:
        assert checkpoints.frozen(like) is None and "damaged" in told[0]
        checkpoints.keep_frozen(frozen)
        checkpoints.wait()
        equal(checkpoints.frozen(like), frozen)


def test_the_folder_of_another_run(tmp_path):
    saved(tmp_path)
    with opened(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=r"newline is float32.*another run"):
        checkpoints.restore(LIKE._replace(trained={"decoder.layers.*.w": LIKE.trained["decoder.layers.*.w"]}))
    with (
        opened(tmp_path, page=PAGE | {"start": "other"}) as checkpoints,
        pytest.raises(ConfigError, match="another model"),
    ):
        checkpoints.restore(LIKE)
    assert not (tmp_path / "damaged").exists()


def test_another_number_of_hosts(tmp_path, monkeypatch):
    saved(tmp_path)
    monkeypatch.setattr(Checkpoints, "_agree", lambda self, harm: None)
    with opened(tmp_path) as checkpoints:
        checkpoints._hosts = 2
        with pytest.raises(CheckpointError, match="written by 1 hosts, and there are 2"):
            checkpoints.restore(LIKE)


def test_a_changed_page_is_told(tmp_path):
    saved(tmp_path)
    told = Told()
    with opened(tmp_path, told, page=PAGE | {"steps": 20}) as checkpoints:
        assert checkpoints.restore(LIKE).step == 2
    assert told == [
        "Resumed with a changed page: steps was 10 and is 20: learning rates follow the schedule of the new length "
        "from here on."
    ]


def test_a_full_disk_is_an_error_of_ours(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), {})
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(seals, "seal", full)
            checkpoints.save(2, state_of(2), {})
            with pytest.raises(CheckpointError, match="No space left"):
                checkpoints.wait()
            checkpoints._saving = None


def test_names_of_arrays():
    names = list(flattened(state_of(0)))
    assert "trained/decoder.layers.*.w" in names and "average/newline" in names and "step" in names
    assert len(names) == len(set(names)) == len(jax.tree.leaves(state_of(0)))
