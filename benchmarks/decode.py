"""How fast one core turns ImageNet's JPEGs into pixels, against tf.data's fused decode-and-crop.

    TFDS_DATA_DIR=... python benchmarks/decode.py --tensorflow-python ../tf/bin/python

Both decode the same 200 JPEGs with the same crops (without augmentation the central one), in turns, round
after round, each on one thread; a rate is images by CPU seconds of the process, so that neighbours on the
machine matter little, and the reported one the median of the rounds. TensorFlow is imported only in a process
of its own, by the python of an environment that has it; without that option only this project is measured.

Then the whole path from records to batches with 1 and 2 workers, in wall-clock time, and their memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

TENSORFLOW = """
import json, os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
data = np.load(sys.argv[1], allow_pickle=False)
ends = np.cumsum(data["lengths"])
jpegs = [data["bytes"][e - n : e].tobytes() for n, e in zip(data["lengths"], ends)]

def dataset(boxes, dct):
    def load(jpeg, box):
        pixels = tf.image.decode_and_crop_jpeg(jpeg, box, channels=3, dct_method=dct)
        return tf.cast(tf.image.resize(pixels, (224, 224)) + 0.5, tf.uint8)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return tf.data.Dataset.from_tensor_slices((jpegs, boxes)).map(load).with_options(options)

runs = {
    f"{name} {dct}".strip(): dataset(data[name], dct)
    for name in ("random", "central") for dct in ("", "INTEGER_FAST")
}
if sys.argv[2] == "pixels":
    np.save(sys.argv[3], np.stack([x.numpy() for x in runs["random"]]))
print(json.dumps({"version": tf.__version__, "runs": list(runs)}), flush=True)
for line in sys.stdin:
    start = time.process_time()
    count = sum(1 for _ in runs[line.strip()])
    print(json.dumps(count / (time.process_time() - start)), flush=True)
"""


def ours(jpegs: list[bytes], boxes: list[Any]) -> float:
    """Images per CPU second, from bytes to uint8 pixels."""
    from binwrn_jax.data import jpeg as imagenet

    out = np.empty((1, imagenet.SIZE, imagenet.SIZE, 3), np.uint8)
    start = time.process_time()
    for jpeg, box in zip(jpegs, boxes, strict=True):
        imagenet.decode(jpeg, [box], out)
    return len(jpegs) / (time.process_time() - start)


def workers(records: Any, count: int, batch_size: int, batches: int) -> dict[str, float]:
    """Images/s by the clock of the whole path with so many workers, and the memory of one of them, in MB."""
    import psutil

    from binwrn_jax.data.catalog import lookup
    from binwrn_jax.data.streamed import TrainBatches
    from binwrn_jax.data.workers import stream

    facts = lookup("imagenet2012")
    source = TrainBatches(records, facts, batch_size, range(batch_size), 0, "scale_aspect_flip")
    iterator = stream(source, 0, count, count)
    for _ in range(3 * count):  # until all have started, and their buffers are full
        next(iterator)
    start = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    rate = batches * batch_size / (time.perf_counter() - start)
    time.sleep(2)
    children = [c for c in psutil.Process().children() if "spawn_main" in " ".join(c.cmdline())]
    memory = [child.memory_full_info() for child in children]
    iterator.close()
    return {
        "workers": count,
        "images_per_s": rate,
        "rss_mb": max(m.rss for m in memory) / 1e6,
        "own_mb": max(m.uss for m in memory) / 1e6,
    }


def read_jpegs() -> tuple[list[bytes], list[tuple[int, int]], dict[str, list[Any]]]:
    """The images, their sizes, and the boxes of each kind of crop."""
    from binwrn_jax.data import jpeg as imagenet
    from binwrn_jax.data.open import open_dataset

    jpegs = []
    for split in ("train[:160]", "validation[:40]"):
        part = open_dataset("imagenet2012").records(split)
        jpegs += [example.image for example in part.read(range(len(part)))]
    sizes = [imagenet.image_size(jpeg) for jpeg in jpegs]
    boxes = {
        "random": [
            imagenet.scale_aspect_box(*size, imagenet.random_stream(0, 0, i)) for i, size in enumerate(sizes)
        ],
        "central": [imagenet.center_box(*size) for size in sizes],
    }
    return jpegs, sizes, boxes


class Peer:
    """tf.data in a process of its own.

    Attributes:
      version: of TensorFlow.
      runs: names of what it can measure.
      mean_difference: of its pixels from ours, with the random crops.
    """

    def __init__(self, python: str, jpegs: list[bytes], boxes: dict[str, list[Any]], folder: Path) -> None:
        from binwrn_jax.data import jpeg as imagenet

        file, pixels = folder / "jpegs.npz", folder / "pixels.npy"
        joined = np.frombuffer(b"".join(jpegs), np.uint8)
        arrays = {name: np.array(b, np.int32) for name, b in boxes.items()}
        np.savez(file, bytes=joined, lengths=np.array([len(j) for j in jpegs]), **arrays)
        self._process = subprocess.Popen(
            [python, "-c", TENSORFLOW, str(file), "pixels", str(pixels)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        about = json.loads(self._line())
        self.version, self.runs = about["version"], about["runs"]
        # The same pixels, but for decoding at a part of the size and the rounding of the resizing.
        mine = np.stack([imagenet.decode(j, [b])[0] for j, b in zip(jpegs, boxes["random"], strict=True)])
        self.mean_difference = float(np.abs(mine.astype(int) - np.load(pixels)).mean())

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()

    def rate(self, name: str) -> float:
        """Images per CPU second."""
        print(name, file=self._process.stdin, flush=True)
        return json.loads(self._line())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def compare(
    jpegs: list[bytes], boxes: dict[str, list[Any]], python: str | None, rounds: int
) -> dict[str, Any]:
    """Rates of this project and of tf.data, in turns; the latter where there is a python for it."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(python, jpegs, boxes, Path(folder)) if python else None
        if peer:
            result["tensorflow"] = peer.version
            result["mean_difference_of_pixels"] = peer.mean_difference
        rates: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, crops in boxes.items():
                rates.setdefault(f"this project, {name}", []).append(ours(jpegs, crops))
            for name in peer.runs if peer else ():
                rates.setdefault(f"tf.data, {name}", []).append(peer.rate(name))
        if peer:
            peer.close()
    result["rates"] = rates
    return result


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tensorflow-python", metavar="PYTHON", help="of an environment with TensorFlow")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=128, help="of the workers; default %(default)s")
    parser.add_argument("--batches", type=int, default=16, help="to time the workers; default %(default)s")
    parser.add_argument("--output", type=Path, help="JSON")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()

    from binwrn_jax.data.open import open_dataset

    jpegs, sizes, boxes = read_jpegs()
    result: dict[str, Any] = {
        "images": len(jpegs),
        "mean_bytes": statistics.mean(map(len, jpegs)),
        "median_size": [statistics.median(side) for side in zip(*sizes, strict=True)],
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(result))

    result |= compare(jpegs, boxes, arguments.tensorflow_python, arguments.rounds)
    for name, values in result["rates"].items():
        middle, low, high = statistics.median(values), min(values), max(values)
        print(f"{name:28} {middle:7.0f} images/s and core  ({low:.0f} to {high:.0f})")
    if "mean_difference_of_pixels" in result:
        print(f"mean difference of a pixel value {result['mean_difference_of_pixels']:.2f} of 255")

    records = open_dataset("imagenet2012").records("train")
    result["workers"] = [workers(records, count, arguments.batch_size, arguments.batches) for count in (1, 2)]
    for row in result["workers"]:
        print(
            f"{row['workers']} workers: {row['images_per_s']:.0f} images/s, {arguments.batch_size} a batch; "
            f"memory of one {row['rss_mb']:.0f} MB, {row['own_mb']:.0f} MB of it not shared"
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
