"""Packed models in the browser: a static folder with a page, an ES module and the C runtime as WebAssembly.

write_web(packed, folder)                # index.html, model.safetensors, binwrn/ (an npm package)
predictor = open_web(folder)             # runs the folder's program here, to prove it

docs/web.md describes the folder. The sources are those of `binwrn_jax.deploy.native` and a few beside this
file.
"""

from __future__ import annotations

import gzip
import html
import importlib.metadata
import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.data.arrays import check_images
from binwrn_jax.deploy import native
from binwrn_jax.deploy.packed import PackedModel, read_packed, write_packed
from binwrn_jax.errors import UserError, require
from binwrn_jax.evaluation import Predictor
from binwrn_jax.system import compiled

FOLDER = Path(__file__).parent
PAGE = FOLDER / "page"
MODEL, PROGRAM, EXAMPLES = "model.safetensors", "binwrn/binwrn.wasm.gz", "examples.png"
MARK = "binwrn/binwrn.js"  # by which a folder is known that was written here

# What has no place in WebAssembly, and what stands in for it.
_LEFT_OUT = ("pool.c", "kernel_x86.c", "kernel_neon.c")
_OWN = ("glue.c", "pool.c", "libc.c")
_FLAGS = (
    *("-target", "wasm32-wasi", "-mexec-model=reactor", "-msimd128", "-std=c99", "-O2", "-Wl,--strip-all"),
    *("-Dvsnprintf=binwrn_format", "-Dqsort=binwrn_sort"),  # of libc.c
)
_EXPORTS = ("allocate", "release", "message", "message_length", "load", "free_model", "run", "classes")

# Of the pictures to try on the page; more are left out.
_MAX_EXAMPLE_BYTES = 20_000


# --- the program --------------------------------------------------------------------------------------------


def build() -> Path:
    """The C runtime as WebAssembly, compiled unless it is in the user's cache.

    The compiler is the one that the environment variable WASM_CC names, a clang that has a C library for
    ``wasm32-wasi`` (the WASI SDK's), else Zig's, from the package ``ziglang``.

    Returns:
      The path of the file in the cache.

    Raises:
      UserError: there is no compiler, or it fails.
    """
    sources = [native.FOLDER / name for name in native.SOURCES if name not in _LEFT_OUT]
    sources += [FOLDER / name for name in _OWN]
    compiler, first, version = _find_compiler()
    return compiled.build(
        compiled.Library(
            title="the runtime for browsers",
            name="web",
            compiler=compiler,
            arguments=(*first, *_FLAGS, f"-I{native.FOLDER}", *map(str, sources)),
            inputs=(*native.FOLDER.glob("*.h"), *sources),
            versions=(version,),
            symbols=_EXPORTS,
            suffix=".wasm",
        )
    )


def _find_compiler() -> tuple[str, tuple[str, ...], str]:
    """The program, its first arguments, and its version where the program does not tell it."""
    chosen = os.environ.get("WASM_CC")
    if chosen:
        path = shutil.which(chosen)
        if not path:
            raise UserError(f"WASM_CC={chosen} is no program: name a clang for wasm32-wasi, or unset it")
        return path, (), ""
    require("ziglang", "compiling for browsers")
    return sys.executable, ("-m", "ziglang", "cc"), importlib.metadata.version("ziglang")


# --- the folder ---------------------------------------------------------------------------------------------


def write_web(packed: PackedModel, folder: Path, examples: np.ndarray | None = None) -> None:
    """Fills a folder that any static host can serve.

    Args:
      packed: the model; its kernels are coded where that makes them smaller.
      folder: an empty one.
      examples: uint8 ``[N, H, W, C]``, pictures to try on the page; as many as are small enough are taken.

    Raises:
      UserError: there is no compiler, or the folder cannot be written.
    """
    program = build()
    try:
        shutil.copytree(PAGE, folder, dirs_exist_ok=True)
        (folder / PROGRAM).write_bytes(gzip.compress(program.read_bytes(), mtime=0))
        write_packed(packed, folder / MODEL, coding="entropy")
        count, sprite = _sprite(examples)
        if count:
            (folder / EXAMPLES).write_bytes(sprite)
        index = folder / "index.html"
        text = index.read_text(encoding="utf-8")
        for name, value in {"EXAMPLES": str(count), "TITLE": _title(packed)}.items():
            text = text.replace(f"{{{{{name}}}}}", html.escape(value))
        index.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror})") from error


def _title(packed: PackedModel) -> str:
    name = packed.metadata.get("dataset")
    return f"{name}, one bit per weight" if name else "One bit per weight"


def _sprite(examples: np.ndarray | None) -> tuple[int, bytes]:
    """How many pictures, and a PNG file that has them beside each other."""
    import PIL.Image

    for count in range(0 if examples is None else len(examples), 0, -1):
        assert examples is not None
        height, width, channels = examples.shape[1:]
        if channels not in (1, 3):
            break
        row = examples[:count].transpose(1, 0, 2, 3).reshape(height, count * width, channels)
        file = io.BytesIO()
        PIL.Image.fromarray(row[..., 0] if channels == 1 else row).save(file, "PNG", optimize=True)
        if file.tell() <= _MAX_EXAMPLE_BYTES:
            return count, file.getvalue()
    return 0, b""


def summary_of_web(folder: Path) -> str:
    """What a browser loads of a folder of `write_web`, in words."""
    files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    loaded = {name: size for name, size in files.items() if not name.endswith((".d.ts", ".json", ".md"))}
    rest = sum(loaded.values()) - loaded[MODEL]
    shown = f" ({EXAMPLES} has test images)" if EXAMPLES in loaded else ""
    return (
        f"{sum(loaded.values()):,} bytes to load, "
        f"{loaded[MODEL]:,} of the model and {rest:,} of page and program{shown}; "
        f"look at it: python3 -m http.server --directory {folder} 8000, then http://localhost:8000"
    )


# --- the program run here -----------------------------------------------------------------------------------


class WebPredictor:
    """The program of a folder of `write_web`, run by the package ``wasmtime`` as a browser runs it.

    Args:
      program: WebAssembly, see `build`.
      model: path of a packed file.
      kernel: its name; None for the fastest.

    Attributes:
      description: of the model.

    Raises:
      UserError: the package is missing, or the program refuses the model.
    """

    def __init__(self, program: bytes, model: Path, kernel: str | None = None) -> None:
        wasmtime = require("wasmtime", "running WebAssembly")
        self._store = wasmtime.Store()
        module = wasmtime.Module(self._store.engine, program)
        exports = wasmtime.Instance(self._store, module, []).exports(self._store)
        self._memory = exports["memory"]
        self._call = lambda name, *arguments: exports[name](self._store, *arguments)
        self._call("_initialize")
        content = model.read_bytes()
        name = self._copy(kernel.encode() + b"\0") if kernel else 0
        self._model = self._call("load", self._copy(content), len(content), name)
        if not self._model:
            raise UserError(f"the program for browsers refuses {model.name}: {self._message()}")
        self.description: dict[str, Any] = read_packed(model).description

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `binwrn_jax.evaluation.Predictor`."""
        images = np.ascontiguousarray(check_images(images, self.description["image_shape"]))
        size = 4 * len(images) * self._call("classes", self._model)
        pixels, out = self._copy(images.tobytes()), self._call("allocate", size)
        if self._call("run", self._model, pixels, len(images), out):
            raise UserError(f"no logits: {self._message()}")
        logits = np.frombuffer(self._memory.read(self._store, out, out + size), np.float32)
        for block in (pixels, out):
            self._call("release", block)
        return logits.reshape(len(images), -1)

    def _copy(self, content: bytes) -> int:
        address = self._call("allocate", max(len(content), 1))
        self._memory.write(self._store, content, address)
        return int(address)

    def _message(self) -> str:
        begin = self._call("message")
        content = self._memory.read(self._store, begin, begin + self._call("message_length"))
        return bytes(content).decode()


def open_web(folder: Path) -> Predictor:
    """A folder of `write_web` as a predictor, for its proof.

    Raises:
      UserError: the package ``wasmtime`` is missing, or the program refuses the model.
    """
    return WebPredictor(gzip.decompress((folder / PROGRAM).read_bytes()), folder / MODEL)
