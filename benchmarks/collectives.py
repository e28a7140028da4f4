"""What the devices send each other in a training step, by their number, read from the compiled program.

    python benchmarks/collectives.py --config cifar10 --spec 20-4,1bit --batch 128

Compiles the run's own step for 1, 2, 4 and 8 virtual CPU devices, from shapes alone, and sorts its
collectives: the sum of the gradients (one all-reduce of the size of the parameters, with the loss), the
statistics of batch norm (and of its backward pass), and the rest. Bytes are of the results on one device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
from common import markdown

from binwrn_jax.data.catalog import lookup
from binwrn_jax.parallel import sharding
from binwrn_jax.preflight.collectives import collectives
from binwrn_jax.training.resolve import resolve
from binwrn_jax.training.state import init_state
from binwrn_jax.training.step import jit_train_step

IMAGES = 1000  # of the data set on the device, which nothing here depends on


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="cifar10", help="file of configs/ without .py")
    parser.add_argument("--spec", default="20-4,1bit")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--ghost", type=int, default=16, help="size of the groups of the second half")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(arguments.devices))
    sys.path.insert(0, str(Path(__file__).parent.parent / "configs"))
    config = __import__(arguments.config).get_config(arguments.spec)
    config.batch_size = arguments.batch
    spec = lookup(config.data.name)
    batch = jax.ShapeDtypeStruct((arguments.batch, *spec.image_shape), np.uint8)
    labels = jax.ShapeDtypeStruct((arguments.batch,), np.int32)
    inputs = {"images": batch, "labels": labels}
    if not spec.streamed:
        inputs = {
            "images": jax.ShapeDtypeStruct((IMAGES, *spec.image_shape), np.uint8),
            "labels": jax.ShapeDtypeStruct((IMAGES,), np.int32),
            "indices": labels,
        }
    rows = []
    for ghost in (0, arguments.ghost):
        config.model.ghost_size = ghost
        resolved = resolve(config, spec, 100 * config.batch_size)
        model, optimizer = resolved.network, resolved.optimizer
        state = jax.eval_shape(lambda m=model, o=optimizer: init_state(m, o, spec.image_shape))
        parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
        for devices in arguments.devices:
            mesh = sharding.make_mesh(devices)
            step = jit_train_step(resolved, mesh)
            inputs["split"] = sharding.BatchSplit(mesh, config.batch_size)
            sent = collectives(step.lower(state, inputs).compile().as_text())
            gradients = [c for c in sent if c.kind == "all-reduce" and "conv" in c.source]
            statistics = [c for c in sent if "/bn" in c.source and c not in gradients]
            other = [c for c in sent if c not in gradients and c not in statistics]
            rows.append(
                [
                    f"{devices}, {f'ghost groups of {ghost}' if ghost else 'global statistics'}",
                    f"{parameters:,}",
                    f"{len(gradients)}: {sum(c.bytes for c in gradients):,}",
                    f"{len(statistics)}: {sum(c.bytes for c in statistics):,}",
                    f"{len(other)}: {sum(c.bytes for c in other):,}",
                    ", ".join(sorted({c.kind for c in sent})) or "none",
                ]
            )
    header = (
        "devices",
        "bytes of parameters",
        "gradients: bytes",
        "statistics: bytes",
        "other: bytes",
        "kinds",
    )
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
