"""Packed files with coded kernels beside plain ones: bytes, bits per weight, seconds to write and to load.

python benchmarks/coded_files.py MODEL...

MODEL is a packed file or a model folder. Seconds are processor time of this process, the fastest of five.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax import Model
from binwrn_jax.deploy import native
from binwrn_jax.deploy.entropy import encode
from binwrn_jax.deploy.numpy_reader import CodedKernel, decode_kernels
from binwrn_jax.deploy.packed import PackedModel, pack, read_packed, serialise

ROUNDS = 5


def fastest(work: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Seconds of processor time."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def measure(packed: PackedModel, folder: Path) -> dict[str, Any]:
    """Sizes and times of one model."""
    plain, coded = folder / "plain", folder / "coded"
    plain.write_bytes(serialise(packed))
    encoding = fastest(lambda: coded.write_bytes(serialise(packed, "entropy")), 1)
    again = read_packed(coded)
    assert serialise(again) == plain.read_bytes()  # the same model, to the bit
    convs = {op["tensor"]: op for op in packed.operations if op["op"] == "conv"}
    kernels = {}
    for name in again.coded:
        c_in, c_out = convs[name]["channels"]
        kernels[name] = CodedKernel(encode(packed.bits[name], c_in), c_out, c_in)
    weights = sum(math.prod(op["window"]) * math.prod(op["channels"]) for op in convs.values())
    stored = sum(again.coded.get(name, packed.bits[name].nbytes) for name in convs)
    load = [fastest(functools.partial(native.load, path)) for path in (plain, coded)]
    return {
        "weights": weights,
        "kernels": len(convs),
        "coded": len(again.coded),
        "plain_bytes": plain.stat().st_size,
        "coded_bytes": coded.stat().st_size,
        "bits_per_weight": round(8 * stored / weights, 4),
        "encode_seconds": round(encoding, 2),
        "numpy_decode_seconds": round(fastest(lambda: decode_kernels(kernels)), 3),
        "native_load_seconds": round(load[0], 4),
        "native_load_coded_seconds": round(load[1], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    for path in parser.parse_args().models:
        if path.is_dir():
            model = Model.load(path)
            packed = pack(model, np.zeros(model.description.image_shape, np.uint8))
        else:
            packed = read_packed(path)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"model": path.name, **measure(packed, Path(folder))}), flush=True)


if __name__ == "__main__":
    main()
