"""``python -m paper list|run|report|readme``: the paper's tables, figures and claims beside ours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from binwrn_jax.cli.handler import guarded, take_debug
from binwrn_jax.cli.main import Parser
from binwrn_jax.cli.output import check_folder_output, print_line
from binwrn_jax.nn.registry import DTYPES
from paper.experiments import SCALES
from paper.listing import list_experiments
from paper.report import REPORT_FILE, readme_results, write_report
from paper.training import run_experiments


def main(argv: list[str] | None = None) -> int:
    """The program; returns the exit code."""
    words, debug = take_debug(sys.argv[1:] if argv is None else argv)

    def program() -> int:
        parser = Parser(prog="python -m paper", description=__doc__.partition(": ")[2])
        actions = parser.add_subparsers(dest="action", required=True, metavar="list|run|report|readme")
        _add_actions(actions)
        arguments = parser.parse_args(words)
        return ACTIONS[arguments.action](arguments)

    return guarded(program, debug)


def _add_actions(actions: Any) -> None:
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
    report = actions.add_parser("report", help="write tables and figures with measured values")
    report.add_argument(
        "roots", nargs="+", type=Path, metavar="ROOT", help="folder that holds workdirs, at any depth"
    )
    report.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the report")
    report.add_argument(
        "--keep-runs", action="store_true", help="copy the runs without their networks to DIR/runs"
    )
    actions.add_parser("readme", help="print the results table of README.md")


def _report(arguments: argparse.Namespace) -> int:
    check_folder_output(arguments.output, [], "report", REPORT_FILE)
    counts = write_report(arguments.roots, arguments.output, arguments.keep_runs)
    print_line(
        f"{arguments.output / REPORT_FILE}: {counts['runs']} runs, {counts['finished']} finished; "
        f"{counts['experiments']} experiments measured, {counts['other']} other runs"
    )
    return 0


def _readme(arguments: argparse.Namespace) -> int:
    del arguments
    print("\n".join(readme_results()))
    return 0


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": list_experiments,
    "run": run_experiments,
    "report": _report,
    "readme": _readme,
}

if __name__ == "__main__":
    sys.exit(main())
