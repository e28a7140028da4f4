"""What the conventions of a trained network are worth: the author's MATLAB network, each exchanged in turn.

    BINWRN_OFFICIAL_DIR=... TFDS_DATA_DIR=... python benchmarks/conventions.py --limit 500

Nothing is trained: a network that was trained with one convention is evaluated with another, which is what an
importer or a runtime does that has it wrong.
"""

import argparse
import json
import os
import tempfile
import unittest.mock
from pathlib import Path

import flax.linen as nn

from binwrn_jax.checkpoints import MODEL_FILE
from binwrn_jax.cli import main as binwrn
from binwrn_jax.data.sources import load
from binwrn_jax.models import layers
from binwrn_jax.runtime import ArrayImages, measure, open_model

FIELDS = {
    "as trained": {},
    "padding `same`": {"padding": "same"},
    "no input ReLU": {"input_relu": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=500, help="test images")
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    official = Path(os.environ["BINWRN_OFFICIAL_DIR"]) / "matlab_cifar10_20-10.mat"
    data = ArrayImages(load("cifar10", "test", limit=arguments.limit))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "matlab"
        assert binwrn(["import", str(official), "--output", str(model), "--dataset", "cifar10"]) == 0
        description = json.loads((model / MODEL_FILE).read_text())
        for name, fields in FIELDS.items():
            changed = {**description, "model": {**description["model"], **fields}}
            (model / MODEL_FILE).write_text(json.dumps(changed))
            results[name] = measure(open_model(model), data)[0]["error"]
            print(f"{name}: test error {results[name]:.2f} %", flush=True)
        (model / MODEL_FILE).write_text(json.dumps(description))
        # The models divide by the pixels inside the image, whatever they are asked for here.
        average = nn.avg_pool

        def ninths(*where: object, **_: object) -> object:
            return average(*where, count_include_pad=True)

        with unittest.mock.patch.object(layers.nn, "avg_pool", ninths):
            name = "average pool divides by 9 at the border"
            results[name] = measure(open_model(model), data)[0]["error"]
            print(f"{name}: test error {results[name]:.2f} %", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"images": arguments.limit, "error": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
