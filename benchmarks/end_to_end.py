"""What of the bare training step's rate survives the real run: data, metrics, evaluation, checkpoints.

    TFDS_DATA_DIR=... python benchmarks/end_to_end.py --spec 20-1,1bit --train-images 12500 --epochs 2
    TFDS_DATA_DIR=... python benchmarks/end_to_end.py --config imagenet --spec 18-2.5,1bit --train-images 0

Trains on real data by the loop itself, `binwrn_jax.train`, into a temporary folder. At each of its reports,
 where the device has nothing to do, the loop is held, and the same jitted step runs as many times on
batches that lie ready: loop and bare step take turns in one process, so that a noisy machine disturbs both
alike. Of streamed data the bare step's batches were decoded before: what the loop takes longer is decoding
that it waits for, and workers that take its cores. While it is held its workers fill their buffers, which
hold ``data.prefetch`` batches: choose --report-every well above that. Prints the ratio of each pair, and
where the seconds of the whole run went. Evaluation and moments are timed in the loop as well; their first
call compiles and is not counted in their rate. ImageNet's last evaluation, with 25 crops, is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from common import machine, markdown, process_mb, spread

from binwrn_jax.cli.allocator import retain_freed_memory
from binwrn_jax.data.open import open_batches, open_dataset
from binwrn_jax.parallel import sharding
from binwrn_jax.training import config as configs
from binwrn_jax.training import evaluate_run, finish, loop, setup
from binwrn_jax.training.records import MetricsLog
from binwrn_jax.training.resolve import resolve
from binwrn_jax.training.state import init_state
from binwrn_jax.training.step import jit_train_step

ROOT = Path(__file__).parent.parent
READY = 8  # batches that lie ready for the bare step


class Bare:
    """The loop's training step, and nothing around it."""

    def __init__(self, config: configs.ConfigDict) -> None:
        dataset = open_dataset(config.data.name, config.data.dir or None)
        spec = dataset.info
        mesh = sharding.make_mesh(config.devices)
        data = open_batches(
            dataset,
            config.data.train_split or spec.train_split,
            mesh,
            config.batch_size,
            seed=config.seed,
            augmentation=config.augmentation,
        )
        data.check_trains()
        self.images = data.size
        resolved = resolve(config, spec, data.size)
        self._step = jit_train_step(resolved, mesh)
        state = init_state(resolved.network, resolved.optimizer, spec.image_shape, config.seed)
        self._state = sharding.put(state, sharding.replicated(mesh))
        self._batches = [data.batch(position) for position in range(READY)]
        data.close()
        self.run(2)

    def run(self, steps: int) -> float:
        """Seconds of so many steps."""
        begin = time.perf_counter()
        for step in range(steps):
            self._state, metrics = self._step(self._state, self._batches[step % READY])
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - begin


class Turns:
    """The pairs of loop and bare step, and the seconds of the loop's other work."""

    def __init__(self, bare: Bare) -> None:
        self.bare = bare
        self.pairs: list[tuple[int, float, float]] = []  # steps, seconds of the loop, of the bare step
        self.other: dict[str, list[tuple[float, int]]] = {}  # seconds, images
        self._resumed: float | None = None  # when the loop went on after a report
        self._at = 0
        self.held = 0.0  # seconds that the loop was held

    def reported(self, step: int) -> None:
        """At a training report of the loop: its device is idle."""
        now = time.perf_counter()
        if self._resumed is not None:
            steps = step - self._at
            bare = self.bare.run(steps)
            self.pairs.append((steps, now - self._resumed, bare))
        self._at, self._resumed = step, time.perf_counter()
        self.held += self._resumed - now

    def timed(self, name: str, function: Any, images: int) -> Any:
        """The function, its seconds noted; the pair that it falls into does not count."""

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            begin = time.perf_counter()
            result = jax.block_until_ready(function(*arguments, **keywords))
            self.other.setdefault(name, []).append((time.perf_counter() - begin, images))
            self._resumed = None
            return result

        return wrapped


def run(config: configs.ConfigDict, workdir: Path) -> dict[str, Any]:
    """One run of the loop."""
    bare = Bare(config)
    turns = Turns(bare)
    dataset = open_dataset(config.data.name, config.data.dir or None)
    test_split = config.data.test_split or dataset.info.test_split
    tests = open_batches(dataset, test_split, sharding.make_mesh(config.devices), config.batch_size).size

    class Log(MetricsLog):
        def write(self, kind: str, step: int, **values: Any) -> None:
            super().write(kind, step, **values)
            if kind == "train":
                turns.reported(step)

    evaluate = turns.timed("evaluation", evaluate_run.evaluate, tests)
    with (
        mock.patch.object(setup, "MetricsLog", Log),
        mock.patch.object(evaluate_run, "evaluate", evaluate),
        mock.patch.object(finish, "evaluate", evaluate),
        mock.patch.object(
            evaluate_run,
            "dataset_moments",
            turns.timed("moments", evaluate_run.dataset_moments, bare.images),
        ),
        mock.patch.object(finish, "pack_model", turns.timed("packing", finish.pack_model, 0)),
    ):
        begin = time.perf_counter()
        summary = loop.train(config, workdir)
    wall = time.perf_counter() - begin - turns.held
    result: dict[str, Any] = {
        "wall_s": wall,
        "steps": summary["steps"],
        "images_per_s_of_the_run": summary["steps"] * config.batch_size / wall,
        "other_s": {name: [seconds for seconds, _ in calls] for name, calls in turns.other.items()},
    }
    for name in ("evaluation", "moments"):
        # The last evaluation is of the packed file: another program. The first ones compile.
        rates = [images / seconds for seconds, images in turns.other.get(name, [])][1:]
        rates = rates[:-1] if name == "evaluation" and "packing" in turns.other else rates
        result[f"{name}_images_per_s"] = spread(rates) if rates else None
    result["loop_ms"] = spread([1e3 * looped / steps for steps, looped, _ in turns.pairs])
    result["bare_ms"] = spread([1e3 * bare / steps for steps, _, bare in turns.pairs])
    result["overhead"] = spread([looped / bare - 1 for _, looped, bare in turns.pairs])
    result["overhead_of_sums"] = (
        sum(looped for _, looped, _ in turns.pairs) / sum(bare for _, _, bare in turns.pairs) - 1
    )
    result["pairs"] = turns.pairs
    result["bare_images_per_s"] = 1e3 * config.batch_size / result["bare_ms"][1]
    return result


def main() -> None:
    retain_freed_memory()  # as train.py does
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="cifar10", help="file of configs/ without .py")
    parser.add_argument("--spec", default="20-1,1bit,cutout")
    parser.add_argument("--train-images", type=int, default=12500, help="0: all")
    parser.add_argument("--batch", type=int, default=0, help="0: the config's")
    parser.add_argument("--test-images", type=int, default=0, help="0: all")
    parser.add_argument("--epochs", type=int, default=3, help="an evaluation after each")
    parser.add_argument("--report-every", type=int, default=10, help="steps of a pair")
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument("--output", type=Path, help="JSON")
    arguments = parser.parse_args()

    sys.path.insert(0, str(ROOT / "configs"))
    config = __import__(arguments.config).get_config(arguments.spec)
    spec = open_dataset(config.data.name).info
    if arguments.train_images:
        config.data.train_split = f"{spec.train_split}[:{arguments.train_images}]"
    config.batch_size = arguments.batch or config.batch_size
    if arguments.test_images:
        config.data.test_split = f"{spec.test_split}[:{arguments.test_images}]"
    config.epochs, config.eval.every_epoch, config.eval.crops = arguments.epochs, True, 1
    config.log.every_steps, config.checkpoint.every_steps = arguments.report_every, arguments.checkpoint_every
    report: dict[str, Any] = {"machine": machine(), "command": " ".join(sys.argv)}
    with tempfile.TemporaryDirectory() as folder:
        result = run(config, Path(folder) / "run")
    report |= {"device": jax.devices()[0].device_kind, "version": f"jax {jax.__version__}", **result}
    report["process_mb"], report["load_after"] = process_mb(), os.getloadavg()[0]

    low, middle, high = (100 * x for x in result["overhead"])
    other = {name: sum(seconds) for name, seconds in result["other_s"].items()}
    looped = sum(seconds for _, seconds, _ in result["pairs"])
    rows = [
        ["bare step", f"{result['bare_ms'][1]:.1f} ms", f"{result['bare_images_per_s']:.0f} images/s"],
        [
            "the same in the loop",
            f"{result['loop_ms'][1]:.1f} ms",
            f"+{middle:.2f} % ({low:.2f}..{high:.2f}; of the sums {100 * result['overhead_of_sums']:.2f} %)",
        ],
    ]
    for name in ("evaluation", "moments"):
        rate = result[f"{name}_images_per_s"]
        if rate:
            ratio = rate[1] / result["bare_images_per_s"]
            rows.append(
                [name, f"{other[name]:.1f} s in all", f"{rate[1]:.0f} images/s, {ratio:.2f} x training"]
            )
    rows.append(
        ["the whole run", f"{result['wall_s']:.1f} s", f"{result['images_per_s_of_the_run']:.0f} images/s"]
    )
    rest = result["wall_s"] - looped - sum(other.values())
    rows.append(["start, compilation, end", f"{rest:.1f} s", ""])
    print(f"{json.dumps(report['machine'])}\n{len(result['pairs'])} pairs\n")
    print(markdown(("what", "time", "rate"), rows))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
