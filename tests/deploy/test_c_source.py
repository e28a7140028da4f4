"""The C text of generated programs: the same bytes as ever, and parts that a compiler reads by themselves."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from binwrn_jax.deploy.c_source import generate as c_source
from binwrn_jax.deploy.c_source.generate import FUNCTIONS, TEXTS, generate
from binwrn_jax.deploy.c_source.program import FLAGS
from binwrn_jax.deploy.native import find_compiler
from binwrn_jax.deploy.packed import read_packed

GOLDEN = Path(__file__).parents[1] / "golden" / "packed_v1.safetensors"  # it has each operation


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_program_of_the_golden_file_has_the_same_bytes_as_ever():
    program = generate(read_packed(GOLDEN), "golden")
    assert sha256(program.source) == "dd4d0f204ffac42e1ef8fd768dc1eca765fa129cab4bebc1cdda6f4b11671655"
    assert sha256(program.header) == "c4eb20d8c1604c0e2f2ccd3459977fa8d564904ccc17cbe51ed007444e0465be"
    assert (program.prefix, program.ram, program.flash) == ("golden", 888, 135)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_part_compiles_alone(name):
    path = TEXTS / f"{name}.c"
    assert path.read_text().count(c_source.SCISSORS) == 1
    command = [find_compiler(), *FLAGS, "-Wno-unused-function", "-fsyntax-only", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
