"""``python -m paper list|run|report``: the paper's tables, figures and claims beside ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from binwrn_jax.cli.handler import guarded, take_debug
from binwrn_jax.cli.main import Parser
from paper import runs
from paper.report import REPORT_FILE, write_report


def main(argv: list[str] | None = None) -> int:
    """The program; returns the exit code."""
    words, debug = take_debug(sys.argv[1:] if argv is None else argv)

    def program() -> int:
        parser = Parser(prog="python -m paper", description=__doc__.partition(": ")[2])
        actions = parser.add_subparsers(dest="action", required=True, metavar="list|run|report")
        runs.add_arguments(actions)
        report = actions.add_parser("report", help="write tables and figures with measured values")
        report.add_argument(
            "roots", nargs="+", type=Path, metavar="ROOT", help="folder that holds workdirs, at any depth"
        )
        report.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the report")
        report.add_argument(
            "--keep-runs", action="store_true", help="copy the runs without their networks to DIR/runs"
        )
        arguments = parser.parse_args(words)
        return _report(arguments) if arguments.action == "report" else runs.run(arguments)

    return guarded(program, debug)


def _report(arguments: argparse.Namespace) -> int:
    counts = write_report(arguments.roots, arguments.output, arguments.keep_runs)
    print(
        f"{arguments.output / REPORT_FILE}: {counts['runs']} runs, {counts['finished']} finished; "
        f"{counts['experiments']} experiments measured, {counts['other']} other runs"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
