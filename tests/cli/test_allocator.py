"""Memory that is kept: no page faults from step to step, and nothing done where it would not help."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from binwrn_jax.cli import allocator

# As XLA does: large blocks, from a thread that is not the first.
SCRIPT = """
import ctypes, resource, sys, threading
from binwrn_jax.cli.allocator import retain_freed_memory
print(sys.argv[1] == "keep" and retain_freed_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def steps(count):
    for _ in range(count):
        block = libc.malloc(96 << 20)
        ctypes.memset(block, 1, 96 << 20)
        libc.free(block)
    if count == 4:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
for count in (1, 4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=steps, args=[count])
    thread.start(); thread.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_blocks_are_used_again():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": ""}
    faults = {}
    for mode in ("keep", "leave"):
        command = [sys.executable, "-c", SCRIPT, mode]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        kept, count = done.stdout.split()
        assert kept == str(mode == "keep")
        faults[mode] = int(count)
    assert faults["keep"] < faults["leave"] / 10, faults


def test_the_allocator_is_left_alone_on_request_and_for_gpus(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert not allocator.retain_freed_memory()  # the user's choice
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ["cuda"])
    assert not allocator.retain_freed_memory()  # a GPU's plugin is installed
