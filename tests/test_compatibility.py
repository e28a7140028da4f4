"""What the program wrote before its files moved into rooms still opens, evaluates and goes on.

``golden/run_17371f9.tar.xz`` has two workdirs of the commit 17371f9 (25 November 2026), of one
command with jax 0.10.2: a finished run, and one that was killed with a checkpoint of step 45 in the middle of
an epoch. Their curves and the finished run's first checkpoint are left out for their size.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from binwrn_jax import Model, load_packed
from binwrn_jax.cli.main import main
from binwrn_jax.deploy import numpy_reader

ARCHIVE = Path(__file__).parent / "golden" / "run_17371f9.tar.xz"
COMMAND = [
    "--config=configs/digits.py:8-0.25,1bit,cutout",
    "--config.epochs=6",
    "--config.seed=3",
    "--config.batch_size=48",
    "--config.log.every_steps=10",
    "--config.checkpoint.every_steps=15",
    "--config.checkpoint.keep=1",
    "--config.data.train_split=train[:480]",
    "--config.devices=1",
]
ERRORS = 360 - 158  # of the finished run on the test split


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The archive's content."""
    folder = tmp_path_factory.mktemp("old")
    shutil.unpack_archive(ARCHIVE, folder, filter="data")
    return folder


@pytest.fixture
def old(written, tmp_path) -> Path:
    """A copy of its own for a test that writes."""
    return shutil.copytree(written, tmp_path / "old")


def digest(variables) -> str:
    """One hash over the names and numbers of all variables."""
    result = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    for name, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves):
        result.update(name.encode())
        result.update(np.asarray(leaf).tobytes())
    return result.hexdigest()


@pytest.mark.parametrize(
    ("run", "stated"),
    [
        ("finished", "4dbe28036ea9546bbb68b6923bd7fd1154fe2a056002e0a872fd79c83657e3b1"),
        ("unfinished", "d95e69022c3a6dd67dc49f7357d27c1793adc0b57a8068dc4e763ee2566ae41f"),
    ],
)
def test_a_model_folder_has_the_same_numbers(written, run, stated):
    model = Model.load(written / run / "model")
    assert digest(dict(model.variables)) == stated
    assert (model.description.dataset, model.description.num_classes) == ("digits", 10)


def test_a_packed_file_computes_what_it_did(written):
    path = written / "finished" / "model.safetensors"
    reader = numpy_reader.load(path)
    golden = {name: reader.tensors[f"golden.{name}"] for name in ("image", "logits")}
    largest = np.abs(golden["logits"]).max()
    assert golden["logits"][0] == np.float32(0.24484392)
    for model in (reader, load_packed(path)):
        np.testing.assert_allclose(model(golden["image"][None])[0], golden["logits"], atol=1e-4 * largest)
    assert main(["verify", str(path)]) == 0


@pytest.mark.parametrize("model", ["finished", "finished/model", "finished/model.safetensors"])
def test_evaluation_gives_the_same_error(written, capsys, model):
    assert main(["evaluate", str(written / model), "--dataset", "digits", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == 360
    assert abs(result["n"] - result["correct"] - ERRORS) <= 2  # images at the border of two classes


def records(workdir: Path, kind: str) -> dict[int, dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["kind"] == kind}


def test_a_killed_run_goes_on(old, capsys):
    assert main(["train", *COMMAND, f"--workdir={old / 'unfinished'}"]) == 0
    assert "resumed at step 45" in capsys.readouterr().out
    ours, theirs = (records(old / run, "epoch") for run in ("unfinished", "finished"))
    # Half of this epoch comes from the checkpoint. Later ones may differ by a sign that a rounding decides.
    assert ours[50]["train_loss"] == pytest.approx(theirs[50]["train_loss"], rel=1e-5)
    assert list(ours) == list(theirs)
    summary = json.loads((old / "unfinished" / "summary.json").read_text())
    assert summary["steps"] == 60 and abs(summary["test"]["correct"] - 158) < 40
    assert (old / "unfinished" / "model.safetensors").exists()


def test_a_finished_run_is_done(old, capsys):
    workdir = old / "finished"
    before = {name: (workdir / name).read_bytes() for name in ("metrics.jsonl", "summary.json")}
    assert main(["train", *COMMAND, f"--workdir={workdir}"]) == 0
    assert "done: test error 56.11 %" in capsys.readouterr().out
    assert records(workdir, "eval") == {
        record["step"]: record
        for record in map(json.loads, before["metrics.jsonl"].decode().splitlines())
        if record["kind"] == "eval"
    }
