"""``binwrn import FILE.mat --output DIR``: a released network becomes a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from binwrn_jax.cli.output import check_folder_output, print_line
from binwrn_jax.cli.sizes import size
from binwrn_jax.deploy.formats import layers
from binwrn_jax.hub.released import import_released
from binwrn_jax.store.model import MODEL_FILE
from binwrn_jax.training.schedules import cycle_ends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("file", type=Path, help="MATLAB file released by the paper's author, of any layout")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--dataset", help="what it was trained on, if you know: the files do not say")
    parser.add_argument(
        "--max-memory", type=size, metavar="SIZE",
        help="bytes that its data may take, such as 2G; default 64 times the size of the file and 64 MiB",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Imports a file and prints its content."""
    check_folder_output(arguments.output, [arguments.file], "model folder", MODEL_FILE)
    description = import_released(arguments.file, arguments.output, arguments.dataset, arguments.max_memory)
    model, rows = description["model"], layers(arguments.output)
    bits = sum(row.bits for row in rows)
    print_line(
        f"{arguments.file}: {description['source']['layout']} layout, "
        f"{'plain' if model['plain'] else 'residual'} network {model['depth']}-{model['width']:g}, "
        f"{description['image_shape'][2]} input channels, {description['num_classes']} classes"
    )
    print_line(
        f"{len(rows)} convolutions, {bits:,} weights of 1 bit: {bits / 8 / 2**20:.3f} MiB; "
        f"padding {model['padding']}, input ReLU {'on' if model['input_relu'] else 'off'}, "
        f"scales and offsets of {'all' if model['affine'] else 'the first of'} {len(rows) + 1} batch norms, "
        f"epsilon {description['source']['bn_epsilon']:g}"
    )
    if description["recorded"]:
        accuracy = description["recorded"]["accuracy_by_epoch"]
        shown = ", ".join(f"{epoch}: {accuracy[epoch - 1]:.2f}" for epoch in cycle_ends(len(accuracy), 2))
        print_line(f"recorded test accuracy in percent, at the ends of the cycles: {shown}")
    if description["image_size_assumed"]:
        height, width, _ = description["image_shape"]
        print_line(f"data set unknown, images taken to be {height}x{width}: --dataset tells")
    print_line(f"written to {arguments.output}")
    return 0
