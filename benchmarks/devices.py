"""Training on any number of devices against one: gradients of a step, losses until a sign differs.

    python benchmarks/devices.py --steps 50 --config=cifar10:20-1,1bit,cutout

What stands after the program's own options are those of train.py. The same first steps are trained on each
of ``--devices`` (virtual ones of the CPU) and by two processes with four devices each, every setting in
processes of its own (`tests/trajectories.py`). What a setting gives is kept in ``--keep``, so that the same
command goes on after an interruption. With ``--smooth`` softplus takes the place of ReLU: else a rounding of
1e-6 moves a millionth of the numbers across the corner, which is a thousandth of the gradient's norm.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from common import machine, markdown

ROOT = Path(__file__).parents[1]


def train(out: Path, processes: int, devices: int, steps: int, arguments: list[str]) -> None:
    """Writes the trajectory of one setting.

    Raises:
      RuntimeError: a process failed; with its last lines.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = [f"--coordinator=127.0.0.1:{port}", f"--process_count={processes}"]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    job = [
        subprocess.Popen(
            [sys.executable, "tests/trajectories.py", str(out), str(steps), *arguments]
            + ([*where, f"--process_index={index}"] if processes > 1 else []),
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for index in range(processes)
    ]  # fmt: skip
    texts = [process.communicate()[0] for process in job]
    if any(process.returncode for process in job):
        raise RuntimeError("\n".join(texts[0].strip().splitlines()[-5:]))


def row(name: str, ours: dict[str, np.ndarray], one: dict[str, np.ndarray]) -> list[str]:
    """How far a setting is from one device."""
    gap = np.linalg.norm(ours["gradients"] - one["gradients"]) / np.linalg.norm(one["gradients"])
    flips = np.bitwise_count(ours["signs"] ^ one["signs"]).sum(1)
    equal = len(flips) if not flips.any() else int(np.argmax(flips > 0))
    apart = np.abs(ours["losses"] / one["losses"] - 1)
    before = f"{apart[:equal].max():.1e}" if equal else "-"
    first = str(flips[equal]) if equal < len(flips) else "-"
    return [name, f"{gap:.1e}", f"{equal} of {len(flips)}", before, first, str(flips[-1]), f"{apart[-1]:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 3, 4, 8])
    parser.add_argument("--smooth", action="store_true", help="softplus for ReLU")
    parser.add_argument("--keep", type=Path, default=Path("runs/devices"), help="default %(default)s")
    arguments, rest = parser.parse_known_args()
    rest = [*(["--smooth"] if arguments.smooth else []), *rest]
    folder = arguments.keep.absolute() / "".join(c if c.isalnum() else "_" for c in " ".join(rest))
    folder.mkdir(parents=True, exist_ok=True)
    settings = [("1", 1, 1), *((str(n), 1, n) for n in arguments.devices), ("2 processes x 4", 2, 4)]
    found = {}
    for name, processes, devices in settings:
        out = folder / f"{processes}x{devices}-{arguments.steps}.npz"
        if not out.exists():
            train(out, processes, devices, arguments.steps, rest)
        with np.load(out) as file:
            found[name] = dict(file)
    header = (
        "devices", "gradients apart", "steps of equal signs", "losses apart until then", "signs at the first",
        "signs at the last step", "loss there",
    )  # fmt: skip
    print(json.dumps(machine()) + "\n")
    signs = found["1"]["signs"].shape[1] * 8
    print(f"python {' '.join(sys.argv)}: {found['1']['gradients'].size:,} parameters, {signs:,} signs\n")
    print(markdown(header, [row(name, found[name], found["1"]) for name, *_ in settings[1:]]))


if __name__ == "__main__":
    main()
