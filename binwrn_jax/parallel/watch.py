"""The failure watch: if one process of a job fails or dies, all end soon with the same message.

Each process keeps a connection to process 0 during the job. It carries regular beats, and failures, which
process 0 forwards to all. If a connection ends or stays silent, its process is dead.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import selectors
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import NoReturn

from binwrn_jax.errors import UserError, explain, print_traceback, printable
from binwrn_jax.parallel.rendezvous import Line
from binwrn_jax.parallel.signals import Stopped

BEAT_SECONDS = 2.0
# A process without a sign of life for this many beats of the watching process is dead, or its machine. Beats,
# not seconds: a process that was suspended itself reports no other as dead.
SILENT_BEATS = 11
FAREWELL_SECONDS = 10.0
_AGAIN = "run the same command to go on from the last checkpoint"

_watch: Watch | None = None  # where there are several processes


class Watch:
    """A thread that ends this process when another one of the job fails or dies.

    Args:
      lines: connections by process: to all others in process 0, to process 0 in the others.
      index: of this process.
      count: number of processes.
    """

    def __init__(self, lines: dict[int, Line], index: int, count: int) -> None:
        self._lines, self._index, self._count = lines, index, count
        self._silent = dict.fromkeys(lines, 0)  # beats since the last sign of life
        self._ending = threading.Lock()
        self._over = False
        self._left: set[int] = set()  # those that have announced it
        threading.Thread(target=self._listen, daemon=True).start()

    def finish(self) -> None:
        """Tells the others that this process leaves without an error; from now on they may leave too."""
        if not self._over:
            self._over = True
            for line in self._lines.values():
                line.send({"leaves": self._index})

    def fail(self, message: str, code: int) -> NoReturn:
        """Ends all processes with this message and exit code."""
        if self._index == 0:
            self._end(0, message, code)
        self._lines[0].send({"failure": [self._index, message, code]})
        time.sleep(FAREWELL_SECONDS)  # process 0 answers, which ends this process
        _exit(message, code)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for index, line in self._lines.items():
                line.socket.setblocking(False)
                selector.register(line.socket, selectors.EVENT_READ, index)
            next_beat = time.monotonic()
            while True:
                for key, _ in selector.select(max(next_beat - time.monotonic(), 0)):
                    if self._read(key.data):
                        selector.unregister(key.fileobj)
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + BEAT_SECONDS
                    self._beat()

    def _read(self, index: int) -> bool:
        """Reads the messages of a process; True if its connection has ended without a failure."""
        messages = self._lines[index].receive()
        if messages is None:
            if not self._over and index not in self._left:
                self._lost(index)
            return True
        self._silent[index] = 0
        for message in messages:
            if "failure" in message:
                self._end(*message["failure"])
            if "leaves" in message:
                self._left.add(index)
        return False

    def _beat(self) -> None:
        for index, line in self._lines.items():
            line.send({})
            self._silent[index] += 1
            if self._silent[index] > SILENT_BEATS and not self._over and index not in self._left:
                self._lost(index)

    def _lost(self, index: int) -> NoReturn:
        who = f"process {index} of {self._count}"
        self._end(None, f"{who} has died, or its machine: the job ends; {_AGAIN}", 1, lost=index)

    def _end(self, index: int | None, message: str, code: int, lost: int | None = None) -> NoReturn:
        """Ends this process; if it is process 0, it ends all others first."""
        self._ending.acquire()  # never released: a second caller waits for the end
        if self._index == 0:
            others = [line for other, line in self._lines.items() if other != lost]
            for line in others:
                line.send({"failure": [index, message, code]})
            _see_them_off(others)
        if index not in (None, self._index):
            message = f"process {index} of {self._count}: {message}"
        _exit(message, code)


def _see_them_off(lines: Iterable[Line]) -> None:
    """Waits until the others have closed their connections, since they would report the loss of process 0."""
    deadline = time.monotonic() + FAREWELL_SECONDS
    for line in lines:
        with contextlib.suppress(OSError):
            line.socket.settimeout(max(deadline - time.monotonic(), 0.1))
            while line.socket.recv(1 << 16):
                pass


def start_watch(lines: dict[int, Line], index: int, count: int) -> Watch:
    """Starts the watch of this process; see `Watch`."""
    global _watch
    _watch = Watch(lines, index, count)
    atexit.register(_watch.finish)
    return _watch


@contextlib.contextmanager
def abort_all_on_error() -> Iterator[None]:
    """If this process fails, ends all processes with its message; for code that holds shared resources.

    `binwrn_jax.parallel.processes.job` does this too, but before that a checkpoint would wait for the others.
    The exit code of all is 2 after an error of the user, 1 otherwise.
    """
    try:
        yield
    except Stopped:
        raise
    except BaseException as error:
        if _watch is None:
            raise
        if not isinstance(error, UserError) and _lost_another(error):
            wait_for_failure_report()
        print_traceback(error)
        failure = explain(error)
        _watch.fail(failure.message, failure.code)


def wait_for_failure_report() -> None:
    """After an error that looks like the death of another process, waits for the watch to end this process.

    Returns if no process has died.
    """
    time.sleep((SILENT_BEATS + 3) * BEAT_SECONDS)


def _lost_another(error: BaseException) -> bool:
    """Whether an exception looks like the death of another process."""
    words = ("Gloo", "NCCL", "Connection", "coordination service", "Socket closed")
    return any(word in str(error) for word in words)


def _exit(message: str, code: int) -> NoReturn:
    """Ends this process at once; a normal exit would wait for the others, and they for this process."""
    try:
        with contextlib.suppress(OSError, ValueError):  # a closed pipe: `... | head`
            sys.stdout.flush()
        with contextlib.suppress(OSError, ValueError):
            print(f"error: {printable(message)}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)
