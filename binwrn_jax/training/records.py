"""The run's own record, ``metrics.jsonl``: reads it and appends to it."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from binwrn_jax.store.model import stored_step
from binwrn_jax.system import files
from binwrn_jax.training.loggers import Logger

Record = dict[str, Any]

# The fields of each kind of record that the rest of a run is computed from; those in the second group may be
# null, where there was no finite number, those in the third may also be absent.
_NEEDED: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "train": (("epoch", "seconds"), ("loss", "learning_rate", "images_per_s"), ()),
    "epoch": (("epoch", "seconds"), ("train_error",), ()),
    "eval": (("epoch", "seconds", "error"), ("loss",), ("validation_error",)),
}

_log = logging.getLogger("binwrn_jax")


def read_records(path: Path) -> list[Record]:
    """The records of a ``metrics.jsonl`` without damaged lines and those that lack what their kind has."""
    return [record for record in files.read_records(path) if _is_whole(record)]


def _is_whole(record: Record) -> bool:
    if not isinstance(record.get("kind"), str) or not _is_count(record.get("step")):
        return False
    numbers, numbers_or_null, optional = _NEEDED.get(record["kind"], ((), (), ()))
    given = [record.get(name, "") for name in numbers_or_null] + [record.get(name) for name in optional]
    return (
        all(_is_number(record.get(name)) for name in numbers)
        and all(value is None or _is_number(value) for value in given)
        and (record["kind"] != "eval" or isinstance(record.get("cycle_end"), bool))
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class MetricsLog:
    """Appends records to ``metrics.jsonl``, and passes them on to other services if asked.

    A resumed run drops records after the step from which it resumes, so that each step is in the file
    once. An evaluation at that step counts only with the model that it wrote: where ``model/`` is gone or
    damaged, its record is dropped too, and the run evaluates and writes the model again.

    Attributes:
      records: all records of the run up to now, those of earlier processes included.
      mirrors: services that get the same numbers.
    """

    def __init__(self, workdir: Path, resume_step: int) -> None:
        path = workdir / "metrics.jsonl"
        self.records = [record for record in read_records(path) if record["step"] <= resume_step]
        last = {"kind": "eval", "step": resume_step}
        others = [record for record in self.records if not last.items() <= record.items()]
        if len(others) < len(self.records) and stored_step(workdir / "model") != resume_step:
            _log.warning("%s is not that of step %d: it is made again", workdir / "model", resume_step)
            self.records = others
        files.replace_file(path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._file = files.RecordFile(path)
        self.mirrors: list[Logger] = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Adds one record; those of epochs and evaluations are on the disk when this returns.

        Numbers that are not finite, which JSON has not, become null.
        """
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        record = {"kind": kind, "step": step, **values}
        self.records.append(record)
        self._file.append(record)
        if kind != "train":
            self.sync()  # a mounted bucket keeps nothing before
        for mirror in self.mirrors:
            mirror.log(kind, step, {name: value for name, value in values.items() if _is_number(value)})

    def artifact(self, path: Path) -> None:
        """Gives a file of the workdir to the other services."""
        for mirror in self.mirrors:
            mirror.artifact(path)

    def sync(self) -> None:
        """Returns when all records are on the disk; called before a checkpoint, which relies on them."""
        self._file.sync()

    def of_kind(self, kind: str) -> list[Record]:
        """The records of one kind: ``train``, ``epoch`` or ``eval``."""
        return [record for record in self.records if record["kind"] == kind]

    def last_report(self, step: int, steps_per_epoch: int) -> Record | None:
        """The start of the next training record's interval, in a run that resumes at ``step``.

        Returns:
          ``step``, and the sums of the epoch up to it, ``epoch_loss`` and ``epoch_errors``: of the last
          training record in this epoch, or of the epoch's beginning. None where the record has no sums
          (version 0.1.0 wrote it).
        """
        first = step - step % steps_per_epoch
        reports = [record for record in self.of_kind("train") if first < record["step"] <= step]
        sums: Record = {"step": first, "epoch_loss": 0.0, "epoch_errors": 0}
        if not reports or step == first:
            return sums
        if not all(_is_number(reports[-1].get(name)) for name in sums):
            return None
        return {name: reports[-1][name] for name in sums}

    def close(self) -> None:
        """Closes the file and the other services."""
        self._file.close()
        for mirror in self.mirrors:
            mirror.close()


class NoLog(MetricsLog):
    """The log of processes that write nothing."""

    def __init__(self) -> None:
        self.records = []
        self.mirrors = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""
