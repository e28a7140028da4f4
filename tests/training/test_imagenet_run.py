"""ImageNet's real JPEGs through a whole run of real processes: steps, one crop and 25, kill -9 and resume."""

import functools
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import runs
from runs import assert_same_network

from binwrn_jax.cli.main import main

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


start, finish = (functools.partial(function, run=RUN) for function in (runs.start, runs.finish))


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
    assert_same_network(whole, tmp_path)
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
