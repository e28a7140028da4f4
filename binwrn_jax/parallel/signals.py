"""SIGTERM and Ctrl-C are recorded, so that the loop can save before it ends."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A signal asked the run to end; its state is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 0 if signum == signal.SIGTERM else 128 + signum


class StopRequest:
    """Records SIGTERM and Ctrl-C, so that the loop can save first; a second signal kills the process.

    Attributes:
      vote: turns the number of this process' signal (0: none) into that of the job,
        see `binwrn_jax.parallel.processes.StopVote`.
    """

    def __init__(self) -> None:
        self.vote: Callable[[int], int] = lambda signum: signum
        self._noted = self._decided = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for signum in SIGNALS:
            with contextlib.suppress(ValueError):  # not in the main thread: a notebook's, say
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self._noted = signum
        signal.signal(signum, signal.SIG_DFL)

    def check(self) -> None:
        """Raises `Stopped` if a signal has come; with several processes, in all of them at the same call."""
        self._decided = self._decided or self.vote(self._noted)
        if self._decided:
            raise Stopped(self._decided)
