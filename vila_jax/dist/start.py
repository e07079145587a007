"""The door to a run on several hosts: every process says who it is before JAX looks for devices."""

import os
from collections.abc import Mapping

import jax

from vila_jax.errors import ConfigError


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes of a run; on one host nothing happens. To be called before anything else of JAX.

    Without arguments the cluster tells: JAX finds TPU pods, SLURM, Open MPI, and jobs of Kubernetes (for these its extra
    `jax[k8s]` is needed). On SLURM it gives every task one device, so that there has to be a task for each.

    Args:
      coordinator: `HOST:PORT` of process 0, which the others can reach.
      processes: how many there are.
      process: number of this one, from 0.

    Raises:
      ConfigError: arguments that do not fit together, or processes that do not find each other.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        _start_detected()
        return
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not given",
            where="several hosts",
            fix="Give coordinator, processes and process together, or none of them where the cluster tells.",
        )
    assert coordinator is not None and processes is not None and process is not None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"got {coordinator!r}", where="coordinator", fix="Write HOST:PORT, such as 10.0.0.1:1234.")
    if not 0 <= process < processes:
        raise ConfigError(
            f"{process} is none of {processes} processes", where="process", fix=f"Count from 0 to {processes - 1}."
        )
    if processes > 1:
        _initialize(coordinator_address=coordinator, num_processes=processes, process_id=process)


def _start_detected() -> None:
    """Starts what JAX detects, and nothing where it detects nothing."""
    if _is_alone(os.environ) or jax.distributed.is_initialized():
        return
    try:
        _initialize()
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise _refused(error) from error


def _is_alone(environment: Mapping[str, str]) -> bool:
    """Whether this is the only process although a cluster runs it.

    JAX would bind the one task of a SLURM step to one device of its host, and look in vain for the job of a pod of
    Kubernetes that belongs to none.
    """
    in_job = any(name in environment for name in ("JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES"))
    is_lone_pod = "KUBERNETES_SERVICE_HOST" in environment and not in_job
    return environment.get("SLURM_NTASKS") == "1" or is_lone_pod


def _initialize(**arguments: str | int) -> None:
    try:
        jax.distributed.initialize(**arguments)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise _refused(error) from error


def _refused(error: Exception) -> ConfigError:
    return ConfigError(
        str(error).splitlines()[0] if str(error) else type(error).__name__,
        where="several hosts",
        fix="Check that all processes were started, before any other use of JAX, with one coordinator that all reach.",
    )
