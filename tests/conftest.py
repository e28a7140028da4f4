"""Strictness for every test: eight CPU devices, warnings are errors, shapes are checked at each call."""

import os

# Tests are for the CPU also where there is an accelerator; what they start as processes inherits this.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import pytest

# Not by XLA_FLAGS: a program that a test starts sees one device, as a user's would.
jax.config.update("jax_num_cpu_devices", 8)
# `[N] + [M, N]` must be written out: most silent shape mistakes are of this kind.
jax.config.update("jax_numpy_rank_promotion", "raise")

NUMERIC = (
    "evaluation",
    "nn",
    "training.augment",
    "training.moments",
    "training.optimizer",
    "training.schedules",
    "training.step",
)

# Must precede the first import of the package. Not `state`: a pytree may be rebuilt with any leaves.
jaxtyping.install_import_hook([f"binwrn_jax.{name}" for name in NUMERIC], "strict_types.check")


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
