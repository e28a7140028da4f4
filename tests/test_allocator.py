"""Memory that is kept: no page faults from step to step, and nothing done where it would not help."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from binwrn_jax import allocator

SCRIPT = """
import resource, sys
from binwrn_jax.allocator import keep_memory
print(sys.argv[1] == "keep" and keep_memory(), "jax" in sys.modules)
import jax, jax.numpy as jnp
run = jax.jit(lambda x: jnp.sin(jnp.cumsum(x) + x[::-1]).sum())
x = jnp.ones(8 << 20)
for _ in range(3):
    run(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    run(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_steps_take_no_new_pages():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": ""}
    faults = {}
    for mode in ("keep", "leave"):
        command = [sys.executable, "-c", SCRIPT, mode]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        kept, light, count = done.stdout.split()
        assert (kept, light) == (str(mode == "keep"), "False")
        faults[mode] = int(count)
    assert faults["leave"] > 5 * 8192  # 32 MiB a step in pages of 4 KiB
    assert faults["keep"] < faults["leave"] / 20


def test_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert not allocator.keep_memory()  # the user's choice
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ["cuda"])
    assert not allocator.keep_memory()  # a GPU's plugin is installed
