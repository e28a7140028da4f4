"""Bytes of freshly initialised networks: the float model folder, the packed file, and the bits alone.

python benchmarks/packed_sizes.py [20-1 20-4 20-10]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import jax
import numpy as np

from binwrn_jax import base_config, load_packed, save_model
from binwrn_jax.config import build_model
from binwrn_jax.deploy.packed import pack, write_packed

SHAPE = (32, 32, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["20-1", "20-4", "20-10"])
    for name in parser.parse_args().networks:
        depth, width = name.split("-")
        fields = {**base_config().model.to_dict(), "depth": int(depth), "width": float(width)}
        variables = build_model(fields, 10).init(jax.random.key(0), np.zeros((1, *SHAPE), np.uint8))
        variables = jax.tree.map(np.asarray, variables)
        description = {"model": fields, "num_classes": 10, "image_shape": list(SHAPE)}
        image = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder, "model"), variables, description)
            write_packed(pack(variables, description, image), Path(folder, "packed"))
            result = {
                "network": name,
                "float_values": 4 * sum(x.size for x in jax.tree.leaves(variables)),
                "model_folder": sum(
                    p.stat().st_size for p in Path(folder, "model").rglob("*") if p.is_file()
                ),
                "packed": Path(folder, "packed").stat().st_size,
                "ideal": load_packed(Path(folder, "packed"), keep_packed=True).packed.ideal_bytes,
            }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
