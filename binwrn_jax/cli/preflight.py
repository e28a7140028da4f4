"""``binwrn preflight --config=FILE --topology v5e:4x4``: what a run needs, before a machine is rented."""

from __future__ import annotations

import argparse
import json
import math

from ml_collections import ConfigDict

from binwrn_jax.cli.flags import parse_flags
from binwrn_jax.cli.output import print_line
from binwrn_jax.errors import UserError
from binwrn_jax.preflight.report import preflight
from binwrn_jax.preflight.targets import (
    FAST_COMPILE,
    GPU_EXAMPLES,
    TPU_EXAMPLES,
    Target,
    open_target,
    set_environment,
)
from binwrn_jax.preflight.text import comparison, lines
from binwrn_jax.training import config as configs

TAKES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options; those of the configuration are as for train.py."""
    parser.allow_abbrev = False
    parser.epilog = (
        "And --config=FILE[:SPEC] and --config.FIELD=VALUE as for train.py. Exit code 0: fits or may fit; 1: "
        "does not."
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--topology",
        default="v5e:4x4",
        help=f"a TPU slice, such as {TPU_EXAMPLES}; {GPU_EXAMPLES}; cpu or cpu:N (default: %(default)s)",
    )
    where.add_argument(
        "--compare", metavar="A,B,...", help="several of these: prints one table, the cheapest first"
    )
    parser.add_argument(
        "--slices", type=_slices, default=1, help="so many of these TPU slices (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--price",
        type=_prices,
        default=(),
        metavar="P[,P,...]",
        help="of a chip-hour: adds the cost of the run; with --compare one for all or one for each",
    )
    parser.add_argument(
        "--effort",
        type=_effort,
        default=FAST_COMPILE,
        help="of the TPU compiler, its exec_time_optimization_effort, from -1 to 1: 0 is what a run uses and "
        "takes many times as long (default: %(default)s)",
    )


def run(arguments: argparse.Namespace, config_flags: list[str]) -> int:
    """Compiles and prints."""
    set_environment()
    if not any(flag.startswith("--config=") or flag == "--config" for flag in config_flags):
        raise UserError("which run? Give --config=FILE[:SPEC], for example --config=configs/imagenet.py")
    config = parse_flags(["binwrn preflight", *config_flags], "imagenet").config
    configs.check(config)
    if arguments.compare is not None:
        return _compare(config, arguments)
    if len(arguments.price) > 1:
        raise UserError("several prices are for --compare: give one")
    target = open_target(arguments.topology, arguments.slices, arguments.effort)
    report = preflight(config, target, arguments.price[0] if arguments.price else None, _tell)
    for line in [json.dumps(report.to_dict())] if arguments.json else lines(report):
        print_line(line)
    return 0 if report.fits else 1


def _compare(config: ConfigDict, arguments: argparse.Namespace) -> int:
    names = [name.strip() for name in arguments.compare.split(",")]
    prices = arguments.price * len(names) if len(arguments.price) == 1 else arguments.price
    if prices and len(prices) != len(names):
        raise UserError(f"{len(prices)} prices for {len(names)} topologies: give one, or one for each")
    # The CPU's devices can be made once: the largest number first. Mistakes show before anything is compiled.
    targets: dict[str, Target] = {}
    for name in sorted(names, key=_devices_of_the_cpu, reverse=True):
        targets[name] = open_target(name, arguments.slices, arguments.effort)
    reports, refused = [], {}
    for index, name in enumerate(names):
        try:
            reports.append(preflight(config, targets[name], prices[index] if prices else None, _tell))
        except UserError as error:
            refused[name] = str(error)
    if not reports:
        raise UserError(next(iter(refused.values())))
    if arguments.json:
        without = [{"topology": name, "refused": reason} for name, reason in refused.items()]
        print_line(json.dumps([*(report.to_dict() for report in reports), *without]))
    else:
        for line in [*comparison(reports), *(f"{name}: refused: {why}" for name, why in refused.items())]:
            print_line(line)
    return 0 if any(report.fits for report in reports) else 1


def _devices_of_the_cpu(name: str) -> int:
    count = name.rpartition("x" if name.startswith("cuda") else ":")[2]
    return int(count) if count.isdecimal() else 1


def _tell(text: str) -> None:
    print_line(text, error=True)


def _prices(text: str) -> tuple[float, ...]:
    return tuple(
        _number(part, 0.0, math.inf, "a price is a positive number, such as 1.20") for part in text.split(",")
    )


def _effort(text: str) -> float:
    return _number(text, -1.0, 1.0, "it must be a number from -1 to 1", least_allowed=True)


def _number(text: str, least: float, most: float, message: str, least_allowed: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (least < value < most or (least_allowed and least <= value <= most)):
        raise argparse.ArgumentTypeError(f"{text!r}: {message}")
    return value


def _slices(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}: it must be a whole number from 1 to 1024")
    return int(text)
