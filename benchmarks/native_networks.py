"""The native runtime against ONNX Runtime with float weights, on networks of known families.

python benchmarks/native_networks.py --output result.json

The networks have untrained weights of one bit, but for the first and the last layer, which are floats:
MobileNet 1 and 2 (depthwise and pointwise layers), ResNet-18 and a ResNet-20 (dense 3x3 layers). The other
engine gets the same networks with float weights, batch norms folded into them. Everything else is as in
native_runtime.py: engines take turns, and ratios are of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from native_runtime import machine, measure, multiply_adds, write_files
from peers.engines import ENGINES


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", help="of mobilenet_v1, mobilenet_v2, resnet18, resnet20")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="*", default=[1])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--engines", nargs="*", default=["native", "onnxruntime"], choices=tuple(ENGINES))
    parser.add_argument("--engine-python", default=sys.executable, help="interpreter with the other engines")
    parser.add_argument("--output", type=Path, help="JSON")
    return parser.parse_args()


def main() -> None:
    from peers.networks import NETWORKS

    from binwrn_jax.deploy.packed import serialise

    arguments = parse_arguments()
    report: dict[str, Any] = {"machine": machine(), "load_before": os.getloadavg(), "networks": {}}
    for name in arguments.networks or NETWORKS:
        packed = NETWORKS[name]()
        macs = multiply_adds(packed)
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            arguments.model = folder / "model.packed"
            arguments.model.write_bytes(serialise(packed))
            sizes = write_files(
                arguments.model, packed, max(arguments.batches) + 4, folder, arguments.engines
            )
            print(f"\n{name}: {macs / 1e6:,.0f} million multiply-adds, bytes of the files: {sizes}")
            rows = [row for n in arguments.threads for row in measure(arguments, folder, n, macs)]
        report["networks"][name] = {"multiply_adds": macs, "file_bytes": sizes, "results": rows}
    report["load_after"] = os.getloadavg()
    print(f"\n{report['machine']}")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
