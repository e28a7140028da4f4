"""Loggers, which mirror a run in other services: TensorBoard, Weights & Biases, MLflow, and your own.

``metrics.jsonl`` is the run's own record and always written; a logger gets the same numbers, and the files
of the workdir that are worth keeping. ``--config.log.to=tensorboard,wandb,mlflow`` chooses them. None of them
needs a network: by default wandb runs offline and MLflow writes into the workdir; the environment variables
WANDB_MODE and MLFLOW_TRACKING_URI change this. A resumed run continues the same run of the service. A package
adds one by an entry point of the group ``binwrn_jax.loggers``: a function of a `LoggedRun` that returns a
`Logger`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.metadata
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from binwrn_jax.errors import UserError, require
from binwrn_jax.system.files import replace_file

GROUP = "binwrn_jax.loggers"
IDS_FILE = "loggers.json"  # the run of each service that belongs to this workdir
PROJECT = "binwrn-jax"


class Logger(Protocol):
    """A service that takes the numbers and files of a run."""

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of one record.

        Args:
          kind: ``'train'``, ``'epoch'`` or ``'eval'``.
          step: updates done.
          values: by name, see docs/training.md.
        """
        ...

    def artifact(self, path: Path) -> None:
        """Takes a file: ``config.json``, ``curves.png``, ``confusion.png`` or the packed file."""
        ...

    def close(self) -> None:
        """Writes the rest; the last call."""
        ...


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """Facts about the run for a logger.

    Attributes:
      workdir: its folder, where a service may have a folder of its own name.
      config: all fields, by dotted name.
      resume_step: the step at which this process begins.
      run_id: identifies the run for this service; the same in each process of the run, random otherwise.
    """

    workdir: Path
    config: Mapping[str, Any]
    resume_step: int
    run_id: str


class TensorBoard:
    """Event files in ``tensorboard/``, by tensorboardX, which does without TensorFlow."""

    def __init__(self, run: LoggedRun) -> None:
        writer = require("tensorboardX", "log.to=tensorboard").SummaryWriter
        self._writer = writer(
            str(run.workdir / "tensorboard"),
            purge_step=run.resume_step + 1,
            filename_suffix=f".{run.resume_step}",
        )
        self._step = run.resume_step

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Adds a scalar for each number."""
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def artifact(self, path: Path) -> None:
        """Adds images and text; ignores other files."""
        if path.suffix == ".png":
            import numpy as np
            import PIL.Image

            image = np.asarray(PIL.Image.open(path).convert("RGB"))
            self._writer.add_image(path.stem, image, self._step, dataformats="HWC")
        elif path.suffix == ".json":
            self._writer.add_text(path.stem, f"```\n{path.read_text()}\n```", self._step)

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases in ``wandb/``; offline unless WANDB_MODE is set."""

    def __init__(self, run: LoggedRun) -> None:
        wandb = require("wandb", "log.to=wandb")
        self._wandb = wandb
        with naming_service("wandb"):
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=run.run_id,
                name=run.workdir.name,
                dir=str(run.workdir),
                config=dict(run.config),
                mode=os.environ.get("WANDB_MODE", "offline"),
                resume="allow",
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
            )

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers at a step; several records may have the same one."""
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def artifact(self, path: Path) -> None:
        """Keeps the file with the run, images as pictures too."""
        artifact = self._wandb.Artifact(f"{self._run.id}-{path.stem}", type=path.suffix.removeprefix("."))
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)
        if path.suffix == ".png":
            self._run.log({path.stem: self._wandb.Image(str(path))})

    def close(self) -> None:
        """Ends this process's part of the run."""
        self._run.finish()


class MLflow:
    """A run of MLflow, in ``mlflow/`` unless MLFLOW_TRACKING_URI is set."""

    def __init__(self, run: LoggedRun) -> None:
        mlflow = require("mlflow", "log.to=mlflow")
        place = os.environ.get("MLFLOW_TRACKING_URI") or (run.workdir.absolute() / "mlflow").as_uri()
        if place.startswith("file:"):
            # MLflow 3 prefers a database; files need no further package and suffice for one run.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        with naming_service("mlflow"):
            self._client = mlflow.MlflowClient(tracking_uri=place)
            found = self._client.get_experiment_by_name(PROJECT)
            experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
            # MLflow chooses the ids of its runs itself: ours is a tag.
            earlier = self._client.search_runs([experiment], f"tags.binwrn_id = '{run.run_id}'")
            if earlier:
                self._id = earlier[0].info.run_id
            else:
                self._id = self._client.create_run(
                    experiment, run_name=run.workdir.name, tags={"binwrn_id": run.run_id}
                ).info.run_id
                for name, value in run.config.items():
                    self._client.log_param(self._id, name, str(value)[:500])

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Logs each number as a metric."""
        for name, value in values.items():
            self._client.log_metric(self._id, f"{kind}/{name}", value, step=step)

    def artifact(self, path: Path) -> None:
        """Keeps the file with the run."""
        self._client.log_artifact(self._id, str(path))

    def close(self) -> None:
        """Marks the run as ended."""
        self._client.set_terminated(self._id)


LOGGERS: dict[str, Callable[[LoggedRun], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


@contextlib.contextmanager
def naming_service(name: str) -> Iterator[None]:
    """Turns any error of a service that opens into one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"log.to={name} cannot be opened ({reason})") from error


def known_loggers() -> dict[str, Callable[[], Callable[[LoggedRun], Logger]]]:
    """By name, functions that give the maker of a logger: those here, and those of installed packages."""
    found: dict[str, Callable[[], Callable[[LoggedRun], Logger]]] = {
        point.name: point.load for point in importlib.metadata.entry_points(group=GROUP)
    }
    return found | {name: (lambda make=make: make) for name, make in LOGGERS.items()}


def logger_names(to: str) -> list[str]:
    """The names in ``log.to``.

    Raises:
      UserError: there is no such logger.
    """
    names = [name.strip() for name in to.split(",") if name.strip()]
    known = known_loggers()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"unknown logger {name!r} in log.to{hint}: choose among {', '.join(known)}")
    return names


def _read_ids(path: Path) -> dict[str, str]:
    """The names of the run in each service; none where the file is absent or damaged."""
    try:
        ids = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {name: run for name, run in ids.items() if isinstance(run, str)} if isinstance(ids, dict) else {}


def open_loggers(to: str, workdir: Path, config: Mapping[str, Any], resume_step: int) -> list[Logger]:
    """The loggers that ``log.to`` names, each in the run of its service that belongs to this workdir.

    Args:
      to: names separated by commas, or ''.
      workdir: of the run.
      config: all fields, by dotted name.
      resume_step: the step at which this process begins.

    Raises:
      UserError: an unknown name, a package that is not installed, or a service that does not open.
    """
    names, known = logger_names(to), known_loggers()
    path = workdir / IDS_FILE
    ids = _read_ids(path)
    if new := [name for name in names if name not in ids]:
        ids |= {name: secrets.token_hex(6) for name in new}
        replace_file(path, json.dumps(ids, indent=2) + "\n")
    opened: list[Logger] = []
    try:
        for name in names:
            opened.append(known[name]()(LoggedRun(workdir, config, resume_step, ids[name])))
    except BaseException:
        for logger in opened:
            logger.close()
        raise
    return opened
