"""Runs that are killed at chosen moments, and what has to be true of them in the end."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from runs import numbers

from binwrn_jax.store.model import Model

ROOT = Path(__file__).parents[1]
# Two cycles of ten steps an epoch, with checkpoints between them.
COMMAND = (
    "train",
    "--config=configs/digits.py:8-0.25,1bit,cutout",
    "--config.epochs=6",
    "--config.seed=3",
    "--config.batch_size=48",
    "--config.data.train_split=train[:480]",
    "--config.log.every_steps=7",
    "--config.checkpoint.every_steps=9",
    "--config.devices=1",
)


class Server:
    """`kill_server.py` as a child of this process.

    Args:
      scratch: for the output of its children.
    """

    def __init__(self, scratch: Path) -> None:
        self.log = scratch / "output.txt"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "kill_server.py")],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def run(self, workdir: Path, command: Sequence[str] = COMMAND, **moment: Any) -> dict[str, Any]:
        """Starts the run, see `kill_server.py` for the moments; its answer."""
        order = {
            "arguments": [*command, f"--workdir={workdir}"],
            "folders": [str(workdir)],
            "log": str(self.log),
            **moment,
        }
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._answer())

    def finish(self, workdir: Path) -> dict[str, Any]:
        """Starts the run and lets it end."""
        answer = self.run(workdir)
        assert answer["status"] == 0, self.log.read_text()
        return answer


def facts(workdir: Path) -> dict[str, Any]:
    """All that two finished runs of one command must have in common."""
    variables = Model.load(workdir).variables
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    summary = json.loads((workdir / "summary.json").read_text())
    return {
        "variables": digest.hexdigest(),
        "packed": hashlib.sha256((workdir / "model.safetensors").read_bytes()).hexdigest(),
        "records": numbers(workdir),
        "summary": {k: v for k, v in summary.items() if k not in ("seconds", "images_per_s", "commit")},
        "files": sorted(os.listdir(workdir)),
        "model": sorted(os.listdir(workdir / "model")),
        "checkpoints": sorted(os.listdir(workdir / "checkpoints")),
        "hidden": [p.name for p in workdir.rglob(".*") if p.name != ".lock"],
    }
