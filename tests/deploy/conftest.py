"""The native runtime, compiled once for all tests of this folder, and a network to run with it."""

import shutil

import numpy as np
import pytest
from native_runtime import make, save
from packed_networks import residual

from binwrn_jax.deploy import native
from binwrn_jax.errors import UserError


@pytest.fixture(scope="session")
def native_cache(tmp_path_factory):
    """The folder of the compiled library."""
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="module")
def library(native_cache):
    """The native runtime; skips the tests of a machine without a C compiler."""
    try:
        native.find_compiler()
    except UserError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(native_cache))
        native._library.cache_clear()
        yield native._library()
        native._library.cache_clear()


@pytest.fixture(scope="module")
def packed():
    return residual(np.random.default_rng(0))


@pytest.fixture
def path(packed, tmp_path):
    return save(packed, tmp_path / "model.packed")


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    if not shutil.which("make"):
        pytest.skip("needs make")
    return make(tmp_path_factory.mktemp("program"), native.find_compiler(), "CFLAGS=-O1")
