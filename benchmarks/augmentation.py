"""Augmentation on the device against NumPy, and against Grain workers, in one run: images/s of each.

    TFDS_DATA_DIR=... python benchmarks/augmentation.py --workers 0 1 2

All make the same of the same data set, one after another in each round: batches of shuffled images, each
flipped, cropped from a border of random integers, and a patch of random integers put over it (`++`, Table 1).

* device: what the training step does, as a program of its own, from indices to the augmented batch;
* numpy: the same on the host, vectorised over the batch, in the training process;
* grain N: image by image in N worker processes (0: in a thread of the training process), the usual pipeline;
* grain batch N: NumPy's vectorised function in N worker processes.

The host's batches are put on the device, as a training step would need them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from common import machine, markdown, spread

from binwrn_jax.data.open import load
from binwrn_jax.training.augment import CUTOUT, PAD, augment


def numpy_augment(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """`augment(..., "flip_crop_cutout")` of 32x32 images, uint8 ``[N, 32, 32, C]``."""
    n, height, width, channels = images.shape
    padded = rng.integers(0, 256, (n, height + 2 * PAD, width + 2 * PAD, channels), np.uint8)
    flips = rng.random(n) < 0.5
    padded[:, PAD:-PAD, PAD:-PAD] = np.where(flips[:, None, None, None], images[:, :, ::-1], images)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    top, left = rng.integers(0, 2 * PAD + 1, (2, n))
    out = np.ascontiguousarray(windows[np.arange(n), top, left].transpose(0, 2, 3, 1))
    top = rng.integers(-(CUTOUT - 2), height, n)[:, None]
    left = rng.integers(-(CUTOUT - 2), width, n)[:, None]
    rows, columns = np.arange(height)[None] - top, np.arange(width)[None] - left
    patch = ((rows >= 0) & (rows < CUTOUT))[:, :, None] & ((columns >= 0) & (columns < CUTOUT))[:, None, :]
    np.copyto(out, rng.integers(0, 256, out.shape, np.uint8), where=patch[..., None])
    return out


class AugmentImage(grain.transforms.RandomMap):
    """One image at a time."""

    def random_map(self, element: Any, rng: np.random.Generator) -> Any:
        return {**element, "image": numpy_augment(rng, element["image"][None])[0]}


class AugmentBatch(grain.transforms.RandomMap):
    """A batch at a time."""

    def random_map(self, element: Any, rng: np.random.Generator) -> Any:
        return {**element, "image": numpy_augment(rng, element["image"])}


class Examples:
    """Random access, as Grain wants it."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self._images[index], "label": self._labels[index]}


def grain_batches(source: Any, batch: int, workers: int, whole: bool) -> Iterator[np.ndarray]:
    """Endless batches of Grain."""
    data = grain.MapDataset.source(source).shuffle(seed=0).repeat()
    if whole:
        data = data.batch(batch, drop_remainder=True).random_map(AugmentBatch(), seed=1)
    else:
        data = data.random_map(AugmentImage(), seed=1).batch(batch, drop_remainder=True)
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch)
    stream = data.to_iter_dataset(read)
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
        stream = stream.mp_prefetch(options)
    return (element["image"] for element in stream)


def numpy_batches(images: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """Endless batches of NumPy."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(images) - batch + 1, batch):
            yield numpy_augment(rng, images[order[start : start + batch]])


def device_batches(images: np.ndarray, batch: int) -> Iterator[jax.Array]:
    """Endless batches of the device."""
    whole = jax.device_put(images)

    @jax.jit
    def make(images: jax.Array, indices: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(0), position)
        return augment(key, images[indices], "flip_crop_cutout")

    rng, position = np.random.default_rng(0), 0
    while True:
        order = rng.permutation(len(images)).astype(np.int32)
        for start in range(0, len(images) - batch + 1, batch):
            position += 1
            yield make(whole, order[start : start + batch], np.int32(position))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a sample")
    parser.add_argument("--output", type=Path, help="JSON")
    arguments = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # Grain reads its own
    arrays = load(arguments.dataset, "train")
    source = Examples(arrays.images, arrays.labels)
    makers: dict[str, Any] = {
        "device": lambda: device_batches(arrays.images, arguments.batch),
        "numpy": lambda: numpy_batches(arrays.images, arguments.batch),
    }
    for workers in arguments.workers:
        for name, whole in ((f"grain {workers}", False), (f"grain batch {workers}", True)):
            makers[name] = lambda w=workers, b=whole: grain_batches(source, arguments.batch, w, b)

    def sample(batches: Iterator[Any]) -> float:
        """Images/s, from the first batch to the last one's arrival on the device."""
        jax.block_until_ready(jax.device_put(next(batches)))
        begin, images = time.perf_counter(), 0
        while time.perf_counter() - begin < arguments.seconds:
            jax.block_until_ready(jax.device_put(next(batches)))
            images += arguments.batch
        return images / (time.perf_counter() - begin)

    # One at a time is alive: idle workers would fill their buffers in the others' turns.
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(arguments.rounds):
        for name, make in makers.items():
            batches = make()
            for _ in range(8):  # compilation; workers started and their buffers filled
                next(batches)
            rates[name].append(sample(batches))
            del batches
    report = {
        "machine": machine(),
        "command": " ".join(sys.argv),
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "grain": grain.__version__, "numpy": np.__version__},
        "images_per_s": {name: spread(values) for name, values in rates.items()},
        "device_times": {
            name: statistics.median(d / v for d, v in zip(rates["device"], values, strict=True))
            for name, values in rates.items()
        },
        "load_after": os.getloadavg()[0],
    }
    rows = [
        [name, "{1:,.0f} ({0:,.0f}..{2:,.0f})".format(*spread(values)), f"{report['device_times'][name]:.2f}"]
        for name, values in rates.items()
    ]
    print(json.dumps(report["machine"]) + "\n")
    print(markdown((f"augmentation, batch {arguments.batch}", "images/s", "device is x times faster"), rows))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
