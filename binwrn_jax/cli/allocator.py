"""The C library's memory settings for training on a CPU."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# mallopt's names in glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def retain_freed_memory() -> bool:
    """Has this process keep the memory that it frees, for the next allocation.

    XLA allocates a step's activations anew at each step on a CPU. glibc takes so much from the system and
    gives it back, and the system clears and maps it page by page: a fifth of the processor time of a narrow
    network's step (docs/performance.md). The price is that memory once used is free for others at the
    process' end only, and that its threads share one heap.

    To be called before JAX starts its threads: a thread keeps the heap that it has. Where JAX may find an
    accelerator, where the user chose otherwise (MALLOC_ARENA_MAX), and without glibc it does nothing.

    Returns:
      Whether it did.
    """
    if os.environ.get("MALLOC_ARENA_MAX") or not sys.platform.startswith("linux") or _may_find_accelerator():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))
    return mallopt is not None and all([mallopt(name, value) for name, value in settings])


def _may_find_accelerator() -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
