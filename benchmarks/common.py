"""What the training benchmarks share: workers that take turns, spreads, the machine, Markdown."""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Worker:
    """A process that answers each line of JSON with one.

    Args:
      command: of the process.
      setting: its first line, answered when it is ready; the answer is ``ready``.
      environment: added to this process'.

    Raises:
      RuntimeError: it ended without an answer; with the last lines that it wrote to stderr.
    """

    def __init__(self, command: list[str], setting: dict[str, Any], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.ready = self.ask(**setting)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        assert self._process.stdin and self._process.stdout and self._process.stderr
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError("\n".join(self._process.stderr.read().strip().splitlines()[-3:]))
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def serve(answers: Any) -> None:
    """The other side of `Worker`: a request calls the method that ``do`` names with its other fields."""
    import sys

    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(answers, request.pop("do"))(**request)), flush=True)


def cores() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))


def thread_environment(threads: int) -> dict[str, str]:
    """The variables by which the libraries of all engines take so many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys((*names, "TORCHINDUCTOR_COMPILE_THREADS"), str(threads))


def spread(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(q) for q in np.percentile(values, [25, 50, 75])]


def timed(run: Any, steps: int) -> dict[str, float]:
    """Per step of ``run(steps)``, which waits for the last: seconds, wall and processor, and page faults."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    wall, processor = time.perf_counter(), time.process_time()
    run(steps)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"wall": wall / steps, "cpu": processor / steps, "faults": faults / steps}


def process_mb() -> float:
    """Peak resident MiB of this process; getrusage would count the parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def machine() -> dict[str, Any]:
    """Where and when."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores",
        "system": platform.platform(),
        "date": datetime.date.today().isoformat(),
        "load": os.getloadavg()[0],
    }


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; the columns after the first are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])
