"""``python -m paper run``: trains the experiments that have not been run."""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from binwrn_jax.errors import UserError, printable
from paper import experiments
from paper.experiments import CHECKOUT, Experiment
from paper.runs import Run, covers, read_run, scan


def run_experiments(arguments: argparse.Namespace) -> int:
    """Trains what is not there yet, one run after the other, each by train.py in a process of its own.

    Raises:
      UserError: an unknown name, a bad list of seeds, or runs that failed; the others have been done.
    """
    if not arguments.names:
        raise UserError("name an experiment or a group: see `python -m paper list`")
    chosen = experiments.select(arguments.names, arguments.scale)
    seeds = parse_seeds(arguments.seeds)
    root: Path = arguments.workdir
    runs = scan([root])[0] if root.is_dir() else []
    failed: list[str] = []
    jobs = [(experiment, seed) for seed in seeds for experiment in chosen]
    for number, (experiment, seed) in enumerate(jobs, start=1):
        title = f"[{number}/{len(jobs)}] {experiment.name}, seed {seed}"
        dtype = arguments.dtype or experiment.config().model.dtype
        done = find_done(experiment, seed, dtype, runs)
        if done:
            print(printable(f"{title}: done, in {done.path}"), flush=True)
            continue
        workdir = root / experiment.scale / (experiment.name + (f"-{dtype}" if arguments.dtype else ""))
        workdir /= f"seed{seed}"
        command = ["train.py", *experiment.arguments(), f"--config.seed={seed}"]
        command += [f"--config.model.dtype={arguments.dtype}"] if arguments.dtype else []
        command += [f"--workdir={workdir.absolute()}"]
        print(printable(f"{title}: python {shlex.join(command)}"), flush=True)
        if arguments.dry_run:
            continue
        code, stopped_by = _train(command)
        if stopped_by is not None:
            return 0 if stopped_by == signal.SIGTERM else 128 + stopped_by
        if code == 0:
            runs.append(read_run(workdir))
        else:
            failed.append(f"{experiment.name} seed {seed}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} runs failed ({', '.join(failed)}), see above: mend the cause "
            "and give the same command again, it does only what is missing"
        )
    return 0


def parse_seeds(text: str) -> list[int]:
    """``'1,2,3'`` as numbers, each once.

    Raises:
      UserError: it is no such list.

    >>> parse_seeds("3,1,3")
    [3, 1]
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = [-1]
    if min(seeds) < 0:
        raise UserError(f"--seeds is {text!r}: give whole numbers from 0 on, with commas between: 1,2,3")
    return list(dict.fromkeys(seeds))


def find_done(experiment: Experiment, seed: int, dtype: str, runs: list[Run]) -> Run | None:
    """The finished run of this seed that has the experiment's result, or None."""
    for run_ in runs:
        same = run_.seed == seed and run_.config["model.dtype"] == dtype
        if same and run_.finished and covers(run_, experiment):
            return run_
    return None


def _train(command: list[str]) -> tuple[int, int | None]:
    """Runs train.py; returns its exit code, and the signal that stopped us meanwhile if one did.

    The process gets a session of its own: Ctrl-C in a terminal goes to all processes of a session, and a
    second signal would kill it before it has saved.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(signum: int, frame: Any) -> None:
        del frame
        received.append(signum)
        if process is not None:
            process.send_signal(signum)

    before = {signum: signal.signal(signum, forward) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        process = subprocess.Popen([sys.executable, *command], cwd=CHECKOUT, start_new_session=True)
        if received:  # it came before the process was there
            process.send_signal(received[-1])
        return process.wait(), (received[-1] if received else None)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
