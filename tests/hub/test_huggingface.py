"""Models of the Hugging Face hub, from a cache as its library lays it out, offline; and model cards."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binwrn_jax import open_model
from binwrn_jax.cli.main import main
from binwrn_jax.deploy.layers import layers_of
from binwrn_jax.deploy.numpy_runtime import open_numpy
from binwrn_jax.deploy.packed import pack, read_packed, write_packed
from binwrn_jax.errors import UserError
from binwrn_jax.hub.card import MARK, Facts, write_card
from binwrn_jax.hub.huggingface import resolve
from binwrn_jax.nn.registry import create_network, default_fields
from binwrn_jax.store.model import Model
from binwrn_jax.training.initialise import open_source

hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEST = {"error": 12.5, "error_low": 10.0, "error_high": 15.5, "n": 800, "split": "test", "ece": 3.25}


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory):
    """A packed wide ResNet for grey images of 8 x 8."""
    fields = {**default_fields(), "depth": 8, "width": 0.25}
    network = create_network(fields, 10)
    variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.uint8))
    model = Model.create(
        variables,
        {"model": fields, "num_classes": 10, "image_shape": [8, 8, 1], "dataset": "mnist", "test": TEST},
    )
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    write_packed(pack(model, np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)), path)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch, packed_file):
    """A hub cache with me/net at two revisions, of which the branch main is one; no network."""
    folder = tmp_path / "hub" / "models--me--net"
    for commit in (COMMIT, COMMIT[::-1]):
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        if commit == COMMIT:
            blob = folder / "blobs" / "2a"
            blob.parent.mkdir()
            shutil.copy(packed_file, blob)
            (snapshot / "model.safetensors").symlink_to("../../blobs/2a")
        else:
            (snapshot / "README.md").write_text("no model here")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_name_of_the_hub_is_the_file_in_its_cache(cache, packed_file):
    for name in ("hf:me/net", f"hf:me/net@{COMMIT}", Path("hf:me/net@main")):
        assert resolve(name).read_bytes() == packed_file.read_bytes()
    assert resolve("runs/digits") == Path("runs/digits")


def test_models_of_the_hub_are_opened_and_trained_on_from(cache, packed_file):
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 1), np.uint8)
    logits = open_model(packed_file)(images)
    np.testing.assert_array_equal(open_model("hf:me/net")(images), logits)
    np.testing.assert_array_equal(
        open_model("hf:me/net", runtime="numpy")(images), open_numpy(packed_file)(images)
    )
    assert open_source("hf:me/net").description.model["depth"] == 8


def test_the_commands_take_names_of_the_hub(cache, packed_file, capsys, tmp_path):
    for command in ("inspect", "verify"):
        assert main([command, "hf:me/net"]) == 0
        assert capsys.readouterr().out
    copy = tmp_path / "copy.safetensors"
    assert main(["export", "hf:me/net", "--format", "packed", "--images", "2", "--output", str(copy)]) == 0
    assert copy.read_bytes() == packed_file.read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:me/other", "hf:me/other is not in the cache"),
        ("hf:me/net@dev", "run `hf download me/net model.safetensors` where there is a network"),
        ("hf:me/net/model.safetensors", "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
        ("hf:", "expected hf:OWNER/NAME"),
        (f"hf:me/net@{COMMIT[::-1]}", "is not in the cache"),
    ],
)
def test_missing_data_sets_are_one_line(cache, capsys, name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        open_model(name)
    assert main(["inspect", name]) == 2
    assert message in capsys.readouterr().err


def test_the_cache_of_the_environment_is_used_offline(cache, packed_file):
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    script = "import sys; from binwrn_jax.hub.huggingface import resolve; print(resolve('hf:me/net'))"
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).read_bytes() == packed_file.read_bytes()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'binwrn-jax\[hub\]'"):
        resolve("hf:me/net")


# --- model cards --------------------------------------------------------------------------------------------


def read_card(text):
    """The card as the hub's own library reads it."""
    return hub.ModelCard(text, ignore_metadata_errors=False)


def test_a_card_of_a_run_is_read_by_the_hubs_parser(tmp_path, packed_file, capsys):
    run = tmp_path / "digits-run"
    run.mkdir()
    shutil.copy(packed_file, run)
    config = {
        "model": {"weights": "1bit"},
        "epochs": 30,
        "batch_size": 50,
        "seed": 7,
        "recipe": {"mixup": 0.2},
    }
    (run / "config.json").write_text(json.dumps(config))
    summary = {"epochs": 30, "devices": ["cpu"], "processor": "Some | chip", "processes": 2, "seconds": 90}
    (run / "summary.json").write_text(json.dumps(summary))
    assert main(["card", str(run), "--repo", "me/net", "--license", "MIT"]) == 0
    assert "hf upload me/net" in capsys.readouterr().out
    card = read_card((run / "README.md").read_text())
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "mit",
        "binwrn-jax",
        "image-classification",
    )
    assert data.datasets == "ylecun/mnist" and "arxiv:1802.08530" in data.tags and data.model_name == "net"
    (result,) = data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_type) == (
        "ylecun/mnist",
        "test",
        "accuracy",
    )
    assert result.metric_value == 0.875
    weights = sum(row.bits for row in layers_of(read_packed(packed_file)))
    for text in (
        "| mnist, test | 800 | 12.50 | 10.00 to 15.50 |",
        f"{weights:,} convolution weights",
        f"{packed_file.stat().st_size:,} bytes",
        "residual network 8-0.25",
        'open_model("hf:me/net")',
        "uint8 [N, 8, 8, 1]",
        "| beside the paper's recipe | mixup 0.2 |",
        "| seed | 7 |",
        "| hardware | cpu, Some \\| chip, 2 processes |",
        "| time in minutes | 1.5 |",
    ):
        assert text in card.text, text
    assert main(["card", str(run), "--repo", "me/net"]) == 0  # an older card is replaced
    assert "None is stated" in (run / "README.md").read_text()


def test_a_readme_of_the_users_is_not_replaced(tmp_path, packed_file, capsys):
    shutil.copy(packed_file, tmp_path)
    (tmp_path / "README.md").write_text("# mine")
    assert main(["card", str(tmp_path / "model.safetensors")]) == 2
    assert "is no model card of `binwrn card`" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "# mine"
    assert main(["card", str(tmp_path / "model.safetensors"), "--output", str(tmp_path / "card.md")]) == 0
    assert MARK in (tmp_path / "card.md").read_text()
    assert main(["card", str(tmp_path / "nowhere")]) == 2
    (tmp_path / "run").mkdir()
    assert main(["card", str(tmp_path / "run")]) == 2
    assert "has no model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "license", "name"),
    [("CC-BY-4.0", "cc-by-4.0", None), ("as is: ask me", "other", "as is: ask me"), (None, None, None)],
)
def test_licences_are_those_that_the_hub_knows(given, license, name):
    description = {"image_shape": [32, 32, 3], "num_classes": 10, "license": given}
    data = read_card(write_card(Facts("me/net", description, weights=100, file_bytes=50))).data
    assert data.license == license and data.license_name == name and data.datasets is None
