"""Lines for the terminal, and checks of output paths."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from binwrn_jax.errors import UserError, printable
from binwrn_jax.nn.registry import default_fields, import_network
from binwrn_jax.store.model import MODEL_FILE, read_description


def print_line(text: str, error: bool = False) -> None:
    """Prints one line at once; names in it cannot send escape sequences to a terminal.

    Args:
      text: of the line.
      error: to stderr.
    """
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def add_network_argument(parser: argparse.ArgumentParser) -> None:
    """Declares ``--network``, see `own_network`."""
    parser.add_argument(
        "--network",
        metavar="PACKAGE:FUNCTION",
        help="of a model folder whose network is your own: its function of the configuration, as in training",
    )


def own_network(name: str | None, model: Path) -> Any:
    """The network of the user's own that ``--network`` names, for a model folder; None without it.

    Raises:
      UserError: there is no such function, it gives no network, or the model is no folder.
    """
    if name is None:
        return None
    if model.is_file():
        raise UserError(f"--network is for model folders: {model} is a file, which has its network in it")
    description = read_description(model)
    return import_network(name, description.model or default_fields(), description.num_classes)


def check_file_output(
    output: Path, inputs: Sequence[Path], what: str, is_one: Callable[[Path], bool]
) -> None:
    """Refuses to write a file where it would replace something that is not an older one of its kind.

    Args:
      output: path of the file to be written.
      inputs: files and folders that the command reads.
      what: the kind of the file, for the message: 'packed file'.
      is_one: tells of an existing file whether it is of this kind.

    Raises:
      UserError: see above, or there is no folder to write it in; nothing has been written.
    """
    parent = output.absolute().parent
    if not parent.is_dir():
        raise UserError(f"cannot write {output}: there is no such folder")
    if output.is_dir():
        raise UserError(f"cannot write {output}: it is a folder")
    if any(_same(output, path) for path in inputs):
        raise UserError(f"cannot write {output}: the command reads it; choose another name")
    for folder in (parent, *parent.parents):
        if (folder / MODEL_FILE).is_file():
            raise UserError(f"cannot write {output}: {folder} is a model folder; choose another name")
    if (output.exists() or output.is_symlink()) and not (output.is_file() and is_one(output)):
        raise UserError(f"cannot write {output}: it is there already and is no {what}; choose another name")


def check_folder_output(output: Path, inputs: Sequence[Path], what: str, mark: str) -> None:
    """Refuses to write a folder where it would replace something that is not an older one of its kind.

    Args:
      output: the folder to be written; an empty one may be there.
      inputs: files and folders that the command reads.
      what: the kind of the folder, for the message: 'model folder'.
      mark: name of a file that each folder of this kind has.

    Raises:
      UserError: see above; nothing has been written.
    """
    if (output.is_symlink() and not output.exists()) or (output.exists() and not output.is_dir()):
        raise UserError(f"cannot write the folder {output}: there is a file of this name")
    if not output.exists():
        return
    folder = output.resolve()
    if any(path.exists() and folder in (path.resolve(), *path.resolve().parents) for path in inputs):
        raise UserError(f"cannot write the folder {output}: the command reads from it; choose another name")
    if any(output.iterdir()) and not (output / mark).is_file():
        raise UserError(
            f"cannot write the folder {output}: it is there already and is no {what}; choose another name"
        )


def is_png(path: Path) -> bool:
    """Whether a file begins as a PNG image does."""
    with open(path, "rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


def _same(output: Path, path: Path) -> bool:
    return output.exists() and path.exists() and output.samefile(path)
