"""Commands: one line for each error, right exit codes, nothing overwritten, clean terminals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packed_models import golden_model

from binwrn_jax.cli.handler import guarded
from binwrn_jax.cli.main import VERBS, main
from binwrn_jax.deploy.packed import write_packed
from binwrn_jax.errors import UserError, explain, printable, require

ROOT = Path(__file__).parents[2]


def binwrn(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, with some variables changed."""
    return subprocess.run(
        [sys.executable, "-m", "binwrn_jax", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
    )


def shell(command: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which "$@" is the program with its arguments."""
    return subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-m", "binwrn_jax", *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that must fail with exit code 2."""
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    return captured.err


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_packed(golden_model(), path)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.npy"
    np.save(path, golden_model().golden_image)
    return path


# --- help ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capsys, verb):
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"binwrn {verb}" in out and "--debug" in out and "--help" in out


# --- errors -------------------------------------------------------------------------------------------------


def test_a_fault_of_the_program_asks_for_a_report(capsys):
    def program() -> int:
        raise KeyError("x")

    assert guarded(program) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the program failed (KeyError: 'x' at test_commands.py:")
    assert "please report it" in error and "--debug" in error and error.count("\n") == 1
    assert guarded(program, debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_shows_the_traceback_of_any_verb(capsys, tmp_path):
    assert main(["inspect", str(tmp_path / "none"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert "Traceback" not in refused(capsys, "inspect", tmp_path / "none")


def test_a_missing_extra_is_one_line_that_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"^x needs the package sklearn: pip install 'binwrn-jax\[data\]'$"):
        require("sklearn.datasets", "x")
    with pytest.raises(ModuleNotFoundError) as caught:
        import sklearn  # noqa: F401
    assert explain(caught.value) == ("this needs the package sklearn: pip install 'binwrn-jax[data]'", 2)
    with pytest.raises(ModuleNotFoundError):
        require("nothing_of_ours", "x")


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"JAX_PLATFORMS": "foo"}, "JAX_PLATFORMS"),
        ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS"),
        ({"JAX_ENABLE_X64": "maybe"}, "JAX_ENABLE_X64"),
    ],
)
def test_refused_settings_of_jax_are_one_line(packed, image, variables, word):
    done = binwrn("predict", str(packed), str(image), **variables)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert done.stderr.startswith("error: JAX ") and word in done.stderr


# --- streams ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "word"),
    [
        ('"$@" >&-', 2, "standard output is closed"),
        ('"$@" >/dev/full', 2, "disk full"),
        ('"$@" 2>&-', 0, ""),
        ('"$@" <&-', 0, ""),
        ('"$@" | true; exit ${PIPESTATUS[0]}', 141, ""),
    ],
)
def test_streams_that_cannot_be_used(packed, image, command, code, word):
    done = shell(command, "predict", str(packed), *[str(image)] * 3)
    assert done.returncode == code, done
    assert word in done.stderr and done.stderr.count("\n") == bool(word), done.stderr


def test_help_into_a_closed_pipe():
    done = shell('"$@" | true; exit ${PIPESTATUS[0]}', "--help")
    assert done.returncode in (0, 141) and done.stderr == ""


@pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_names_that_a_locale_cannot_write(tmp_path, image, locale):
    model = golden_model()
    model.metadata["class_names"] = ["Bär", "猫", *model.metadata["class_names"][2:]]
    from binwrn_jax.deploy import numpy_reader

    model.metadata["sha256"] = numpy_reader.checksum(model.metadata, model.bits)
    write_packed(model, tmp_path / "model.safetensors")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/im\xe4ge.npy")
    shutil.copy(image, odd)
    done = binwrn("predict", str(tmp_path / "model.safetensors"), odd, "--top", "99", **locale)
    assert done.returncode == 0 and done.stderr == "", done
    assert r"im\udce4ge.npy: " in done.stdout
    done = binwrn("predict", str(tmp_path / "model.safetensors"), odd, "--json", "--top", "99", **locale)
    names = {entry["name"] for entry in json.loads(done.stdout)["predictions"]}
    assert {"Bär", "猫"} <= names


def test_names_send_nothing_to_the_terminal(capsys, tmp_path, packed, image):
    assert printable("a\x1b]0;x\x07\n\u202e\x9b") == r"a\x1b]0;x\x07\n\u202e\x9b"
    assert printable("plain, Bär 猫 é\u00a0-") == "plain, Bär 猫 é\u00a0-"
    odd = tmp_path / "a\x1b[31m\n.npy"
    shutil.copy(image, odd)
    assert main(["predict", str(packed), str(odd)]) == 0
    assert main(["predict", str(packed), str(tmp_path / "none\x1b[31m")]) == 2
    assert main(["inspect", str(tmp_path / "none\x1b[31m")]) == 2
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert r"a\x1b[31m\n.npy: " in captured.out and captured.err.count(r"none\x1b[31m") == 2
    assert (captured.out.count("\n"), captured.err.count("\n")) == (1, 2)


def test_no_home_and_no_entry_in_the_password_file(tmp_path, packed, image):
    """By a namespace in which this user has a number that nobody knows."""
    unknown = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if not shutil.which("unshare") or subprocess.run([*unknown, "true"], capture_output=True).returncode:
        pytest.skip("this system makes no user namespaces")
    work = tmp_path / "work"
    work.mkdir()
    variables = [f"PATH={os.environ['PATH']}", f"PYTHONPATH={ROOT}", "JAX_PLATFORMS=cpu"]
    command = [sys.executable, "-m", "binwrn_jax", "predict", str(packed), str(image)]
    done = subprocess.run(
        [*unknown, "env", "-i", *variables, *command], cwd=work, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "", done
    assert not list(work.iterdir())  # no literal ~


# --- outputs ------------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_output_replaces_no_input_and_nothing_of_another_kind(capsys, tmp_path, packed):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    notes, header = tmp_path / "notes.txt", tmp_path / "program.h"
    notes.write_text("mine")
    header.write_text("/* mine */")
    link = tmp_path / "link.onnx"
    link.symlink_to(packed)
    before = snapshot(tmp_path)
    evaluate = ("evaluate", packed, "--dataset", "digits", "--predictions")
    export = ("export", packed, "--format")
    for command, word in (
        ((*evaluate, packed), "the command reads it"),
        ((*evaluate, folder), "it is a folder"),
        ((*evaluate, folder / "p.npz"), "is a model folder"),
        ((*evaluate, notes), "is no file of predictions"),
        ((*evaluate, tmp_path / "no" / "p.npz"), "there is no such folder"),
        ((*evaluate, "/dev/null"), "is no file of predictions"),
        ((*export, "packed", "--output", packed), "the command reads it"),
        ((*export, "onnx", "--output", link), "the command reads it"),
        ((*export, "packed", "--output", folder / "model.json"), "is a model folder"),
        ((*export, "onnx", "--output", notes), "is no onnx file"),
        ((*export, "c", "--output", tmp_path / "program.c"), "program.h: it is there already"),
        ((*export, "stablehlo", "--output", folder), "it is a folder"),
        (("import", notes, "--output", notes), "there is a file of this name"),
        (("import", notes, "--output", tmp_path), "the command reads from it"),
        (("import", ROOT / "README.md", "--output", tmp_path), "is no model folder"),
    ):
        assert word in refused(capsys, *command), command
        assert snapshot(tmp_path) == before, command


def test_an_older_output_of_the_same_kind_is_replaced(tmp_path, packed):
    for _ in range(2):
        for name, file in (("packed", "copy.safetensors"), ("onnx", "m.onnx"), ("c", "m.c")):
            command = ["export", str(packed), "--format", name, "--output", str(tmp_path / file)]
            assert main([*command, "--images", "2"]) == 0
