"""What the conventions of a trained network are worth: the author's MATLAB network, each exchanged in turn.

    BINWRN_OFFICIAL_DIR=... TFDS_DATA_DIR=... python benchmarks/conventions.py --limit 500

Nothing is trained: a network that was trained with one convention is evaluated with another, which is what an
importer or a runtime does that has it wrong.
"""

import argparse
import functools
import json
import os
import tempfile
import unittest.mock
from pathlib import Path

import flax.linen as nn
import numpy as np

from binwrn_jax import Model
from binwrn_jax.cli.main import main as binwrn
from binwrn_jax.data.open import load
from binwrn_jax.deploy.formats import open_model
from binwrn_jax.evaluation import ArrayImages, measure
from binwrn_jax.nn import layers

FIELDS = {
    "as trained": {},
    "padding `same`": {"padding": "same"},
    "no input ReLU": {"input_relu": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=500, help="test images")
    parser.add_argument("--output", type=Path, help="JSON")
    arguments = parser.parse_args()
    official = Path(os.environ["BINWRN_OFFICIAL_DIR"]) / "matlab_cifar10_20-10.mat"
    data = ArrayImages(load("cifar10", "test", limit=arguments.limit))
    results: dict[str, dict[str, float]] = {}
    trained: list[np.ndarray] = []

    def record(name: str, model: Path) -> None:
        result, logits, _ = measure(open_model(model), data)
        trained.append(logits)
        change = float(np.abs(logits - trained[0]).max())
        results[name] = {
            "error": result["error"],
            "loss": result["loss"],
            "largest_change_of_a_logit": change,
        }
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in results[name].items()), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "matlab"
        assert binwrn(["import", str(official), "--output", str(model), "--dataset", "cifar10"]) == 0
        opened = Model.load(model)
        description = opened.description.to_dict()
        for name, fields in FIELDS.items():
            changed = {**description, "model": {**description["model"], **fields}}
            Model.create(opened.variables, changed).save(Path(folder) / "changed")
            record(name, Path(folder) / "changed")
        # The models divide by the pixels inside the image.
        ninths = functools.partial(nn.avg_pool, count_include_pad=True)
        with unittest.mock.patch.object(layers, "average_pool", ninths):
            record("average pool divides by 9 at the border", model)
    if arguments.output:
        arguments.output.write_text(json.dumps({"images": arguments.limit, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
