"""Fine-tuning a released 20-10 network against training from scratch, at equal steps.

    python benchmarks/fine_tuning.py --output runs/fine-tuning

Two tasks: three classes of CIFAR-10 (cat, dog, horse), and the ten digits of MNIST with the ten of
Fashion-MNIST as 20 classes, as RGB of 32x32 pixels. Each is written as an ``npz:`` file with so many training
and test images of each class, and trained twice by the same command, once with ``init_from``. Runs that are
finished are not repeated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from common import machine, markdown

from binwrn_jax.data.dataset import Arrays
from binwrn_jax.data.open import load

ROOT = Path(__file__).parents[1]
ANIMALS = ("cat", "dog", "horse")
SPLITS = ("train", "test")


def some_of_each(arrays: Arrays, classes: list[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count`` images of each of some classes, labelled by their place in the list."""
    chosen = [np.flatnonzero(arrays.labels == label)[:count] for label in classes]
    labels = np.repeat(np.arange(len(classes)), [len(part) for part in chosen])
    return arrays.images[np.concatenate(chosen)], labels


def fashion(folder: Path, split: str) -> Arrays:
    """Fashion-MNIST from its four IDX files."""
    stem = {"train": "train", "test": "t10k"}[split]
    with gzip.open(folder / f"{stem}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    with gzip.open(folder / f"{stem}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return Arrays(images, labels.astype(np.int32), ())


def as_colour(images: np.ndarray) -> np.ndarray:
    """28x28 grey images as 32x32 RGB, with a black border."""
    return np.repeat(np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))), 3, axis=-1)


def write_animals(path: Path, counts: dict[str, int]) -> None:
    content = {}
    for split in SPLITS:
        arrays = load("cifar10", split)
        classes = [list(arrays.class_names).index(name) for name in ANIMALS]
        content[f"{split}_images"], content[f"{split}_labels"] = some_of_each(arrays, classes, counts[split])
    np.savez(path, class_names=np.array(ANIMALS), **content)


def write_twenty(path: Path, counts: dict[str, int], folder: Path) -> None:
    content = {}
    for split in SPLITS:
        parts = [
            some_of_each(arrays, list(range(10)), counts[split])
            for arrays in (load("mnist", split), fashion(folder, split))
        ]
        content[f"{split}_images"] = as_colour(np.concatenate([images for images, _ in parts]))
        content[f"{split}_labels"] = np.concatenate([parts[0][1], 10 + parts[1][1]])
    names = [f"digit {i}" for i in range(10)] + [f"fashion {i}" for i in range(10)]
    np.savez(path, class_names=np.array(names), **content)


def train(data: Path, workdir: Path, *options: str) -> dict:
    """The summary of a run, which is trained if it is not there."""
    command = [
        sys.executable, "-m", "binwrn_jax", "train", f"--config.data.name=npz:{data}",
        f"--workdir={workdir}", *options,
    ]  # fmt: skip
    if not (workdir / "summary.json").exists():
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    return json.loads((workdir / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, default=Path("runs/fine-tuning"))
    parser.add_argument("--pretrained", default="cifar10-20-10", help="default %(default)s")
    parser.add_argument("--spec", default="20-10,1bit,matlab", help="of the network; default %(default)s")
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--train", type=int, nargs=2, default=[200, 50], help="images of each class")
    parser.add_argument("--test", type=int, nargs=2, default=[100, 15], help="images of each class")
    arguments, rest = parser.parse_known_args()
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    options = [f"--config=own_images:{arguments.spec}", "--config.epochs=2", "--config.batch_size=20", *rest]
    writers = {
        "three": write_animals,
        "twenty": lambda path, counts: write_twenty(path, counts, arguments.fashion),
    }
    rows = []
    for (name, write), *counts in zip(writers.items(), arguments.train, arguments.test, strict=True):
        data = output / f"{name}.npz"
        if not data.exists():
            write(data, dict(zip(SPLITS, counts, strict=True)))
        for start, more in (
            ("scratch", []),
            (arguments.pretrained, [f"--config.init_from={arguments.pretrained}"]),
        ):
            found = train(data, output / f"{name}-{start}", *options, *more)
            test = found["test"]
            rows.append(
                [
                    f"{name}, from {start}", found["steps"], f"{found['test_error']:.2f} %",
                    f"{test['error_low']:.2f} to {test['error_high']:.2f} %", test["n"],
                    f"{found['train_error']:.2f} %", f"{found['seconds']:.0f}",
                ]
            )  # fmt: skip
    print(json.dumps(machine()) + "\n")
    header = (
        "task",
        "steps",
        "test error",
        "95 % interval",
        "test images",
        "training error, last epoch",
        "s",
    )
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
