"""``binwrn data`` and the way of own images through the command line: understood, trained, packed, "
"predicted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import own_images
import pytest

from binwrn_jax.cli.main import main
from binwrn_jax.deploy.formats import open_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(own_cache):
    """What is known of a folder's images is kept there."""


def command(*arguments):
    """Runs ``binwrn`` in a process of its own; gives its exit code and what it said on stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "binwrn_jax", *map(str, arguments)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    return done.returncode, done.stderr


def way_of_own_images(tmp_path, capsys, images_per_class, *options):
    top = tmp_path / "all my images"
    broken = own_images.make_folder(top / "archive", images_per_class)
    name = f"folder:{top}"

    # Understood.
    assert main(["data", name, "--size", "16"]) == 2  # some are broken
    out = capsys.readouterr().out
    assert all(label in out for label in own_images.CLASSES)
    assert all(str(file) in out for file in broken)
    assert "3 images cannot be decoded" in out and "1 within a split, 0 images in several splits" in out

    # Trained, but only when told to leave the broken ones out.
    run = tmp_path / "run"
    training = [
        "train", "--config=own_images:8-0.5", f"--config.data.name={name}", "--config.data.size=16",
        "--config.batch_size=25", "--config.devices=1", f"--workdir={run}", *options,
    ]  # fmt: skip
    assert main(training) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "3 of" in error and "--config.data.skip_broken=True" in error
    assert not (run / "config.json").exists()
    code, error = command(*training, "--config.data.skip_broken=True")
    assert code == 0, error
    assert "resource_tracker" not in error and "leaked" not in error

    manifest = json.loads((run / "data.json").read_text())
    assert manifest["splits"]["test"] == 5 * round(images_per_class / 10)
    assert sorted(manifest["broken"]) == sorted(map(str, broken))

    # Packed, with the names of the classes and the rule for other sizes.
    packed = run / "model.safetensors"
    description = open_model(packed, runtime="numpy").description
    assert description["class_names"] == sorted(own_images.CLASSES)
    assert description["input"]["resize"] == "bilinear"
    evaluation = ["evaluate", str(packed), "--dataset", name, "--skip-broken", "--json", "--runtime", "numpy"]
    assert main(evaluation) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == 5 * round(images_per_class / 10) and result["error"] <= 10
    assert result["error"] == json.loads((run / "summary.json").read_text())["packed_test_error"]

    # Predicted: colours tell the classes apart.
    for label in own_images.CLASSES:
        main(["predict", str(packed), str(top / "archive" / label), "--json", "--top", "1"])
        out = capsys.readouterr().out
        found = [json.loads(line)["predictions"][0]["name"] for line in out.splitlines()]
        assert found.count(label) >= 0.9 * len(found) > 0

    # Other images than those that the run began with.
    next((top / "archive" / "zebra").glob("*.png")).unlink()
    assert main([*training, "--config.data.skip_broken=True", "--config.epochs=62"]) == 2
    error = capsys.readouterr().err
    assert "have changed since the run" in error and error.count("\n") == 1


def test_own_images_from_a_folder_to_a_prediction(tmp_path, capsys):
    way_of_own_images(tmp_path, capsys, 40, "--config.epochs=6")


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["no", "yes"])
def test_two_thousand_own_images(tmp_path, capsys, stream):
    options = ["--config.epochs=2", f"--config.data.stream={stream}", "--config.data.workers=2"]
    way_of_own_images(tmp_path, capsys, 400, *options)


def test_one_name_is_needed(capsys):
    for arguments in ([], ["digits", "--dataset", "mnist"]):
        assert main(["data", *arguments]) == 2
        assert "which data set? Give one name" in capsys.readouterr().err
    assert main(["data", "folder:/nowhere/at all"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
