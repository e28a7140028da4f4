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
    """Makes this process keep the memory that it frees, for its next allocations.

    On a CPU XLA allocates the activations again at each step. By default glibc takes them from the system and
    gives them back, and the system clears and maps them page by page, which costs a fifth of the processor
    time in the step of a narrow network (docs/performance.md). In return the process releases its memory only
    when it ends, and its threads share one heap.

    Call it before JAX starts its threads, since a thread keeps its heap. It does nothing where JAX may find
    an accelerator, where the user has set MALLOC_ARENA_MAX, and without glibc.

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
