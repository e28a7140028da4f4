"""The identity of this process in its job."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

# Private names of JAX, since there are no public ones. `global_state` has the index of this process before
# devices are in use (`jax.process_index` would start them). `ClusterEnv` has the job that
# `jax.distributed.initialize` would find, before that function waits silently for the other processes.
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state

from binwrn_jax.errors import UserError

TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Processes:
    """How the processes of a job find each other; the defaults leave it to JAX.

    Attributes:
      coordinator: ``host:port`` of process 0, where it will listen.
      count: number of processes.
      index: of this one, 0 to count - 1.
      timeout: seconds to wait for the others.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    timeout: float = TIMEOUT_SECONDS


@dataclass(frozen=True)
class Place:
    """The place of this process in a job of several.

    Attributes:
      host: name or address of the machine of process 0.
      port: where process 0 listens.
      count: number of processes.
      index: of this one, 0 to count - 1.
      local_devices: numbers of the GPUs that are its own; None: all of its machine.
    """

    host: str
    port: int
    count: int
    index: int
    local_devices: Sequence[int] | None = None

    @property
    def address(self) -> str:
        """``host:port`` of process 0."""
        return f"{self.host}:{self.port}"


def process_index() -> int:
    """Index of this process; 0 if it is the only one."""
    return global_state.process_id


def process_count() -> int:
    """Number of processes of the job."""
    return global_state.num_processes


def is_primary() -> bool:
    """Whether this is process 0, which writes."""
    return process_index() == 0


def find_place(processes: Processes) -> Place | None:
    """The job by the flags or, without flags, by a TPU pod, SLURM, Open MPI or Kubernetes; None for no job.

    Raises:
      UserError: some but not all of the flags are given, or they make no sense.
    """
    coordinator, count, index = processes.coordinator, processes.count, processes.index
    given = [value is not None for value in (coordinator, count, index)]
    if not 0 < processes.timeout < 86400:
        raise UserError(f"--process_timeout is {processes.timeout:g}: give seconds, a day at most")
    if count == 1 and index in (None, 0):
        return None
    if any(given) and not all(given):
        raise UserError("give --coordinator host:port, --process_count and --process_index together, or none")
    local_devices: Sequence[int] | None = None
    if not any(given):
        if os.environ.get("SLURM_NTASKS") == "1" or os.environ.get("OMPI_COMM_WORLD_SIZE") == "1":
            return None  # and keeps all GPUs of its machine; JAX would give it the first one only
        coordinator, count, index, local_devices = _detect(processes.timeout)
        if coordinator is None or count is None or index is None or count == 1:
            return None
    assert coordinator is not None and count is not None and index is not None
    if count < 1 or not 0 <= index < count:
        raise UserError(f"--process_index {index} is not among 0 to {count - 1}, of --process_count {count}")
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator {coordinator!r} is not host:port, such as 10.0.0.1:1234")
    return Place(host.strip("[]"), int(port), count, index, local_devices)


def _detect(timeout: float) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    try:
        return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(timeout))
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"the cluster's environment variables make no sense ({reason}): correct them, or give "
            "--process_count=1 for a process of its own"
        ) from error
