"""What a run tells: metrics.jsonl, TensorBoard, the progress line, the clock and the curves."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from binwrn_jax.errors import require
from binwrn_jax.system.files import replace_file

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """The records of a ``metrics.jsonl`` up to the first line that is none: a kill or a full disk cut it."""
    records: list[Record] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not {"kind", "step"} <= record.keys():
            break
        records.append(record)
    return records


class MetricsLog:
    """Appends records to ``metrics.jsonl``, and to TensorBoard event files if asked.

    A resumed run drops what was logged after the step that it resumes from, so that each step
    is in the file once.

    Attributes:
      records: all records of the run up to now, those of earlier processes included.
    """

    def __init__(self, workdir: Path, resume_step: int, tensorboard: bool = False) -> None:
        path = workdir / "metrics.jsonl"
        self.records = [record for record in read_records(path) if record["step"] <= resume_step]
        replace_file(path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._file = open(path, "a")  # noqa: SIM115, lives as long as the run
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Adds one record and flushes it, epochs and evaluations to the disk.

        Numbers that are not finite, which JSON has not, become null.
        """
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        record = {"kind": kind, "step": step, **values}
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if kind != "train":
            os.fsync(self._file.fileno())  # a mounted bucket keeps nothing before
        if self._board:
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def of_kind(self, kind: str) -> list[Record]:
        """The records of one kind: ``train``, ``epoch`` or ``eval``."""
        return [record for record in self.records if record["kind"] == kind]

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board:
            self._board.close()


class NoLog(MetricsLog):
    """That of the processes that write nothing."""

    def __init__(self) -> None:
        self.records = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class Clock:
    """Training time: seconds over all processes of a run, images/s, time left, and what the rest says of it.

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
        """Around what gets the next batch."""
        begin = time.monotonic()
        yield
        self._waited += time.monotonic() - begin

    def pause(self) -> None:
        """Leaves out the time until the next `measure`, which starts a new window."""
        self._window = None

    def measure(self, step: int) -> None:
        """To be called when the device has finished ``step``."""
        now = time.monotonic()
        if self._window:
            seconds, images = now - self._window[0], (step - self._window[1]) * self._batch_size
            self.images_per_s, self.data_wait = images / seconds, self._waited / seconds
        self._window, self._waited = (now, step), 0.0

    def values(self) -> Record:
        """For the log: ``images_per_s`` and ``data_wait``, None before two measurements, and ``mfu``, the
        share of the devices' published peak that the convolutions use, where that peak is known."""
        measured = bool(self.images_per_s)
        values: Record = {
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

    def show(self, line: str) -> None:
        """Shows a passing state; may be skipped if the last one is recent."""
        now = time.monotonic()
        if self._silent or now - self._last < self._every:
            return
        self._last = now
        if self._live:
            self._stream.write(f"\r\x1b[2K{line}")
            self._dirty = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def say(self, line: str) -> None:
        """Writes a line that stays."""
        if self._silent:
            return
        self._stream.write("\r\x1b[2K" if self._dirty else "")
        self._dirty = False
        self._stream.write(line + "\n")
        self._stream.flush()


def draw_curves(path: Path, records: list[Record], title: str) -> None:
    """Writes ``curves.png``: error, loss and learning rate by epoch, cycle ends marked.

    Args:
      path: of the image.
      records: of a `MetricsLog`.
      title: above the plots.
    """
    canvas = require("matplotlib.backends.backend_agg", "drawing curves.png").FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [r for r in records if r["kind"] == "train"]
    epochs = [r for r in records if r["kind"] == "epoch"]
    tests = [r for r in records if r["kind"] == "eval"]
    figure = Figure(figsize=(8, 9), layout="constrained")
    error, loss, rate = figure.subplots(3, 1, sharex=True)
    error.plot([r["epoch"] for r in epochs], [r["train_error"] for r in epochs], label="train (augmented)")
    error.plot([r["epoch"] for r in tests], [r["error"] for r in tests], "o-", color="tab:red", label="test")
    for record in tests:
        if record["cycle_end"]:
            for axis in (error, loss, rate):
                axis.axvline(record["epoch"], color="0.8", linewidth=1, zorder=0)
            error.annotate(
                f"{record['error']:.2f}",
                (record["epoch"], record["error"]),
                textcoords="offset points",
                xytext=(4, 6),
            )
    error.set_ylabel("error (%)")
    error.set_ylim(bottom=0)
    error.legend()
    loss.plot([r["epoch"] for r in train], [r["loss"] for r in train], linewidth=0.8, label="train")
    loss.plot([r["epoch"] for r in tests], [r["loss"] for r in tests], "o-", color="tab:red", label="test")
    loss.set_ylabel("cross-entropy (nats)")
    loss.set_yscale("log")
    loss.legend()
    rate.plot([r["epoch"] for r in train], [r["learning_rate"] for r in train], color="tab:green")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch (grey lines: cycle ends)")
    figure.suptitle(title)
    temporary = path.with_name(f".{path.name}.tmp.png")
    canvas(figure).print_png(str(temporary))
    os.replace(temporary, path)
