"""The walls of the house: imports point downwards, none in a circle; functions and files stay short."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "binwrn_jax"

# From the bottom up. A room imports rooms of lower floors only; rooms of one floor never import each other.
FLOORS = (
    ("errors",),
    ("system",),
    ("nn", "parallel"),
    ("graph", "data", "store"),
    ("hub", "evaluation"),
    ("deploy",),
    ("training",),
    ("preflight",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# The executable definition of the packed format is one file by design: it can be copied out of the project.
LONG_FILES = {"binwrn_jax/deploy/numpy_reader.py"}
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
MOST_ROOMS, MOST_ARROWS = 22, 90


def modules(folder: Path) -> dict[str, Path]:
    """Module names and files below a top-level folder."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


PYTHON = modules(PACKAGE)
PAPER = modules(ROOT / "paper")
BENCHMARKS = modules(ROOT / "benchmarks")


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of ``known`` that a file imports anywhere, inside functions and for type checking too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield name


def room(module: str) -> str:
    """``'nn'`` of ``'binwrn_jax.nn.rules'``; '' of the package itself."""
    return module.split(".")[1] if "." in module else ""


# The package's __init__ and __main__ stand above all rooms: what they import is looked up when it is used.
EDGES = {
    (module, target)
    for module, path in PYTHON.items()
    if room(module) not in ("", "__main__")
    for target in imports(path, PYTHON)
    if target != module
}


def test_every_module_is_in_a_room():
    assert {room(module) for module in PYTHON} - {"", "__main__"} <= set(FLOOR)


def test_modules_beside_the_rooms_are_two():
    beside = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert beside == {"errors", "evaluation"}


def test_imports_point_downwards():
    up = [
        f"{module} imports {target}"
        for module, target in sorted(EDGES)
        if target != "binwrn_jax"
        and room(module) != room(target)
        and FLOOR[room(module)] <= FLOOR[room(target)]
    ]
    assert not up


def test_the_package_itself_is_imported_by_no_room_but_for_its_version():
    for module, target in sorted(EDGES):
        if target == "binwrn_jax":
            names = {
                alias.name
                for node in ast.walk(ast.parse(PYTHON[module].read_text()))
                if isinstance(node, ast.ImportFrom) and node.module == "binwrn_jax"
                for alias in node.names
            }
            assert names <= {"__version__"}, f"{module} imports {names} of the package"


def test_no_import_goes_in_a_circle():
    files: dict[str, set[str]] = {}
    for module, target in EDGES:
        # A module needs the __init__ of its own folder, which may import it in turn.
        if not module.startswith(target + "."):
            files.setdefault(module, set()).add(target)
    list(graphlib.TopologicalSorter(files).static_order())  # raises CycleError


def test_nothing_in_the_package_imports_the_papers_bookkeeping():
    everything = {**PYTHON, **PAPER}
    assert not [m for m, path in PYTHON.items() for t in imports(path, everything) if t.startswith("paper")]


def test_rooms_and_arrows_are_few():
    folders = {
        ".".join(m.split(".")[: 3 if (PACKAGE / Path(*m.split(".")[1:3])).is_dir() else 2]) for m in PYTHON
    }
    arrows = {(room(a), room(b)) for a, b in EDGES if room(a) != room(b)}
    assert len(folders) <= MOST_ROOMS
    assert len(arrows) <= MOST_ARROWS


@pytest.mark.parametrize("module", [*PYTHON, *PAPER, *BENCHMARKS])
def test_functions_and_files_are_short(module):
    path = {**PYTHON, **PAPER, **BENCHMARKS}[module]
    text = path.read_text()
    name = str(path.relative_to(ROOT))
    lines = text.count("\n")
    assert name in LONG_FILES or lines <= MOST_LINES_OF_A_FILE, f"{name} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MOST_LINES_OF_A_FUNCTION, f"{name}: {node.name} has {length} lines"


def test_the_training_loop_reads_in_one_sitting():
    assert (PACKAGE / "training" / "loop.py").read_text().count("\n") <= 200


def list_of_files() -> str:
    """The files of the package by room, each with the first line of its docstring."""
    lines, last = [], ""
    for module, path in PYTHON.items():
        if path.name.startswith("__") and path.parent in (PACKAGE, PACKAGE / room(module)):
            continue
        if room(module) != last:
            last = room(module)
            name = last if (PACKAGE / last).is_dir() else "the package itself"
            lines += ["", f"### {name}", "", "| file | what it is |", "|---|---|"]
        says = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0].replace("|", "\\|")
        where = path.relative_to(PACKAGE / last if (PACKAGE / last).is_dir() else PACKAGE)
        lines.append(f"| `{where}` | {says} |")
    return "\n".join(lines) + "\n"


DOCUMENT = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- files -->\n", "<!-- end of files -->"


def test_the_document_lists_the_files_as_they_describe_themselves():
    listed = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0]
    assert listed == list_of_files(), "run `python tests/test_architecture.py` to write the list anew"


# What other libraries do not promise to keep.
PRIVATE = ("jax._src", "jaxlib", "tensorflow_datasets.core.", "tensorflow_datasets.proto")


def private_names() -> set[tuple[str, str]]:
    """The private names that the package imports, each with its file."""
    found = set()
    for path in PYTHON.values():
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            )
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            found |= {
                (n, str(path.relative_to(PACKAGE)))
                for n in names
                if n.startswith(PRIVATE) or re.search(r"\._[a-z]", n)
            }
    return found


def test_the_document_lists_the_private_names_of_other_libraries():
    section = DOCUMENT.read_text().split("## Private names of other libraries")[1]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    listed = {
        (n, file) for names, files in rows for n in names.split("`")[1::2] for file in files.split("`")[1::2]
    }
    assert listed == private_names()


if __name__ == "__main__":
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + list_of_files() + END + rest.split(END)[1])
