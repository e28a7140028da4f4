"""What tests of the native runtime share: kernels, programs, networks and the logits that they must give."""

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from binwrn_jax.deploy import native, numpy_reader
from binwrn_jax.deploy.packed import serialise

FOLDER = native.FOLDER
PEDANTIC = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
TOLERANCE = 2e-6  # of the largest logit


def kernels():
    """Names of the kernels that this processor has."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = []
    found = ["plain"]
    if {"avx2", "fma"} <= set(flags):
        found.append("avx2")
    if "avx512f" in flags:
        found += ["avx512", "avx512_adds"]
    if platform.machine() == "aarch64":
        found.append("neon")
    return found


def save(packed, path):
    path.write_bytes(serialise(packed))
    return path


def images_of(packed, count, seed=1):
    shape = packed.metadata["input"]["shape"]
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def reference(packed, images):
    return numpy_reader.Model(packed.metadata, packed.tensors)(images)


def assert_close(logits, wanted):
    assert logits.dtype == np.float32
    assert logits.shape == wanted.shape
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=TOLERANCE * max(np.abs(wanted).max(), 1e-3))


def make(folder, compiler, *settings):
    subprocess.run(
        ["make", "-s", "-C", str(FOLDER), f"CC={compiler}", f"BUILD={folder}", *settings], check=True
    )
    return folder / "binwrn-run"


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)


def needs(*tools):
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        pytest.skip(f"needs {', '.join(missing)}")
