"""What the command sets for its process does not stay in that of the tests."""

import os

import jax
import pytest

ENVIRONMENT = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_ACCELERATOR_TYPE")
ENVIRONMENT += ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Restores the environment after each test."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    jax.devices()  # their number is settled: no test may change it
