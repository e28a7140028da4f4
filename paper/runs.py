"""Runs on disk: workdirs of train.py, and what has been measured of each experiment."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from binwrn_jax.errors import UserError
from binwrn_jax.training import config as configs
from binwrn_jax.training.records import Record, read_records
from binwrn_jax.training.schedules import cycle_ends
from paper.experiments import EXPERIMENTS, Experiment
from paper.tables import ERRORS


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir of train.py, finished or not.

    Attributes:
      path: of the workdir.
      config: flat, field to value, as JSON has them; fields that its version did not have yet have
        their defaults.
      summary: content of ``summary.json``; empty for a run that has not finished.
      records: of ``metrics.jsonl``.
      environment: content of ``environment.json``, or empty.
    """

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    records: Sequence[Record]
    environment: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.config["seed"])

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return bool(self.summary)

    @property
    def epoch(self) -> float:
        """How far it has come."""
        return float(max((record["epoch"] for record in self.records if "epoch" in record), default=0))

    def evaluations(self) -> dict[int, Record]:
        """Test results at the ends of cycles, by epoch."""
        found = {r["epoch"]: r for r in self.records if r["kind"] == "eval" and r.get("cycle_end")}
        for epoch, error in self.summary.get("test_error_at_cycle_ends", {}).items():
            found.setdefault(int(epoch), {"epoch": int(epoch), "error": error})
        return dict(sorted(found.items()))

    @property
    def hardware(self) -> str:
        """Such as ``1 x cpu (AMD EPYC, 2 cores)``."""
        devices = self.environment.get("devices") or ["?"]
        text = f"{len(devices)} x {devices[0]}"
        if self.environment.get("platform", "cpu") == "cpu":
            processor = " ".join(re.sub(r"\((R|TM)\)", "", self.environment.get("processor", "?")).split())
            text += f" ({processor}, {self.environment.get('cores', '?')} cores)"
        return text

    @property
    def commit(self) -> str:
        """Of the code that ran."""
        return str(self.environment.get("commit") or "?")


def read_run(path: Path) -> Run:
    """Reads a workdir.

    Raises:
      UserError: its files are damaged.
    """

    def load(name: str) -> dict[str, Any]:
        file = path / name
        if not file.exists():
            return {}
        try:
            content = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({' '.join(str(error).split())})") from None
        if not isinstance(content, dict):
            raise UserError(f"{file} is not what train.py writes")
        return content

    defaults = dict(configs.flatten(json.loads(configs.to_json(configs.base_config()))))
    config = {**defaults, **dict(configs.flatten(load("config.json")))}
    records = read_records(path / "metrics.jsonl")
    return Run(path, config, load("summary.json"), records, load("environment.json"))


def scan(roots: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """All workdirs below some folders, and a line about each that cannot be read.

    Raises:
      UserError: a root is no folder.
    """
    runs, problems = [], []
    for root in roots:
        if not root.is_dir():
            raise UserError(f"no folder {root}: give one that holds workdirs of train.py")
        for file in sorted(root.rglob("config.json")):
            try:
                runs.append(read_run(file.parent))
            except UserError as error:
                problems.append(str(error))
    return runs, problems


# Fields that may differ between an experiment and a run of it; the dtype is reported.
_FREE = (*configs.FREE_FIELDS, "seed", "epochs", "model.dtype", "eval")


@functools.cache
def _fields(name: str) -> dict[str, Any]:
    return dict(configs.flatten(json.loads(configs.to_json(EXPERIMENTS[name].config()))))


def covers(run: Run, experiment: Experiment) -> bool:
    """Whether a run is one of an experiment: the same configuration up to the experiment's last epoch.

    With warm restarts a run of 254 epochs is for its first 126 a run of 126: one run gives both rows.
    """
    wanted = _fields(experiment.name)
    for field in wanted.keys() | run.config.keys():
        free = any(field == f or field.startswith(f + ".") for f in _FREE)
        if not free and wanted.get(field) != run.config.get(field):
            return False
    epochs, longer = wanted["epochs"], run.config["epochs"]
    if epochs == longer:
        return True
    if wanted["schedule.name"] != "sgdr":
        return False
    first = wanted["schedule.first_cycle"]
    ends = cycle_ends(epochs, first)
    return cycle_ends(longer, first)[: len(ends)] == ends


class Measurement(NamedTuple):
    """The finished part of the runs of an experiment, of one dtype, a run for each seed.

    Attributes:
      dtype: of the activations.
      runs: by ascending seed.
      errors: test errors in percent at the experiment's last epoch, in the same order.
      top5: top-5 errors.
      crops: errors with the logits of several crops averaged, of the runs that have them.
      crops_top5: their top-5 errors.
    """

    dtype: str
    runs: list[Run]
    errors: list[float]
    top5: list[float]
    crops: list[float]
    crops_top5: list[float]

    def by_seed(self) -> dict[int, float]:
        """Test error by seed."""
        return {run.seed: error for run, error in zip(self.runs, self.errors, strict=True)}

    def optional(self) -> dict[str, list[float]]:
        """What only some have, under the names of `ERRORS`: each is empty where no run has it."""
        return dict(zip(ERRORS[1:], (self.top5, self.crops, self.crops_top5), strict=True))


def collect_measurements(experiment: Experiment, runs: Iterable[Run]) -> list[Measurement]:
    """What has been measured of an experiment, by dtype; of two runs of a seed the finished one counts, then
    the one of as many epochs.
    """
    last = int(_fields(experiment.name)["epochs"])

    def rank(run: Run) -> tuple[bool, bool]:
        return run.finished, run.config["epochs"] == last

    chosen: dict[str, dict[int, Run]] = {}
    for run in runs:
        if last in run.evaluations() and covers(run, experiment):
            by_seed = chosen.setdefault(str(run.config["model.dtype"]), {})
            if run.seed not in by_seed or rank(run) > rank(by_seed[run.seed]):
                by_seed[run.seed] = run
    found = []
    for dtype, by_seed in sorted(chosen.items(), reverse=True):
        ordered = [by_seed[seed] for seed in sorted(by_seed)]
        results = [run.evaluations()[last] for run in ordered]
        keys = ("error", "top5_error", "crops_error", "crops_top5_error")
        found.append(Measurement(dtype, ordered, *([float(r[k]) for r in results if k in r] for k in keys)))
    return found
