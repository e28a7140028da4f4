"""Strictness for every test: eight CPU devices, warnings are errors, shapes are checked at each call."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

# Tests are for the CPU also where there is an accelerator; what they start as processes inherits this.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one test has compiled, the later ones and the processes that they start load. Empty at the beginning,
# and one for each worker: JAX reads a file that another process is still writing.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="binwrn-tests-compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import jaxtyping
import pytest

# Not by XLA_FLAGS: a program that a test starts sees one device, as a user's would.
jax.config.update("jax_num_cpu_devices", 8)
# `[N] + [M, N]` must be written out: most silent shape mistakes are of this kind.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Before the first import of the package. All rooms with arrays have their shapes checked, and the modules of
# the method all types (of two hooks for a module the later one counts). Not `state`: a pytree may be rebuilt
# with any leaves.
ROOMS = ("data", "deploy", "graph", "hub", "parallel", "store", "training.curves", "training.recipes")
METHOD = (
    "evaluation",
    "nn",
    "training.augment",
    "training.moments",
    "training.optimizer",
    "training.schedules",
    "training.step",
)
jaxtyping.install_import_hook([f"binwrn_jax.{name}" for name in ROOMS], "strict_types.check_arrays")
jaxtyping.install_import_hook([f"binwrn_jax.{name}" for name in METHOD], "strict_types.check")

# The files that take longest, longest first: processes that run side by side then end together.
LONGEST = (
    "parallel/test_multihost.py",
    "training/test_train.py",
    "training/test_step.py",
    "training/test_imagenet_run.py",
    "preflight/test_preflight.py",
    "paper/test_experiments.py",
    "training/test_kills.py",
    "deploy/test_packed.py",
    "parallel/test_scale.py",
    "test_tour.py",
    "test_examples.py",
    "deploy/test_exporters.py",
    "training/test_recipes.py",
    "data/test_own.py",
    "data/test_tfds.py",
    "test_compatibility.py",
    "cli/test_data.py",
    "deploy/test_own_network.py",
)


def pytest_unconfigure():
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"])


def pytest_collection_modifyitems(items):
    """Sorts the tests by file, as `LONGEST` lists them; the others keep their order behind these."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """A cache for this test alone, which has the libraries that this machine has compiled already."""
    from binwrn_jax.system.cache import user_cache

    folder = tmp_path / "cache"
    for library in ("cpu", "native"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(user_cache(library), folder / "binwrn_jax" / library)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The real digits: a pair of `Arrays`, 1,437 to train on and 360 to test on."""
    from binwrn_jax import load

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return load("digits", "train"), load("digits", "test")


@pytest.fixture
def eight_devices():
    """The devices of a mesh; an accelerator machine (`JAX_PLATFORMS` set) may have fewer."""
    if len(jax.devices()) < 8:
        pytest.skip(f"needs 8 devices, JAX sees {len(jax.devices())}")
    return jax.devices()
