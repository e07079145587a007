"""Checkpoints of a run: written beside training, whole or not at all, and read back bit for bit.

    checkpoints/frozen/         the weights that are not trained, once
    checkpoints/steps/500/      state/      what a step changes, by Orbax
                                about/      step, seed, resolved page, metrics, form of the arrays
                                position/   where every host stands in the data
                                seal.*      sizes and sums of all files, see `train/seals.py`
    checkpoints/damaged/        checkpoints that could not be read: kept for whoever wants to know why

Arrays are kept under flat names such as `opt/1/mu/decoder.embedding`, so that a checkpoint knows nothing of Python
types, and they are read straight into the sharding that is asked for: the mesh may have another shape. The number of
hosts may not, since rows that a host has begun to fill are part of its position in the data.
"""

import concurrent.futures
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from jax.experimental import multihost_utils
from rich.console import Console

from train import resume, seals
from train.recipe import Safety
from train.weights import Flat
from vila_jax.errors import CheckpointError

Json = dict[str, Any]

_STATE, _ABOUT, _POSITION = "state", "about", "position"


class Restored(NamedTuple):
    """What a run goes on from.

    Attributes:
      step: updates that are done.
      state: as it was asked for.
      position: of this host in the data, see `train.data.stream`.
      metrics: the last before the checkpoint was written.
      damaged: steps whose checkpoints could not be read, newest first; to be told among the metrics.
    """

    step: int
    state: Any
    position: Json
    metrics: Json
    damaged: tuple[int, ...]


class Checkpoints:
    """The checkpoints of one run. To be used from one thread, by all hosts in the same order.

    Args:
      folder: `checkpoints/` of the run; all hosts see the same one.
      safety: how many are kept.
      page: the resolved page of the run, as a JSON object.
      seed: of everything that is drawn; with the step it is the whole state of randomness.
      tell: is called on every host with whatever a person should know; by default the first prints it.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        safety: Safety,
        *,
        page: Mapping[str, Any],
        seed: int,
        tell: Callable[[str], None] | None = None,
    ):
        self.folder = epath.Path(folder).absolute()
        self._page, self._seed, self._tell = dict(page), seed, _print if tell is None else tell
        self._every = safety.save_every
        self._host, self._hosts = jax.process_index(), jax.process_count()
        self._behind = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._frozen: concurrent.futures.Future[None] | None = None
        self._saving: concurrent.futures.Future[None] | None = None
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(safety.keep_last)]
        if safety.keep_every is not None:
            keep.append(policies.EveryNSteps(safety.keep_every))
        self._steps = ocp.training.Checkpointer(
            self.folder / "steps",
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,  # what a killed run had not finished writing
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written behind this step."""
        return step % self._every == 0

    def newest(self) -> int | None:
        """Step of the newest complete checkpoint; whether it can be read is not known."""
        steps = [checkpoint.step for checkpoint in self._steps.checkpoints]
        return max(steps, default=None)

    def keep_frozen(self, frozen: Flat) -> None:
        """Writes the weights that are not trained, in the background; they are complete before any checkpoint is.

        Frozen weights that no checkpoint belongs to are written over.
        """
        if not frozen:
            return
        target = self.folder / "frozen"
        items = {_STATE: frozen, _ABOUT: _Json("about", {"arrays": _forms(frozen)})}
        written = ocp.save_checkpointables_async(target, items, overwrite=True)
        self._frozen = self._behind.submit(self._finish, written, target)

    def frozen(self, like: Mapping[str, Any]) -> Flat | None:
        """The weights that are not trained, as the checkpoints need them.

        None if there is no checkpoint, or if they are damaged, which is told: they are then to be taken from where the
        run began, and kept.

        Args:
          like: form and sharding of every array.

        Raises:
          CheckpointError: those that were kept have another form.
        """
        target = self.folder / "frozen"
        if not like:
            return {}
        if self.newest() is None or not self._exists(target):
            return None
        try:
            return self._read(target, dict(like))[0]
        except _Damaged as harm:
            aside = self._set_aside(target)
            self._tell(f"The frozen weights are damaged ({harm}); they are taken from where the run began. {aside}")
            return None

    def save(self, step: int, state: Any, position: Json, metrics: Mapping[str, float] | None = None) -> bool:
        """Begins to write a checkpoint; returns as soon as `state` may be donated.

        Waits for the one before if that is still being written.

        Args:
          step: updates that are done.
          state: a tree of arrays.
          position: of this host, behind the batches of these steps.

        Returns:
          Whether there was something to write: false if this step has a checkpoint.

        Raises:
          CheckpointError: this one, or the one before, could not be written.
        """
        self.wait()
        if any(checkpoint.step == step for checkpoint in self._steps.checkpoints):
            return False
        flat = flattened(state)
        about = {
            "step": step,
            "seed": self._seed,
            "page": self._page,
            "hosts": self._hosts,
            "arrays": _forms(flat),
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
        }
        items = {
            _STATE: flat,
            _ABOUT: _Json("about", about),
            _POSITION: _Json(f"{self._host}-of-{self._hosts}", position, every_host=True),
        }
        try:
            written = self._steps.save_checkpointables_async(step, items, force=True)
        except OSError as error:
            raise _unwritten(self.folder, error) from error
        self._saving = self._behind.submit(self._finish, written, self.folder / "steps" / str(step))
        return True

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          CheckpointError: something could not be written.
        """
        for pending in (self._frozen, self._saving):
            try:
                if pending is not None:
                    pending.result()
            except (OSError, ValueError, RuntimeError) as error:
                raise _unwritten(self.folder, error) from error
        self._frozen = self._saving = None

    def restore(self, like: Any) -> Restored | None:
        """The newest checkpoint that can be read; None if the run has none.

        A damaged one is told, put aside and passed over for the one before.

        Args:
          like: the tree of the state with `jax.ShapeDtypeStruct`s, shardings included, as leaves.

        Raises:
          ConfigError: the page has changed in a way that it may not, see `train/resume.py`.
          CheckpointError: the state has another form; another number of hosts; all checkpoints are damaged.
        """
        damaged: list[int] = []
        while (step := self.newest()) is not None:
            try:
                return self._restore(step, like, tuple(damaged))
            except _Damaged as harm:
                damaged.append(step)
                aside = self._set_aside(self.folder / "steps" / str(step))
                self._tell(f"The checkpoint of step {step} is damaged ({harm}); the one before is used. {aside}")
        if self._exists(self.folder / "damaged"):
            raise CheckpointError(
                "no checkpoint of this run can be read",
                where=str(self.folder),
                fix="Look into `damaged`; to begin from the start, remove it or give the run another name.",
            )
        return None

    def close(self) -> None:
        """Waits, and lets go of threads."""
        try:
            self.wait()
        finally:
            self._behind.shutdown()
            self._steps.close()

    def _finish(self, written: Any, folder: epath.Path) -> None:
        """What happens behind training: Orbax's writing, then our seal on it."""
        if written is not None:
            written.result()
        seals.seal(folder, host=self._host, hosts=self._hosts)

    def _restore(self, step: int, like: Any, damaged: tuple[int, ...]) -> Restored:
        folder = self.folder / "steps" / str(step)
        flat, about, position = self._read(folder, flattened(like), position=True)
        state = jax.tree.unflatten(jax.tree.structure(like), list(flat.values()))
        return Restored(step, state, position, about["metrics"], damaged)

    def _read(self, folder: epath.Path, like: Json, *, position: bool = False) -> tuple[Any, Json, Json]:
        """Arrays in the order of `like`, what is written about them, and the position, if there is one.

        Raises:
          _Damaged: this folder cannot be read, but another may.
        """
        sealed = seals.is_sealed(folder)
        harm = seals.damage(folder, host=self._host, hosts=self._hosts)
        if harm is None and not sealed:
            harm = seals.unreadable(folder / _STATE, host=self._host, hosts=self._hosts)
        self._agree(harm)
        try:
            about = json.loads((folder / _ABOUT / "about.json").read_text())
            if position:
                self._check_hosts(about["hosts"], folder)
                for line in resume.changes(about["page"], self._page):
                    self._tell(f"Resumed with a changed page: {line}.")
            _check_forms(about["arrays"], _forms(like), folder)
            own = _Json(f"{self._host}-of-{self._hosts}", every_host=True)
            wanted = {_STATE: like} | ({_POSITION: own} if position else {})
            arrays = ocp.load_checkpointables(folder, wanted)[_STATE]
        except (OSError, ValueError, KeyError, TypeError) as error:
            if sealed:  # the files are what was written: it is not they that are wrong
                raise
            raise _Damaged(f"{type(error).__name__}: {error}") from error
        return {name: arrays[name] for name in like}, about, own.value

    def _check_hosts(self, hosts: int, folder: epath.Path) -> None:
        if hosts != self._hosts:
            raise CheckpointError(
                f"was written by {hosts} hosts, and there are {self._hosts}",
                where=str(folder),
                fix=f"Go on with {hosts} hosts, whose mesh may have another shape: every host's position in the data "
                "holds rows that it has begun to fill, which cannot be dealt out anew.",
            )

    def _agree(self, harm: str | None) -> None:
        """Raises `_Damaged` on all hosts if any has found harm."""
        found = harm is not None
        if self._hosts > 1:
            found = bool(np.any(multihost_utils.process_allgather(np.asarray(found))))
        if found:
            raise _Damaged(harm or "found by another host")

    def _exists(self, folder: epath.Path) -> bool:
        """Whether a folder exists, as the first host sees it."""
        found = folder.exists()
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(found))) if self._hosts > 1 else found

    def _set_aside(self, folder: epath.Path) -> str:
        """Moves a damaged folder to where it is neither read nor counted nor removed."""
        target = self.folder / "damaged" / f"{folder.name}.{int(time.time())}"
        if self._host == 0:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
        if self._hosts > 1:
            multihost_utils.sync_global_devices("vila_jax.checkpoints.set_aside")
        self._steps.reload()
        return f"It lies in {target} now."


class _Damaged(Exception):
    """A checkpoint that cannot be read; the one before may be."""


class _Json:
    """A JSON object of a checkpoint (Orbax's `StatefulCheckpointable`): one file, or one of every host."""

    def __init__(self, name: str, value: Json | None = None, *, every_host: bool = False):
        self._file, self._every_host = f"{name}.json", every_host
        self.value: Json = {} if value is None else value

    async def save(self, directory: Any) -> Awaitable[None]:
        text = json.dumps(self.value)

        async def write() -> None:
            folder = await directory.await_creation()
            if self._every_host or jax.process_index() == 0:
                (folder / self._file).write_text(text)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        async def read() -> None:
            self.value = json.loads((directory / self._file).read_text())

        return read()


def flattened(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, `opt/1/mu/decoder.embedding`, in the order of the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def abstract_like(tree: Any) -> Any:
    """Form and sharding of every array of a tree: what `Checkpoints.restore` asks for."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _forms(flat: Mapping[str, Any]) -> dict[str, str]:
    """`float32[8, 16]` of every array."""
    return {name: f"{np.dtype(x.dtype).name}{list(x.shape)}" for name, x in flat.items()}


def _check_forms(saved: Mapping[str, str], asked: Mapping[str, str], folder: epath.Path) -> None:
    wrong = sorted(name for name in saved.keys() | asked.keys() if saved.get(name) != asked.get(name))
    if wrong:
        name = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{name} is {saved.get(name, 'not there')}, and the run needs {asked.get(name, 'none')}{more}",
            where=str(folder),
            fix="The folder is of another run, or the model of this one has changed; give the run another name.",
        )


def _unwritten(folder: epath.Path, error: BaseException) -> CheckpointError:
    what = f"a checkpoint could not be written: {error}"
    fix = "Make room, or mend the file system, and start the same command again: it goes on from the last checkpoint."
    return CheckpointError(what, where=str(folder), fix=fix)


def _print(text: str) -> None:
    if jax.process_index() == 0:
        Console(stderr=True, markup=False, highlight=False).print(text, soft_wrap=True)
