"""Parts of a step on the CPU, called by XLA: convolutions and pools by oneDNN, the sums of batch norm.

The C++ sources beside this file are compiled by the system's compiler when they are first needed, into
``~/.cache/binwrn_jax/cpu`` (or below XDG_CACHE_HOME). oneDNN and its headers are those of the packages
``onednn-cpu-gomp`` and ``onednn-devel-cpu-gomp`` from PyPI, where these are not installed the system's own,
version 3 (Debian 13: ``libdnnl-dev``).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import logging
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from binwrn_jax.errors import UserError
from binwrn_jax.system import compiled

FOLDER = Path(__file__).parent
SOURCES = ("convolution.cc", "pooling.cc", "statistics.cc")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared")
CALLS = (
    "conv_forward",
    "conv_input_gradient",
    "conv_weight_gradient",
    "pool_forward",
    "pool_gradient",
    "moments",
    "products",
)
WHEELS = {"onednn-devel-cpu-gomp": "oneapi/dnnl/dnnl.hpp", "onednn-cpu-gomp": "libdnnl.so.3"}

Images = Float[Array, "N H W Cin"]
Kernel = Float[Array, "F F2 Cin Cout"]
Maps = Float[Array, "N H2 W2 Cout"]
Pooled = Float[Array, "N H2 W2 Cin"]
Sums = Float[Array, "G 1 1 Cin"]
Strides = tuple[int, int]
Pads = tuple[tuple[int, int], tuple[int, int]]

_log = logging.getLogger("binwrn_jax")


def conv_forward(x: Images, kernel: Kernel, strides: Strides, pads: Pads) -> Maps:
    """The convolution, as `binwrn_jax.nn.operations.convolution` says, of float32 or of bfloat16.

    The load of the machine does not change the result or its gradients. `conv_weight_gradient` is summed in
    as many parts as XLA has threads, so on another number of cores it may be rounded otherwise.
    """
    size = [
        (extent + sum(pad) - side) // stride + 1
        for extent, pad, side, stride in zip(x.shape[1:3], pads, kernel.shape[:2], strides, strict=True)
    ]
    return _convolve("conv_forward", (x.shape[0], *size, kernel.shape[3]), x, kernel, strides, pads)


def conv_input_gradient(x: Images, kernel: Kernel, g: Maps, strides: Strides, pads: Pads) -> Images:
    """The cotangent of ``x``, whose values are not used; ``g`` is that of `conv_forward`'s result."""
    return _convolve("conv_input_gradient", x.shape, g, kernel, strides, pads)


def conv_weight_gradient(x: Images, kernel: Kernel, g: Maps, strides: Strides, pads: Pads) -> Kernel:
    """The cotangent of ``kernel``, whose values are not used."""
    return _convolve("conv_weight_gradient", kernel.shape, x, g, strides, pads)


def _convolve(name: str, shape: tuple[int, ...], a: Array, b: Array, strides: Strides, pads: Pads) -> Array:
    call = _call(name, a.dtype, shape)
    return call(a, b, strides=np.asarray(strides, np.int64), pads=np.asarray(pads, np.int64).ravel())


def pool_forward(x: Images, pool_size: Strides, strides: Strides, pads: Pads) -> Pooled:
    """The average pool, as `binwrn_jax.nn.operations.average_pool` says, of float32 or of bfloat16."""
    size = [
        (extent + sum(pad) - side) // stride + 1
        for extent, pad, side, stride in zip(x.shape[1:3], pads, pool_size, strides, strict=True)
    ]
    return _pool("pool_forward", (x.shape[0], *size, x.shape[3]), x, pool_size, strides, pads)


def pool_gradient(
    g: Pooled, shape: tuple[int, ...], pool_size: Strides, strides: Strides, pads: Pads
) -> Images:
    """The cotangent of images of a shape, where ``g`` is that of `pool_forward`'s result."""
    return _pool("pool_gradient", shape, g, pool_size, strides, pads)


def _pool(
    name: str, shape: tuple[int, ...], a: Array, pool_size: Strides, strides: Strides, pads: Pads
) -> Array:
    sizes = {"window": pool_size, "strides": strides, "pads": pads}
    numbers = {key: np.asarray(value, np.int64).ravel() for key, value in sizes.items()}
    return _call(name, a.dtype, shape)(a, **numbers)


def moments(x: Images, groups: int) -> tuple[Sums, Sums]:
    """Mean and variance of each group, in one pass; see `binwrn_jax.nn.operations.moments`."""
    shape = (groups, 1, 1, x.shape[-1])
    return tuple(_call("moments", jnp.float32, shape, shape)(x))


def products(g: Images, x: Images, mean: Sums) -> tuple[Sums, Sums]:
    """Sums of ``g`` and of ``g (x - mean)``, in one pass; see `binwrn_jax.nn.operations.products`."""
    return tuple(_call("products", jnp.float32, mean.shape, mean.shape)(g, x, mean))


def _call(name: str, dtype: Any, *shapes: tuple[int, ...]) -> Any:
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.ffi.ffi_call(
        f"binwrn_{name}", results if len(results) > 1 else results[0], vmap_method="sequential"
    )


# --- the library --------------------------------------------------------------------------------------------


def available(dtype: Any = jnp.float32) -> bool:
    """Whether the functions above can be used here, and for images of a dtype are faster than XLA's.

    The first call compiles and loads them, and says why not.
    """
    library = _library()
    if library is None:
        return False
    return dtype == jnp.float32 or (dtype == jnp.bfloat16 and bool(library.binwrn_multiplies_bfloat16()))


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = compiled.load(_description())
    except UserError as reason:
        _log.info("all by XLA, without oneDNN, which is slower: %s", reason)
        return None
    for name in CALLS:
        function = jax.ffi.pycapsule(getattr(library, f"binwrn_{name}"))
        jax.ffi.register_ffi_target(f"binwrn_{name}", function, platform="cpu")
    return library


def _folder_of(wheel: str) -> Path | None:
    """Where a wheel has put its file of `WHEELS`, as the path to be searched; None: not installed."""
    wanted = WHEELS[wheel]
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.as_posix().endswith("/" + wanted):
            return Path(str(file.locate())).resolve().parents[wanted.count("/")]
    return None


def _has_system_onednn() -> bool:
    """Whether oneDNN's headers are where the compiler looks."""
    folders = ("/usr/include", "/usr/local/include", *os.environ.get("CPATH", "").split(":"))
    header = WHEELS["onednn-devel-cpu-gomp"]
    return any(Path(folder, header).is_file() for folder in folders if folder)


def _description() -> compiled.Library:
    """How to compile the library.

    Raises:
      UserError: there is no C++ compiler, or no oneDNN.
    """
    compiler = compiled.find_compiler("CXX", ("c++", "g++", "clang++"))
    if compiler is None:
        chosen = os.environ.get("CXX")
        raise UserError(
            f"CXX={chosen} is no program" if chosen else "no C++ compiler (Debian: apt install g++)"
        )
    headers, libraries = (_folder_of(wheel) for wheel in WHEELS)
    versions = [jax.__version__]
    arguments = [*FLAGS, "-isystem", jax.ffi.include_dir(), *(str(FOLDER / name) for name in SOURCES)]
    if headers and libraries:
        versions += [importlib.metadata.version(wheel) for wheel in WHEELS]
        library = libraries / WHEELS["onednn-cpu-gomp"]
        arguments += ["-isystem", str(headers), str(library), f"-Wl,-rpath,{libraries}"]
    elif _has_system_onednn():
        arguments += ["-ldnnl"]
    else:
        raise UserError("oneDNN is not installed: pip install 'binwrn-jax[cpu]'")
    return compiled.Library(
        title="the library that calls oneDNN",
        name="cpu",
        compiler=compiler,
        arguments=tuple(arguments),
        inputs=(*FOLDER.glob("*.h"), *FOLDER.glob("*.cc")),
        versions=tuple(versions),
        symbols=(*(f"binwrn_{name}" for name in CALLS), "binwrn_multiplies_bfloat16"),
    )
