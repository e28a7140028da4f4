"""Generated C programs as files: written, and compiled here to prove them."""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.data.arrays import check_images
from binwrn_jax.deploy.c_source.generate import generate
from binwrn_jax.deploy.native import find_compiler
from binwrn_jax.deploy.packed import PackedModel
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import Predictor
from binwrn_jax.system.files import replace_file

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")


class CProgram:
    """A generated program, compiled for this machine; a function from images to logits.

    Args:
      source: path of the ``.c`` file; its header lies beside it.

    Attributes:
      description: what the header says of the model.

    Raises:
      UserError: there is no C compiler, or it does not compile the program.
    """

    def __init__(self, source: Path) -> None:
        header = source.with_suffix(".h").read_text(encoding="utf-8")
        found = re.findall(r"^#define \w+_([A-Z]+) (\d+)$", header, re.M)
        sizes = {name: int(value) for name, value in found}
        shape = [sizes["HEIGHT"], sizes["WIDTH"], sizes["CHANNELS"]]
        self.description: dict[str, Any] = {
            "image_shape": shape,
            "num_classes": sizes["CLASSES"],
            "class_names": [],
        }
        compiler = find_compiler()
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "program.so"
            command = [compiler, *FLAGS, "-O2", "-fPIC", "-shared", str(source), "-o", str(library), "-lm"]
            result = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if result.returncode:
                raise UserError(f"{compiler} does not compile the generated C: {result.stderr[:200]!r}")
            function = re.search(r"^void (\w+_predict)\(", header, re.M)
            assert function, "the header declares the function"
            self._predict = getattr(ctypes.CDLL(str(library)), function[1])
        self._predict.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._predict.restype = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[N, H, W, C]`` to float32 logits ``[N, classes]``."""
        images = np.ascontiguousarray(check_images(images, self.description["image_shape"]))
        logits = np.empty((len(images), self.description["num_classes"]), np.float32)
        for image, row in zip(images, logits, strict=True):
            self._predict(image.ctypes.data, row.ctypes.data)
        return logits


def open_c(path: Path) -> Predictor:
    """A program of `write_c` as a predictor, for its proof; raises as `CProgram` does."""
    return CProgram(path)


def write_c(packed: PackedModel, path: str | Path) -> None:
    """Writes ``path`` and, beside it, the header.

    Raises:
      UserError: the name does not end in ``.c`` or has odd characters, the network has integer arithmetic, or
        nothing can be written.
    """
    path = Path(path)
    if path.suffix != ".c" or not re.fullmatch(r"[\w.+-]+", path.stem, re.ASCII):
        raise UserError(f"cannot write {path}: the name of a C file ends in .c and has no spaces")
    if "int8" in packed.metadata.get("requires", ()):
        raise UserError("cannot write C of a network of integers: export it with --activations float32")
    program = generate(packed, path.stem)
    try:
        replace_file(path.with_suffix(".h"), program.header)
        replace_file(path, program.source)
    except OSError as problem:
        raise UserError(f"cannot write {path} ({problem.strerror})") from problem


def summary_of_c(path: Path) -> str:
    """The memory that a program of `write_c` needs, as it says itself."""
    text = path.read_text(encoding="utf-8")
    ram, flash = (int(re.findall(rf"^ \* {kind} +(\d+) bytes", text, re.M)[0]) for kind in ("RAM", "Flash"))
    header = path.with_suffix(".h")
    (function,) = re.findall(r"^void (\w+_predict)\(", header.read_text(encoding="utf-8"), re.M)
    sizes = f"RAM {ram:,} bytes, flash {flash:,} bytes of constants and the code"
    return f"{sizes}; {header.name} declares {function}"
