"""Finished and running runs beside each other: errors, times, and the fields in which they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from binwrn_jax.errors import UserError
from binwrn_jax.training.config import base_config, flatten, is_free
from binwrn_jax.training.records import Record, read_records


class StoredRun(NamedTuple):
    """A run as its workdir records it.

    Attributes:
      name: the shortest end of its path that differs from those of the other runs.
      config: fields by dotted name.
      records: of ``metrics.jsonl``.
      finished: whether it has reached its last step.
    """

    name: str
    config: dict[str, Any]
    records: list[Record]
    finished: bool


def read_runs(paths: Sequence[Path]) -> list[StoredRun]:
    """Reads workdirs; a run in progress is read up to its last record.

    Raises:
      UserError: a path is no workdir, or its ``config.json`` is damaged.
    """
    names = _short_names(paths)
    runs = []
    for path, name in zip(paths, names, strict=True):
        try:
            config = json.loads((path / "config.json").read_text())
            fields = dict(flatten(config))
        except FileNotFoundError:
            raise UserError(f"{path} is not the workdir of a run: it has no config.json") from None
        except (ValueError, AttributeError):
            raise UserError(f"{path / 'config.json'} is damaged") from None
        records = read_records(path / "metrics.jsonl")
        runs.append(StoredRun(name, fields, records, (path / "summary.json").is_file()))
    return runs


def _short_names(paths: Sequence[Path]) -> list[str]:
    whole = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, whole), default=1) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def config_differences(runs: Sequence[StoredRun]) -> dict[str, list[Any]]:
    """The fields that affect results and differ between the runs, with the value in each run.

    A field that a run does not have, as an earlier version wrote it, has its default there.
    """
    defaults = json.loads(json.dumps(dict(flatten(base_config()))))
    fields = sorted({field for run in runs for field in run.config if not is_free(field)})
    values = {field: [run.config.get(field, defaults.get(field)) for run in runs] for field in fields}
    return {field: found for field, found in values.items() if any(v != found[0] for v in found)}


def overview(run: StoredRun) -> dict[str, Any]:
    """The numbers of a run for a table; None for a number that is not measured yet."""
    tests, epochs, train = (
        [r for r in run.records if r["kind"] == kind] for kind in ("eval", "epoch", "train")
    )
    last = tests[-1] if tests else {}
    best = min((r["error"] for r in tests if r.get("error") is not None), default=None)
    return {
        "run": run.name,
        "epochs": train[-1]["epoch"] if train else 0,
        "of_epochs": run.config.get("epochs"),
        "test_error": last.get("error"),
        "error_low": last.get("error_low"),
        "error_high": last.get("error_high"),
        "least_test_error": best,
        "validation_error": last.get("validation_error"),
        "train_error": epochs[-1].get("train_error") if epochs else None,
        "loss": last.get("loss"),
        "seconds": run.records[-1].get("seconds") if run.records else None,
        "finished": run.finished,
    }
