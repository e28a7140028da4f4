"""Several processes as one job: they find each other, decide together, and end together.

A TPU pod has a process for each host, a GPU cluster one for each host or each GPU. All run the same
program; process 0 alone writes what is not a checkpoint. What they tell each other here (few words) goes
through the key-value store of JAX's coordination service, which lives in process 0.

With one process, every function here does the obvious at once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

# JAX has no public way to its key-value store; Orbax goes the same way.
from jax._src.distributed import global_state
from jax.sharding import Mesh

from binwrn_jax.errors import UserError
from binwrn_jax.parallel import sharding
from binwrn_jax.parallel.signals import SIGNALS, Stopped

BEAT_SECONDS = 2.0
# A process that gives no sign of life for so many beats of process 0 is dead; beats and not seconds, so that
# process 0 accuses nobody after it has slept itself. JAX would end the job after 100 s, with a page of C++.
SILENT_BEATS = 15
SUSPECT_BEATS = 5  # the same where a connection broke
FAREWELL_SECONDS = 10.0
WAIT_MS = 7 * 24 * 3600 * 1000  # whoever waits is ended by `_Watch` where there is nothing to wait for

_FAILURE, _ALIVE, _SUSPECT, _ENDED, _FIRST, _END = (
    f"binwrn/{name}" for name in ("failure", "alive/", "suspect/", "ended/", "first/", "end")
)
_AGAIN = "run the same command to go on from the last checkpoint"
_first_calls = itertools.count()
_watch: _Watch | None = None  # where there are several processes


class Processes(NamedTuple):
    """How the processes of a job find each other; the defaults leave it to JAX.

    Attributes:
      coordinator: ``host:port`` of process 0, where it will listen.
      count: number of processes.
      index: of this one, 0 to count - 1.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


def process_index() -> int:
    """Which process this is; 0 where there is one."""
    return global_state.process_id


def process_count() -> int:
    """Number of processes of the job."""
    return global_state.num_processes


def is_first() -> bool:
    """Whether this is the process that writes."""
    return process_index() == 0


def initialize(processes: Processes = Processes()) -> None:  # noqa: B008, immutable
    """Joins the processes of the job; to be called before any use of a device.

    With nothing given, JAX looks for a TPU pod, SLURM, Open MPI or Kubernetes; where there is none, or it
    has started one process only, this process is the whole job.

    Raises:
      UserError: some but not all of the addresses are given, they make no sense, or not all come.
    """
    coordinator, count, index = processes
    given = [value is not None for value in processes]
    if count == 1 and index in (None, 0):
        return
    if any(given) and not all(given):
        raise UserError("give --coordinator host:port, --process_count and --process_index together, or none")
    if coordinator is not None and count is not None and index is not None:
        if count < 1 or not 0 <= index < count:
            raise UserError(
                f"--process_index {index} is not among 0 to {count - 1}, of --process_count {count}"
            )
        if not coordinator.rpartition(":")[2].isdigit() or ":" not in coordinator:
            raise UserError(f"--coordinator {coordinator!r} is not host:port, such as 10.0.0.1:1234")
    elif os.environ.get("SLURM_NTASKS") == "1" or os.environ.get("OMPI_COMM_WORLD_SIZE") == "1":
        return  # and keeps all GPUs of its machine; JAX would give it the first one only
    # JAX would take SIGTERM for itself; see `StopVote`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            cluster_detection_method="deactivate" if all(given) else None,
        )
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise
    except RuntimeError as error:
        if not any(given) and "must be called before" in str(error):
            return  # a notebook, say, in which devices are in use already
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the processes of the job did not find each other ({reason})") from error


@contextlib.contextmanager
def job(processes: Processes = Processes()) -> Iterator[None]:  # noqa: B008, immutable
    """Joins the job, and ends with it: where one process fails or dies, all end, with its message.

    The exit code of all is 2 where a process met a `UserError` and 1 where one failed otherwise or died.
    """
    initialize(processes)
    if process_count() == 1:
        yield
        return
    if not is_first():
        logging.getLogger("binwrn_jax").setLevel(logging.WARNING)
    global _watch
    _watch = _Watch()
    _watch.start()
    with failing_together():
        try:
            yield
        except Stopped:
            _watch.finish()
            raise
    _watch.finish()


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Where this process fails, ends all with its message; for code that holds what cannot be let go alone.

    `job` does so too, but on the way there a checkpoint would wait for the other processes.
    """
    try:
        yield
    except Stopped:
        raise
    except BaseException as error:
        if _watch is None:
            raise
        if isinstance(error, UserError):
            _watch.fail(str(error), 2)
        if _lost_another(error):
            _watch.expect_the_dead()
        sys.excepthook(type(error), error, error.__traceback__)
        _watch.fail(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", 1)


def _lost_another(error: BaseException) -> bool:
    """Whether an exception looks like the death of another process."""
    text = str(error)
    return any(
        word in text for word in ("Gloo", "NCCL", "Connection", "coordination service", "Socket closed")
    )


class _Watch:
    """Two threads: one tells that this process lives, one waits for news of a failure and ends it.

    Process 0 also looks whether all others live. Where it is itself that dies, the waiting ends with it.
    """

    def __init__(self) -> None:
        self._client: Any = global_state.client
        self._over = threading.Event()

    def start(self) -> None:
        for target in (self._beat, self._wait_for_failure):
            threading.Thread(target=target, daemon=True).start()

    def finish(self) -> None:
        """Waits for the other processes, and leaves the job."""
        try:
            self._client.wait_at_barrier(_END, WAIT_MS)
        except RuntimeError:
            threading.Event().wait()  # one of them has failed: the thread ends this process
        self._over.set()
        jax.distributed.shutdown()

    def fail(self, message: str, code: int) -> NoReturn:
        """Ends all processes with this message and exit code."""
        self._post(process_index(), message, code)
        while True:
            time.sleep(1)  # the thread ends this process, as all others

    def expect_the_dead(self) -> None:
        """A connection broke: waits until it is known whose, which ends this process; else returns."""
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"{_SUSPECT}{process_index()}", "", allow_overwrite=True)
        time.sleep((SILENT_BEATS + 5) * BEAT_SECONDS)

    def _post(self, index: int | None, message: str, code: int) -> None:
        with contextlib.suppress(RuntimeError):  # another one was first to fail
            self._client.key_value_set(_FAILURE, json.dumps([index, message, code]))

    def _wait_for_failure(self) -> None:
        try:
            index, message, code = json.loads(self._client.blocking_key_value_get(_FAILURE, WAIT_MS))
        except RuntimeError:
            if not self._over.is_set():
                _exit(f"process 0 of {process_count()} has died, or its machine: the job ends; {_AGAIN}", 1)
            return
        if index not in (None, process_index()):
            message = f"process {index} of {process_count()}: {message}"
        # Process 0 has the store: it must be the last to go.
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"{_ENDED}{process_index()}", "")
            deadline = time.monotonic() + FAREWELL_SECONDS
            while is_first() and time.monotonic() < deadline:
                if len(self._client.key_value_dir_get(_ENDED)) == process_count():
                    break
                time.sleep(0.1)
        _exit(message, code)

    def _beat(self) -> None:
        latest: dict[int, tuple[str, int]] = {}  # by process: its last beat, and ours when that was new
        for beat in itertools.count():
            if self._over.wait(BEAT_SECONDS):
                return
            with contextlib.suppress(RuntimeError):  # the other thread tells of it
                self._client.key_value_set(f"{_ALIVE}{process_index()}", str(beat), allow_overwrite=True)
                if is_first():
                    self._look_for_the_dead(latest, beat)

    def _look_for_the_dead(self, latest: dict[int, tuple[str, int]], now: int) -> None:
        patience = SUSPECT_BEATS if self._client.key_value_dir_get(_SUSPECT) else SILENT_BEATS
        beats = {int(key.rpartition("/")[2]): value for key, value in self._client.key_value_dir_get(_ALIVE)}
        for index in range(process_count()):
            beat = beats.get(index, "")
            if index not in latest or latest[index][0] != beat:
                latest[index] = (beat, now)
            elif now - latest[index][1] > patience:
                who = f"process {index} of {process_count()}"
                self._post(None, f"{who} has died, or its machine: the job ends; {_AGAIN}", 1)


def _exit(message: str, code: int) -> NoReturn:
    """Ends this process at once: the usual way out would wait for the others, and they for this one."""
    with contextlib.suppress(OSError, ValueError):  # the reader of our output has gone: `... | head`
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(code)


def from_first(function: Callable[[], Any]) -> Any:
    """What ``function`` returns in process 0, in all processes; the others do not run it.

    Every process must come here, in the same order of calls.

    Args:
      function: returns a value that JSON can carry (tuples become lists). If it raises, the job ends.
    """
    if process_count() == 1:
        return function()
    key = f"{_FIRST}{next(_first_calls)}"
    client: Any = global_state.client
    if is_first():
        text = json.dumps(function())
        client.key_value_set(key, text)
    else:
        text = client.blocking_key_value_get(key, WAIT_MS)
    return json.loads(text)


def first_then_others(function: Callable[[], Any]) -> Any:
    """Runs ``function`` in process 0, then in the others, which find on disk what it has left there."""
    if is_first():
        value = function()
        from_first(lambda: None)
        return value
    from_first(lambda: None)
    return function()


class StopVote:
    """Signals of single processes made a decision of all, at the same step.

    Called once a step by every process with the number of the signal that came to it (0: none), gives
    the same answer to all: a signal that some process had ``lag`` calls ago, or 0. Each call sends a maximum
    over one number per device through the devices, behind the steps under way, and reads the one of
    ``lag`` calls ago, which is there already: nobody waits.

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
