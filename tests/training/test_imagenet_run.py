"""ImageNet's real JPEGs through a whole run of real processes: steps, one crop and 25, kill -9 and resume."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from binwrn_jax.cli.main import main
from binwrn_jax.store.model import load_model

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("TFDS_DATA_DIR", "")

pytestmark = pytest.mark.skipif(
    not (Path(DATA) / "imagenet2012").is_dir(), reason="imagenet2012 is not in TFDS_DATA_DIR"
)

RUN = [
    "--config=configs/imagenet.py:18-0.25,1bit",
    "--config.model.dtype=float32",
    "--config.model.ghost_size=8",
    "--config.batch_size=16",
    "--config.epochs=2",
    "--config.schedule.warmup_epochs=1",
    "--config.moments=dataset",
    "--config.data.train_split=train[:48]",
    "--config.data.test_split=validation[:8]",
    "--config.eval.batch_size=8",
    "--config.checkpoint.every_steps=2",
    "--config.log.every_steps=1",
]


@pytest.fixture(scope="module", autouse=True)
def shared_compilations(tmp_path_factory):
    """The processes of this file run the same programs: the first compiles them for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


def start(workdir, *arguments):
    return subprocess.Popen(
        [sys.executable, "train.py", *RUN, f"--workdir={workdir}", *arguments],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(workdir, *arguments):
    process = start(workdir, *arguments)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted, its JPEGs decoded by two workers."""
    workdir = tmp_path_factory.mktemp("whole")
    output = finish(workdir, "--config.data.workers=2")
    assert "imagenet2012: 48 training and 8 test images; 18-0.25 1bit" in output
    assert "25 crops: test error" in output
    return workdir


def test_summary(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["test"]["n"] == 8
    assert {"error", "top5_error", "crops_error", "crops_top5_error"} <= summary["test"].keys()
    assert summary["packed_test_error"] == summary["test_error"]
    assert json.loads((whole / "model" / "model.json").read_text())["input"] == {"resize": "center_crop"}


@pytest.mark.slow
def test_kill_9_then_the_same_command_ends_with_the_same_bits(whole, tmp_path):
    """The killed run decodes in threads and the other in workers: neither that nor the kill changes a bit."""
    process = start(tmp_path, "--config.data.workers=0")
    deadline = time.monotonic() + 300
    while not (tmp_path / "checkpoints" / "2").is_dir():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    output = finish(tmp_path, "--config.data.workers=0")
    assert re.search(r"resumed at step [2-6]", output)
    jax.tree.map(np.testing.assert_array_equal, load_model(whole)[0], load_model(tmp_path)[0])
    ours, theirs = (json.loads((d / "summary.json").read_text())["test"] for d in (whole, tmp_path))
    assert ours == theirs


def test_the_packed_file_evaluated_alone(whole, capsys):
    summary = json.loads((whole / "summary.json").read_text())["test"]
    command = ["evaluate", str(whole / "model.safetensors"), "--dataset", "imagenet2012", "--json"]
    options = ["--split", "validation[:8]", "--crops", "25", "--workers", "0"]
    assert main([*command, *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["error"], result["top5_error"]) == (summary["crops_error"], summary["crops_top5_error"])
    assert result["loss"] == pytest.approx(summary["crops_loss"], rel=1e-4)
