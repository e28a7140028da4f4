"""Packed models on the CPU, in C, without float weights: docs/native.md explains how.

model = load("model.packed", threads=2)
logits = model.predict(images)          # uint8 [N, H, W, C] -> float32 [N, classes]

The sources beside this file are compiled by the system's C compiler when they are first needed, into
``~/.cache/binwrn_jax/native`` (or below XDG_CACHE_HOME).
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.data.arrays import check_images
from binwrn_jax.deploy import numpy_reader
from binwrn_jax.errors import UserError
from binwrn_jax.system import compiled

FOLDER = Path(__file__).parent
SOURCES = tuple(
    f"{name}.c"
    for name in (
        *("json", "sha256", "entropy", "container", "features", "description", "network", "operations"),
        *("decode", "integers", "range", "plan", "arrange", "api", "run", "simple", "integer_run"),
        *("convolve", "pool"),
        *("kernel_plain", "kernel_x86", "kernel_neon"),
    )
)
FLAGS = ("-std=c99", "-O3", "-fPIC", "-fvisibility=hidden", "-shared")
LIBRARIES = ("-lm", "-lpthread")
FUNCTIONS = (
    *("binwrn_load_file", "binwrn_load_memory", "binwrn_describe"),
    *("binwrn_run", "binwrn_free", "binwrn_error_name", "binwrn_version"),
)
KERNELS = ("avx512", "avx512_adds", "avx2", "neon", "plain")
_MESSAGE_BYTES = 160
_ERROR_ARGUMENT, _ERROR_RANGE = 5, 7

_log = logging.getLogger("binwrn_jax")


class _Options(ctypes.Structure):
    _fields_ = (("threads", ctypes.c_int), ("kernel", ctypes.c_char_p), ("max_memory", ctypes.c_uint64))


class _Description(ctypes.Structure):
    _fields_ = (
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("classes", ctypes.c_int),
        ("class_names", ctypes.POINTER(ctypes.c_char_p)),
        ("kernel", ctypes.c_char_p),
        ("threads", ctypes.c_int),
        ("multiply_adds", ctypes.c_uint64),
        ("weight_bytes", ctypes.c_uint64),
        ("arena_bytes", ctypes.c_uint64),
        ("scratch_bytes", ctypes.c_uint64),
        ("total_bytes", ctypes.c_uint64),
        ("golden_image", ctypes.POINTER(ctypes.c_uint8)),
        ("golden_logits", ctypes.POINTER(ctypes.c_float)),
        ("covered", ctypes.c_int),
    )


class NativeModel:
    """A packed model, ready to run; a `binwrn_jax.evaluation.Predictor`. See `load`.

    May be called from several threads: one call works at a time, with all threads of the model. A
    process made by ``os.fork`` must load its own.

    Attributes:
      description: the metadata of the file with ``image_shape``, and as ``native`` what it takes to run:
        ``kernel``, ``threads``, ``multiply_adds`` (per image, were the weights floats) and the bytes
        ``weight_bytes``, ``arena_bytes``, ``scratch_bytes``, ``total_bytes``.
    """

    def __init__(self, path: str | Path, threads: int, kernel: str | None) -> None:
        library = _library()
        options = _Options(threads, kernel.encode() if kernel else None, 0)
        pointer, message = ctypes.c_void_p(), ctypes.create_string_buffer(_MESSAGE_BYTES)
        error = library.binwrn_load_file(
            os.fsencode(path), ctypes.byref(options), ctypes.byref(pointer), message
        )
        if error:
            where = "" if error == _ERROR_ARGUMENT else f"{path}: "
            raise UserError(where + message.value.decode())
        self._library, self._pointer = library, pointer
        self._finalizer = weakref.finalize(self, library.binwrn_free, pointer)
        found = library.binwrn_describe(pointer).contents
        self._shape = (found.height, found.width, found.channels)
        self._classes = found.classes
        if not found.covered:
            _log.warning("%s: %s", path, numpy_reader.OLDER)
        with open(path, "rb") as file:
            metadata = numpy_reader.without_coding(numpy_reader.read_header(file).metadata)
        numbers = ("threads", "multiply_adds", "weight_bytes", "arena_bytes", "scratch_bytes", "total_bytes")
        self.description: dict[str, Any] = {
            **metadata,
            "image_shape": list(self._shape),
            "native": {"kernel": found.kernel.decode(), **{name: getattr(found, name) for name in numbers}},
        }

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits float32 ``[N, classes]`` of images uint8 ``[N, H, W, C]``; any N.

        Raises:
          UserError: another shape or dtype; values that become too large.
        """
        images = np.ascontiguousarray(check_images(images, self._shape))
        logits = np.empty((len(images), self._classes), np.float32)
        error = self._library.binwrn_run(self._pointer, images.ctypes.data, len(images), logits.ctypes.data)
        if error == _ERROR_RANGE:
            raise UserError(f"a value of an image exceeds {numpy_reader.MAX_VALUE:.4g}: no logits")
        if error:
            raise RuntimeError(self._library.binwrn_error_name(error).decode())
        return logits

    __call__ = predict


def load(path: str | Path, threads: int | None = None, kernel: str | None = None) -> NativeModel:
    """Reads a packed file, checks it, and prepares all that running it needs.

    Args:
      path: of the file.
      threads: 1 to 256, the caller's included; None for the processors that this process may use.
      kernel: one of `KERNELS`, None for the fastest that the processor has.

    Raises:
      UserError: no C compiler, a file that is damaged or no packed model, a thread count out of range, a
        kernel that the processor does not have.
    """
    if threads is None:
        usable = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        )  # no affinity on macOS
        threads = min(usable or 1, 256)
    if not 1 <= threads <= 256:
        raise UserError(f"{threads} threads: it must be 1 to 256")
    return NativeModel(path, threads, kernel)


def open_native(path: str | Path) -> NativeModel:
    """A packed file as a `binwrn_jax.evaluation.Predictor`; raises as `load` does."""
    return load(path)


# --- the library --------------------------------------------------------------------------------------------


@functools.cache
def _library() -> ctypes.CDLL:
    library = compiled.load(_description())
    pointer = ctypes.c_void_p
    library.binwrn_load_file.argtypes = [
        ctypes.c_char_p,
        ctypes.POINTER(_Options),
        ctypes.POINTER(pointer),
        ctypes.c_char_p,
    ]
    library.binwrn_describe.argtypes = [pointer]
    library.binwrn_describe.restype = ctypes.POINTER(_Description)
    library.binwrn_run.argtypes = [pointer, pointer, ctypes.c_size_t, pointer]
    library.binwrn_free.argtypes = [pointer]
    library.binwrn_free.restype = None
    library.binwrn_error_name.restype = ctypes.c_char_p
    return library


def find_compiler() -> str:
    """The C compiler: the environment variable CC, or the first there is of cc, gcc and clang.

    Raises:
      UserError: there is none.
    """
    if found := compiled.find_compiler("CC", ("cc", "gcc", "clang")):
        return found
    chosen = os.environ.get("CC")
    missing = f"CC={chosen} is no program" if chosen else "there is none"
    raise UserError(
        f"the native runtime needs a C compiler, and {missing}: install gcc or clang "
        "(Debian: apt install gcc libc6-dev), or use another --runtime"
    )


def _description() -> compiled.Library:
    return compiled.Library(
        title="the native runtime",
        name="native",
        compiler=find_compiler(),
        arguments=(*FLAGS, *(str(FOLDER / name) for name in SOURCES), *LIBRARIES),
        inputs=(*FOLDER.glob("*.h"), *(FOLDER / name for name in SOURCES)),
        versions=(),
        symbols=FUNCTIONS,
    )


def build(folder: str | Path | None = None) -> Path:
    """Compiles the shared library unless it is there already.

    Args:
      folder: to keep it in; None for the cache.

    Raises:
      UserError: no compiler, it fails, or the folder cannot be written; see `binwrn_jax.system.compiled`.
    """
    return compiled.build(_description(), None if folder is None else Path(folder))
