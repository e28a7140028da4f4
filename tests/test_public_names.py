"""The names that ``binwrn_jax`` promises, with their signatures, and what an import loads."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import binwrn_jax

# A line for each name. A change here changes the interface: note it in CHANGELOG.md, and write the file anew:
# PYTHONPATH=.:tests python -c 'import test_public_names as t; t.GOLDEN.write_text(t.listing())'
GOLDEN = Path(__file__).parent / "golden" / "public_names.txt"


def listing() -> str:
    """Each public name with what a caller writes: parameters and their defaults."""
    lines = []
    for name in sorted(binwrn_jax.__all__):
        value = getattr(binwrn_jax, name)
        text = ""
        if callable(value) and not (isinstance(value, type) and issubclass(value, Exception)):
            parameters = inspect.signature(value).parameters.values()
            bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
            text = re.sub(r"<[^=]* at 0x\w+>", "...", str(inspect.Signature(bare)))
        lines.append(name + text)
    return "\n".join(lines) + "\n"


def test_names_and_signatures():
    assert listing() == GOLDEN.read_text()


def test_type_checkers_see_the_same_names():
    stub = ast.parse(Path(binwrn_jax.__file__).with_suffix(".pyi").read_text())
    imported = {
        (node.module, alias.asname)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {(f"binwrn_jax.{m}", name) for name, m in binwrn_jax._MODULE_OF.items()}
    assert set(binwrn_jax.__all__) <= set(dir(binwrn_jax))


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after some code."""
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


HEAVY = {"tensorflow_datasets", "orbax", "matplotlib", "scipy", "sklearn", "tensorflow"}


def test_the_import_is_light():
    assert not loaded_by("import binwrn_jax") & {*HEAVY, "jax", "numpy"}
    # Every public name can be looked up without them (jax itself imports SciPy).
    names = "import binwrn_jax; [getattr(binwrn_jax, name) for name in binwrn_jax.__all__]"
    assert not loaded_by(names) & (HEAVY - {"scipy"})


def test_help_does_not_load_jax():
    code = "from binwrn_jax.cli.main import main; main(['--help'])"
    assert not loaded_by(code) & {*HEAVY, "jax", "numpy", "absl"}
