"""``list`` and ``run``: the paper's rows and claims by name, and the runs that are missing."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from binwrn_jax.errors import UserError
from binwrn_jax.nn.registry import DTYPES
from paper import experiments
from paper.experiments import CHECKOUT, MACHINES, SCALES, WIDE, Experiment, Run
from paper.report import spread

RESULTS = CHECKOUT / "paper" / "results" / "runs"


def add_arguments(actions: Any) -> None:
    """Declares the options of the subparsers ``list`` and ``run``."""
    listing = actions.add_parser(
        "list", help="what there is, what it costs, what the paper says and we measured"
    )
    running = actions.add_parser("run", help="train what is missing; goes on with what was stopped")
    for action in (listing, running):
        action.add_argument(
            "names", nargs="*", metavar="NAME", help="an experiment, or a group: table1, fig6"
        )
    listing.add_argument("--scale", choices=SCALES, help="default both")
    listing.add_argument(
        "--root", type=Path, action="append", metavar="DIR", help="runs to read; default this project's own"
    )
    listing.add_argument("--json", action="store_true", help="print one JSON list and nothing else")
    running.add_argument("--scale", choices=SCALES, default="full", help="default %(default)s, the paper's")
    running.add_argument("--seeds", default="1", metavar="1,2,3", help="a run for each; default %(default)s")
    running.add_argument(
        "--workdir", type=Path, default=Path("runs/experiments"), metavar="ROOT", help="default %(default)s"
    )
    running.add_argument("--dtype", choices=DTYPES, help="of the activations; default as the config has it")
    running.add_argument("--dry-run", action="store_true", help="print the commands and train nothing")


def run(arguments: argparse.Namespace) -> int:
    """Lists or trains."""
    return list_experiments(arguments) if arguments.action == "list" else run_experiments(arguments)


# --- list -----------------------------------------------------------------------------------------------


def list_experiments(arguments: argparse.Namespace) -> int:
    """Prints the registry with measured values."""
    scales = [arguments.scale] if arguments.scale else list(SCALES)
    if arguments.names and not arguments.scale:  # a name may be of either
        scales = [s for s in SCALES if all(_exists(name, s) for name in arguments.names)] or ["full"]
    chosen = [e for scale in scales for e in experiments.select(arguments.names, scale)]
    runs, problems = experiments.scan(arguments.root or [root for root in (RESULTS,) if root.is_dir()])
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    rows = [describe(experiment, runs) for experiment in chosen]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    header = [
        "name",
        "where",
        "paper %",
        "Mimages x GFLOP",
        *(f"h {m}" for m in MACHINES),
        "measured %",
        "log",
    ]
    table = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(
        f"\n{len(rows)} experiments. Hours are estimates from the convolutions alone, at "
        + ", ".join(f"{_rates(rates)} TFLOP/s on {machine}" for machine, rates in MACHINES.items())
        + " (the accelerators' are a quarter of their peak, assumed and not measured)."
    )
    return 0


def _exists(name: str, scale: str) -> bool:
    try:
        return bool(experiments.select([name], scale))
    except UserError:
        return False


def describe(experiment: Experiment, runs: list[Run]) -> dict[str, Any]:
    """An experiment as ``--json`` prints it."""
    return {
        "name": experiment.name,
        "scale": experiment.scale,
        "where": list(experiment.tags),
        "command": ["train.py", *experiment.arguments()],
        "paper": dict(experiment.paper),
        "images": experiment.images_in_all,
        "gflop_per_image": experiment.gflop_per_image,
        "estimated_hours": experiment.hours(),
        "measured": [
            {
                "dtype": found.dtype,
                "seeds": [run.seed for run in found.runs],
                "error": found.errors,
                **found.optional(),
                "logs": [str(run.path / "metrics.jsonl") for run in found.runs],
            }
            for found in experiments.measure(experiment, runs)
        ],
    }


def _cells(row: dict[str, Any]) -> list[str]:
    paper = row["paper"]
    text = " / ".join(f"{paper[key]:.2f}" for key in ("error", "top5") if key in paper)
    if "error_25_crops" in paper:
        text += f", 25 crops {paper['error_25_crops']:.2f} / {paper['top5_25_crops']:.2f}"
    measured, log = "not run", "-"
    if row["measured"]:
        measured = "; ".join(_measured(found, "top5" in paper) for found in row["measured"])
        log = os.path.relpath(Path(row["measured"][0]["logs"][0]).parent)
    hours = [
        f"{h:.0f}" if h >= 100 else f"{h:.2g}" if h >= 0.01 else "<0.01"
        for h in row["estimated_hours"].values()
    ]
    cost = f"{row['images'] / 1e6:.2f} x {row['gflop_per_image']:.2f}"
    return [row["name"], ",".join(row["where"]), text or "-", cost, *hours, measured, log]


def _measured(found: dict[str, Any], top5: bool) -> str:
    """One dtype's means, with standard deviations and the number of seeds."""
    text = spread(found["error"])
    if top5 and found["top5"]:
        text += f" / {spread(found['top5'])}"
    if found["error_25_crops"]:
        text += f", 25 crops {spread(found['error_25_crops'])} / {spread(found['top5_25_crops'])}"
    dtype = "" if found["dtype"] == "float32" else f", {found['dtype']}"
    return f"{text} (n={len(found['error'])}{dtype})"


def _rates(rates: tuple[float, float]) -> str:
    """In TFLOP/s, of narrow and of wide networks; one number where they are equal."""
    narrow, wide = (f"{rate / 1e12:g}" for rate in rates)
    return wide if narrow == wide else f"{wide} (below {WIDE} channels {narrow})"


# --- run ------------------------------------------------------------------------------------------------


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
    runs = experiments.scan([root])[0] if root.is_dir() else []
    failed: list[str] = []
    jobs = [(experiment, seed) for seed in seeds for experiment in chosen]
    for number, (experiment, seed) in enumerate(jobs, start=1):
        title = f"[{number}/{len(jobs)}] {experiment.name}, seed {seed}"
        dtype = arguments.dtype or experiment.config().model.dtype
        done = find_done(experiment, seed, dtype, runs)
        if done:
            print(f"{title}: done, in {done.path}", flush=True)
            continue
        workdir = root / experiment.scale / (experiment.name + (f"-{dtype}" if arguments.dtype else ""))
        workdir /= f"seed{seed}"
        command = ["train.py", *experiment.arguments(), f"--config.seed={seed}"]
        command += [f"--config.model.dtype={arguments.dtype}"] if arguments.dtype else []
        command += [f"--workdir={workdir.absolute()}"]
        print(f"{title}: python {shlex.join(command)}", flush=True)
        if arguments.dry_run:
            continue
        code, stopped_by = _train(command)
        if stopped_by is not None:
            return 0 if stopped_by == signal.SIGTERM else 128 + stopped_by
        if code == 0:
            runs.append(experiments.read_run(workdir))
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
        if same and run_.finished and experiments.covers(run_, experiment):
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
