"""The examples in the documentation of the code print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import binwrn_jax

ROOT = Path(binwrn_jax.__file__).parent
MODULES = {
    ".".join(("binwrn_jax", *path.relative_to(ROOT).with_suffix("").parts)): path
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text()
}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    # Decorated functions could hide theirs.
    assert result.attempted == MODULES[name].read_text().count(">>> ")
