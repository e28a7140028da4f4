"""The progress line of a run, and the clock behind its numbers."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from binwrn_jax.errors import printable


class Clock:
    """Training time: seconds over all processes of a run, images/s, data wait, MFU, and time left.

    Evaluation, checkpoints and compilation are left out of images/s, and counted in ``seconds``.

    Attributes:
      images_per_s: of the global batch, between the last two measurements; 0 before there are two.
      data_wait: share of that time in which the loop waited for its next batch, 0 to 1.
    """

    def __init__(
        self, batch_size: int, seconds_before: float = 0.0, mfu_of_image: float | None = None
    ) -> None:
        """Starts it.

        Args:
          batch_size: images of a step.
          seconds_before: of the run's earlier processes.
          mfu_of_image: share of the devices' peak that one image/s uses, see
            `binwrn_jax.graph.cost.mfu_of_image`.
        """
        self._batch_size, self._mfu_of_image = batch_size, mfu_of_image
        self._start = time.monotonic() - seconds_before
        self._window: tuple[float, int] | None = None
        self._waited = 0.0
        self.images_per_s = 0.0
        self.data_wait = 0.0

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the whole run, stops not counted."""
        return time.monotonic() - self._start

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Surrounds the code that gets the next batch."""
        begin = time.monotonic()
        yield
        self._waited += time.monotonic() - begin

    def pause(self) -> None:
        """Leaves out the time until the next `measure`, which starts a new window."""
        self._window = None

    def measure(self, step: int) -> None:
        """Call it when the device has finished ``step``."""
        now = time.monotonic()
        if self._window:
            seconds, images = now - self._window[0], (step - self._window[1]) * self._batch_size
            self.images_per_s, self.data_wait = images / seconds, self._waited / seconds
        self._window, self._waited = (now, step), 0.0

    def values(self) -> dict[str, Any]:
        """For the log: ``images_per_s`` and ``data_wait``, None before two measurements, and ``mfu``, the
        share of the devices' published peak that the convolutions use, where that peak is known."""
        measured = bool(self.images_per_s)
        values: dict[str, Any] = {
            "images_per_s": self.images_per_s if measured else None,
            "data_wait": self.data_wait if measured else None,
        }
        if self._mfu_of_image is not None:
            values["mfu"] = self.images_per_s * self._mfu_of_image if measured else None
        return values

    def rate(self) -> str:
        """``123 images/s, data wait 0.1 %, MFU 45.6 %``; ``? images/s`` before the first measurement."""
        if not self.images_per_s:
            return "? images/s"
        text = f"{self.images_per_s:.0f} images/s, data wait {100 * self.data_wait:.1f} %"
        if self._mfu_of_image is not None:
            text += f", MFU {100 * self.images_per_s * self._mfu_of_image:.1f} %"
        return text

    def left(self, steps: int) -> str:
        """Time that this many steps will take, as ``1:23:45``; ``?`` before the first measurement."""
        if not self.images_per_s:
            return "?"
        return duration(steps * self._batch_size / self.images_per_s)


def duration(seconds: float) -> str:
    """``h:mm:ss``.

    >>> duration(3725)
    '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


class Progress:
    """One line that is rewritten in a terminal, and printed now and then in a log.

    Args:
      stream: where to write.
      every_seconds: least time between two lines of a log.
      silent: write nothing at all.
    """

    def __init__(
        self, stream: TextIO | None = None, every_seconds: float = 10.0, silent: bool = False
    ) -> None:
        self._silent = silent
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._every = 0.2 if self._live else every_seconds
        self._last = float("-inf")
        self._dirty = False

    def update_status(self, line: str) -> None:
        """Shows a passing state; may be skipped if the last one is recent."""
        now = time.monotonic()
        if self._silent or now - self._last < self._every:
            return
        self._last = now
        if self._live:
            self._stream.write(f"\r\x1b[2K{printable(line)}")
            self._dirty = True
        else:
            self._stream.write(printable(line) + "\n")
        self._stream.flush()

    def print_line(self, line: str) -> None:
        """Writes a line that stays."""
        if self._silent:
            return
        self._stream.write("\r\x1b[2K" if self._dirty else "")
        self._dirty = False
        self._stream.write(printable(line) + "\n")
        self._stream.flush()
