"""``binwrn preflight --config=FILE --topology v5e:4x4``: what a run needs, before a machine is rented."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from binwrn_jax.cli.flags import parse_flags
from binwrn_jax.errors import UserError
from binwrn_jax.preflight.compile import GPUS, QUICK, TPU_EXAMPLES, preflight, set_environment, topology
from binwrn_jax.training import config as configs

TAKES_CONFIG = True
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options; those of the configuration are as for train.py."""
    parser.allow_abbrev = False
    parser.epilog = (
        "And --config=FILE[:SPEC] and --config.FIELD=VALUE as for train.py. Exit code 0: fits; 1: does not."
    )
    parser.add_argument(
        "--topology",
        default="v5e:4x4",
        help=f"a TPU slice, such as {TPU_EXAMPLES}; cuda or cuda:NAMExN with NAME one of {', '.join(GPUS)}; "
        "cpu or cpu:N (default: %(default)s)",
    )
    parser.add_argument(
        "--slices", type=int, default=1, help="so many of these TPU slices (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--price", type=float, help="of a chip-hour: adds the cost of the run")
    parser.add_argument(
        "--effort",
        type=float,
        default=QUICK,
        help="of the TPU compiler, its exec_time_optimization_effort: 0 is what a run uses and takes many "
        "times as long (default: %(default)s)",
    )


def run(arguments: argparse.Namespace, config_flags: list[str]) -> int:
    """Compiles and prints."""
    set_environment()
    if not any(flag.startswith("--config=") or flag == "--config" for flag in config_flags):
        raise UserError("which run? Give --config=FILE[:SPEC], for example --config=configs/imagenet.py")
    config = parse_flags(["binwrn preflight", *config_flags], "imagenet").config
    configs.check(config)
    place = topology(arguments.topology, arguments.slices)

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    report = preflight(config, place, arguments.effort, arguments.price, say)
    print(json.dumps(report) if arguments.json else "\n".join(lines(report)))
    return 0 if report["fits"] else 1


def lines(report: dict[str, Any]) -> list[str]:
    """The report for a person."""
    on_tpu, memory, devices = report["compiled_for"] == "tpu", report["memory"], report["devices"]
    parts = f" in {report['accumulate']} parts" if report["accumulate"] > 1 else ""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    out = [
        f"{report['dataset']} {report['network']} {report['weights']}, {report['dtype']}, batch "
        f"{report['batch_size']}{parts}, on {report['topology']}: {devices} devices "
        f"({report['device_kind']}), {report['chips']} chips, {report['hosts']} hosts; {versions}"
    ]

    def add(name: str, text: str) -> None:
        out.append(f"{name:14} {text}")

    share = f"{memory['peak'] / GIB:.2f} GiB of {memory['capacity'] / GIB:.2f} GiB on each device"
    if report["fits"]:
        kinds = ("arguments", "outputs", "temporaries", "code")
        add("fits", f"{share} ({', '.join(f'{kind} {memory[kind] / GIB:.2f}' for kind in kinds)})")
    else:
        add("DOES NOT FIT", share)
        smaller = report["fitting_batch"]
        if smaller is None:
            add("smaller", "no batch fits: more --config.accumulate, more memory, or a smaller network")
            return out
        add(
            "smaller",
            f"batch {smaller} fits, {smaller // devices} per device: compiled. The rest is about it",
        )
    if not on_tpu and report["rooflines"]:
        add("", "compiled for the CPU: an accelerator's program takes about as much memory, not the same")
    if report["data_on_device"]:
        add("data", f"the training set lies on every device: {report['data_on_device'] / GIB:.3f} GiB")
    flops = report["flops"]
    add(
        "operations",
        f"{flops['analytic'] / 1e12:.4g} TFLOP per step, the convolutions counted; "
        f"the compiler counts {flops['compiler'] / 1e12:.4g}",
    )
    if on_tpu:
        add("bytes", f"{report['bytes'] / 1e9:.4g} GB per step to and from device memory, all devices")
    sent = [
        f"{entry['count']} {entry['kind']}, {entry['bytes'] / 1e6:.4g} MB" for entry in report["collectives"]
    ]
    add("collectives", "; ".join(sent) or "none")
    if report["slices"] > 1:
        add(
            "",
            f"the network between the {report['slices']} slices is slower than links and not in what follows",
        )
    if report["activations_travel"]:
        add("", "activations travel between devices: batch_size / model.ghost_size, the ghost groups, had")
        add("", f"better be a multiple of the {devices} devices")
    for top in report["rooflines"]:
        times = ", ".join(
            f"{name} {1e3 * top[f'{name}_seconds']:.4g}" for name in ("compute", "memory", "links")
        )
        add(
            "at best",
            f"{1e3 * top['step_seconds']:.4g} ms per step, {top['images_per_s']:,.0f} images/s on "
            f"{report['chips']} x {top['device_kind']} ({times} ms; {top['peak_flops'] / 1e12:.4g} TFLOP/s)",
        )
        cost = "" if top["cost"] is None else f", {top['cost']:,.2f} in money"
        add(
            "run",
            f"{report['epochs']} epochs of {report['train_images']:,} images, {report['steps']:,} steps: at "
            f"best {top['hours']:.3g} h, {top['chip_hours']:.4g} chip-hours{cost}; twice that at half of it",
        )
        if top["host_images_per_s"]:
            add("input", f"{top['host_images_per_s']:,.0f} images/s from each host to keep up with that")
    add("compiled in", f"{report['compile_seconds']:.0f} s")
    return out
