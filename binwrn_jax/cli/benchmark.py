"""``binwrn benchmark MODEL``: how fast each runtime that is installed runs a model on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from binwrn_jax.cli.export import calibration_images, images_for
from binwrn_jax.cli.output import print_line
from binwrn_jax.deploy.benchmark import Contestant, Timing, measure
from binwrn_jax.deploy.formats import format_of, get_format, read_model_file
from binwrn_jax.deploy.numpy_reader import is_integer
from binwrn_jax.deploy.packed import PackedModel, pack, write_packed
from binwrn_jax.deploy.quantize import quantize
from binwrn_jax.errors import UserError
from binwrn_jax.store.model import Model
from binwrn_jax.training.environment import processor_name

RUNTIMES = ("native", "numpy", "jax", "onnxruntime")
_OPENERS = {"native": "native", "numpy": "numpy", "jax": "auto"}  # of a packed file
_CALIBRATION_IMAGES = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", type=Path, help="workdir, model folder, packed or ONNX file")
    parser.add_argument(
        "--runtimes", default=",".join(RUNTIMES), metavar="NAME,...", help="default %(default)s, as installed"
    )
    parser.add_argument(
        "--int8", action="store_true", help="also with 8-bit activations, see `binwrn export`"
    )
    parser.add_argument("--calibrate", metavar="DATASET", help="for --int8; default the model's own")
    parser.add_argument("--data-dir", metavar="DIR", help="prepared TFDS data; default TFDS_DATA_DIR")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="processors to use; default %(default)s"
    )
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="of each runtime; default %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints the table."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= arguments.threads <= usable:
        raise UserError(f"--threads is {arguments.threads}: this process may use 1 to {usable} processors")
    if not 1 <= arguments.batch <= 4096:
        raise UserError(f"--batch is {arguments.batch}: it must be 1 to 4096")
    if not 0 < arguments.seconds <= 3600:
        raise UserError(f"--seconds is {arguments.seconds}: it must be above 0 and at most 3600")
    names = arguments.runtimes.split(",")
    for name in names:
        if name not in RUNTIMES:
            raise UserError(f"unknown runtime {name!r}: choose from {', '.join(RUNTIMES)}")
    packed = _read(arguments.model)
    images, source = images_for(packed.description, 8, arguments.data_dir)
    with tempfile.TemporaryDirectory(prefix="binwrn-benchmark-") as folder:
        contestants = list(_contestants(arguments, packed, names, Path(folder)))
        if not contestants:
            raise UserError(
                f"nothing to measure: none of {', '.join(names)} is installed and runs this model"
            )
        timings = measure(
            contestants,
            images,
            threads=arguments.threads,
            batch=arguments.batch,
            seconds=arguments.seconds,
        )
    if arguments.json:
        rows = [dataclasses.asdict(timing) for timing in timings]
        print_line(json.dumps({"processor": processor_name(), "images": source, "timings": rows}))
        return 0
    print_line(
        f"{processor_name()}, {arguments.threads} of {usable} processors, {platform.system()}; on {source}"
    )
    _print_table(timings)
    return 0


def _read(model: Path) -> PackedModel:
    kind = format_of(model)
    if kind is not None:
        return read_model_file(model, kind)
    loaded = Model.load(model)
    images, _ = images_for(loaded.description.to_dict(), 1, None)
    return pack(loaded, images[0])


def _contestants(
    arguments: argparse.Namespace, packed: PackedModel, names: list[str], folder: Path
) -> Iterator[Contestant]:
    """Writes the files into a folder, and names what runs them."""
    profiles = {"int8" if is_integer(packed.metadata) else "float32": packed}
    if arguments.int8 and "float32" in profiles:
        name = arguments.calibrate or packed.description.get("dataset")
        images, _ = calibration_images(name, packed.description, _CALIBRATION_IMAGES, arguments.data_dir)
        profiles["int8"] = quantize(packed, images)
    for activations, model in profiles.items():
        path = folder / f"{activations}.safetensors"
        write_packed(model, path)
        for name in names:
            if name in _OPENERS:
                yield Contestant(name, _OPENERS[name], activations, path)
            elif (
                activations == "float32"
                and importlib.util.find_spec("onnx")
                and importlib.util.find_spec(name)
            ):
                write = get_format("onnx").write
                assert write is not None
                write(model, folder / "model.onnx")
                yield Contestant(name, "auto", activations, folder / "model.onnx")


def _print_table(timings: list[Timing]) -> None:
    batch = f"images/s at {timings[0].batch}"
    print_line(
        f"{'runtime':12} {'activations':11} {'file':>12} {'load ms':>9} {'memory MB':>9} "
        f"{'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} {batch:>16}"
    )
    for timing in timings:
        quantiles = " ".join(f"{1e3 * value:>9.3f}" for value in timing.latency_s.values())
        print_line(
            f"{timing.runtime:12} {timing.activations:11} {timing.file_bytes:>12,} "
            f"{1e3 * timing.load_s:>9.1f} {timing.memory_bytes / 1e6:>9.1f} {quantiles} "
            f"{timing.images_per_s:>16,.1f}"
        )
