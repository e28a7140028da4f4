"""Bytes of freshly initialised networks: float model folder, packed, ONNX and StableHLO files, bits alone.

python benchmarks/packed_sizes.py [20-1 20-4 20-10 18-2.5]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import jax
import numpy as np

from binwrn_jax import Description, Model, base_config
from binwrn_jax.deploy.onnx_file import write_onnx
from binwrn_jax.deploy.packed import pack, write_packed
from binwrn_jax.deploy.stablehlo import write_stablehlo
from binwrn_jax.nn.registry import create_network
from binwrn_jax.nn.wide_resnet import IMAGENET_BLOCKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["20-1", "20-4", "20-10", "18-2.5"])
    for name in parser.parse_args().networks:
        depth, width = name.split("-")
        imagenet = int(depth) in IMAGENET_BLOCKS
        shape, classes = ((224, 224, 3), 1000) if imagenet else ((32, 32, 3), 10)
        fields = {
            **base_config().model.to_dict(),
            "depth": int(depth),
            "width": float(width),
            "affine": imagenet,
        }
        network = create_network(fields, classes)
        variables = jax.jit(network.init)(jax.random.key(0, impl="rbg"), np.zeros((1, *shape), np.uint8))
        variables = jax.tree.map(np.asarray, variables)
        model = Model(network, variables, Description(classes, shape, fields))
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder, "model"))
            packed = pack(model, image)
            for write in (write_packed, write_onnx, write_stablehlo):
                write(packed, Path(folder, write.__name__))
            result = {
                "network": name,
                "float_values": 4 * sum(x.size for x in jax.tree.leaves(variables)),
                "model_folder": sum(
                    p.stat().st_size for p in Path(folder, "model").rglob("*") if p.is_file()
                ),
                **{
                    kind: Path(folder, f"write_{kind}").stat().st_size
                    for kind in ("packed", "onnx", "stablehlo")
                },
                "ideal": packed.ideal_bytes,
            }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
