"""Several processes as one job: they find each other, decide together, and end together.

A TPU pod has a process for each host, a GPU cluster one for each host or each GPU. All run the same
program; process 0 alone writes all files but checkpoints. Their messages (few words) go through the key-value
store of JAX's coordination service, which runs in process 0.

With one process every function of this module returns at once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# JAX has no public way to its key-value store; Orbax goes the same way.
from jax._src.distributed import global_state
from jax.sharding import Mesh

from binwrn_jax.errors import UserError
from binwrn_jax.parallel import sharding
from binwrn_jax.parallel.identity import (
    Place,
    Processes,
    find_place,
    is_primary,
    process_count,
    process_index,
)
from binwrn_jax.parallel.relay import open_relay
from binwrn_jax.parallel.rendezvous import meet
from binwrn_jax.parallel.signals import SIGNALS, Stopped
from binwrn_jax.parallel.watch import Watch, abort_all_on_error, start_watch

__all__ = [
    "Processes",
    "StopVote",
    "abort_all_on_error",
    "broadcast_from_primary",
    "initialize",
    "is_primary",
    "job",
    "primary_first",
    "process_count",
    "process_index",
    "wait_for_all",
]

# If there is nothing to wait for, the watch ends the waiting process.
WAIT_MS = 7 * 24 * 3600 * 1000
_FIRST, _ALL, _START, _END = "binwrn/first/", "binwrn/all/", "binwrn/start", "binwrn/end"
_calls = itertools.count()


def initialize(processes: Processes = Processes()) -> Watch | None:  # noqa: B008, immutable
    """Joins the processes of the job; call it before any use of a device.

    Without flags JAX looks for a TPU pod, SLURM, Open MPI or Kubernetes; where there is none, or it
    has started one process only, this process is the whole job. While processes are missing, a line names
    them.

    Returns:
      The watch over the other processes; None where there are none.

    Raises:
      UserError: some but not all of the addresses are given, or they make no sense.
      JobFailure: not all processes come in time.
    """
    place = find_place(processes)
    if place is None:
        return None
    watch = start_watch(meet(place, processes.timeout), place.index, place.count)
    with abort_all_on_error():
        _join_jax(place, processes.timeout)
    return watch


def _join_jax(place: Place, timeout: float) -> None:
    # JAX would take SIGTERM for itself; see `StopVote`.
    jax.config.update("jax_enable_preemption_service", False)
    address = place.address if place.index == 0 else f"127.0.0.1:{open_relay(place.host, place.port)}"
    try:
        jax.distributed.initialize(
            address,
            place.count,
            place.index,
            place.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=int(timeout),
        )
        _connect_devices()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the processes of the job cannot start JAX together ({reason})") from error


def _connect_devices() -> None:
    """Lets the CPU devices of all processes connect, now that all processes are here.

    They would do so at the first sum over them, and gloo gives up where one process comes there 30 s after
    another: on a busy machine compiling takes longer. Once they are connected, sums wait.
    """
    if jax.default_backend() != "cpu":
        return
    mesh = sharding.make_mesh()
    ones = sharding.put(np.ones(mesh.size, np.float32), sharding.split(mesh))
    total = jax.jit(lambda x: x.sum(), out_shardings=sharding.replicated(mesh)).lower(ones).compile()
    client: Any = global_state.client
    client.wait_at_barrier(_START, WAIT_MS)
    total(ones).block_until_ready()


@contextlib.contextmanager
def job(processes: Processes = Processes()) -> Iterator[None]:  # noqa: B008, immutable
    """Joins the job, and ends with it: if one process fails or dies, all end with its message.

    All exit with code 2 after a `UserError` of a process, and with 1 after another failure or a death.
    """
    watch = initialize(processes)
    if watch is None:
        yield
        return
    if not is_primary():
        logging.getLogger("binwrn_jax").setLevel(logging.WARNING)
    with abort_all_on_error():
        try:
            yield
        except Stopped:
            _leave(watch)
            raise
    _leave(watch)


def _leave(watch: Watch) -> None:
    """Waits for the other processes, and leaves the job."""
    _wait_at(_END)
    watch.finish()
    jax.distributed.shutdown()


def _wait_at(name: str) -> None:
    client: Any = global_state.client
    try:
        client.wait_at_barrier(name, WAIT_MS)
    except RuntimeError:
        threading.Event().wait()  # one of them has failed: the watch ends this process


def wait_for_all() -> None:
    """Returns when all processes have come here; if one fails before, all end.

    Every process must make the same calls in the same order.
    """
    if process_count() > 1:
        _wait_at(f"{_ALL}{next(_calls)}")


def broadcast_from_primary(function: Callable[[], Any]) -> Any:
    """Runs ``function`` in process 0 alone and returns its result in all processes.

    Every process must make the same calls in the same order.

    Args:
      function: returns a value that JSON can carry (tuples become lists). If it raises, the job ends.
    """
    if process_count() == 1:
        return function()
    key = f"{_FIRST}{next(_calls)}"
    client: Any = global_state.client
    if is_primary():
        text = json.dumps(function())
        client.key_value_set(key, text)
    else:
        text = client.blocking_key_value_get(key, WAIT_MS)
    return json.loads(text)


def primary_first(function: Callable[[], Any]) -> Any:
    """Runs ``function`` in process 0, then in the others, which find its files on disk."""
    if is_primary():
        value = function()
        broadcast_from_primary(lambda: None)
        return value
    broadcast_from_primary(lambda: None)
    return function()


class StopVote:
    """Turns signals of single processes into a decision of all, at the same step.

    Called once a step by every process with the number of the signal that came to it (0: none), gives
    the same answer to all: a signal that some process had ``lag`` calls ago, or 0. Each call sends a maximum
    over one number per device through the devices, behind the steps under way, and reads the one of
    ``lag`` calls ago, which is there already, so no process waits.

    Args:
      mesh: of all devices.
      lag: calls between a vote and its result.
    """

    def __init__(self, mesh: Mesh, lag: int) -> None:
        divided = sharding.split(mesh)
        # Each process fills in the numbers of its own devices.
        self._ballots = {
            signum: sharding.put(np.full(mesh.size, signum, np.int32), divided) for signum in (0, *SIGNALS)
        }
        self._maximum = jax.jit(lambda votes: votes.max(), out_shardings=sharding.replicated(mesh))
        self._votes: deque[jax.Array] = deque()
        self._lag = lag

    def __call__(self, signum: int) -> int:
        """See above."""
        self._votes.append(self._maximum(self._ballots[signum]))
        return int(self._votes.popleft()) if len(self._votes) > self._lag else 0
