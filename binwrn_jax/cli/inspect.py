"""``binwrn inspect MODEL``: the layers of a model with their bits."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from binwrn_jax.cli.output import print_line
from binwrn_jax.deploy.formats import layers
from binwrn_jax.deploy.predictor import LayerRow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", type=Path, help="workdir, model folder, packed or ONNX file")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table, the totals and whether all weights are 1-bit."""
    rows = layers(arguments.model)
    totals = {
        "convolutions": len(rows),
        "weights": sum(weights(row) for row in rows),
        "bits": sum(row.bits for row in rows),
        "bytes": sum(row.bytes for row in rows),
    }
    coded = 8 * totals["bytes"] < totals["bits"]
    more = [row.name for row in rows if row.values > 2]
    if arguments.json:
        print_line(
            json.dumps(
                {
                    "model": str(arguments.model),
                    "layers": [row._asdict() for row in rows],
                    "total": totals,
                    "more_than_two_values": more,
                }
            )
        )
        return 0
    print_line(
        f"{'layer':8} {'kernel':>18} {'scale':>9} {'+1 bits':>8} {'values':>9} {'bits':>12} {'bytes':>11}"
        + (f" {'bits/weight':>12}" if coded else "")
    )
    for row in rows:
        kernel = "x".join(map(str, row.shape))
        scale = "-" if row.scale is None else f"{row.scale:.6f}"
        share = "-" if row.plus_share is None else f"{100 * row.plus_share:.2f} %"
        print_line(
            f"{row.name:8} {kernel:>18} {scale:>9} {share:>8} {row.values:>9,} {row.bits:>12,} "
            f"{row.bytes:>11,}" + (f" {8 * row.bytes / weights(row):>12.4f}" if coded else "")
        )
    print_line(
        f"{totals['convolutions']} convolutions, {totals['weights']:,} weights, {totals['bits']:,} bits, "
        f"{totals['bytes']:,} bytes ({totals['bytes'] / 2**20:.3f} MiB)"
        + (f", coded: {8 * totals['bytes'] / totals['weights']:.4f} bits per weight" if coded else "")
    )
    if more:
        one_bit = sum(weights(row) for row in rows if row.plus_share is not None)
        print_line(f"{one_bit:,} of {totals['weights']:,} weights are one bit")
        print_line(f"more than two values: {', '.join(more)}")
    else:
        print_line("every convolution has at most two values")
    return 0


def weights(row: LayerRow) -> int:
    """Weights of a layer, F * F * C_in * C_out."""
    height, width, channels_in, channels_out = row.shape
    return height * width * channels_in * channels_out
