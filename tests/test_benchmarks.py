"""The training benchmarks run, and what they report is consistent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from binwrn_jax.cost import training_flops

ROOT = Path(__file__).parent.parent


def run(folder, name, *arguments):
    """The JSON that a benchmark wrote, and its output."""
    command = [sys.executable, f"benchmarks/{name}.py", *arguments, f"--output={folder}/result.json"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text()), done.stdout


@pytest.mark.slow
def test_train_step(tmp_path):
    setting = [
        "--networks=8-0.25",
        "--batches=8",
        "--rounds=3",
        "--sample=0.01",
        "--parts",
        "update",
        "dispatch",
    ]
    report, output = run(tmp_path, "train_step", *setting)
    (result,) = report["results"]
    ours = result["engines"]["ours"]
    seconds = ours["ms"][1] / 1e3
    assert ours["images_per_s"] == pytest.approx(8 / seconds)
    assert ours["tflops"] == pytest.approx(8 * training_flops(8, 0.25, 10, (32, 32, 3)) / seconds / 1e12)
    assert ours["share_of_peak"] == pytest.approx(ours["tflops"] / result["peak_tflops"])
    assert ours["times_ours"] == [1, 1, 1] and ours["ms"] == sorted(ours["ms"])
    assert set(result["parts"]) == {"update", "dispatch"}
    assert "| 8-0.25 1bit float32, batch 8, ours |" in output


@pytest.mark.slow
def test_end_to_end(tmp_path):
    report, output = run(
        tmp_path, "end_to_end", "--config=digits", "--spec=8-0.25", "--train-images=0", "--epochs=2"
    )
    assert report["steps"] == 56 and len(report["pairs"]) >= 3
    looped, bare = (sum(pair[i] for pair in report["pairs"]) for i in (1, 2))
    assert report["overhead_of_sums"] == pytest.approx(looped / bare - 1)
    assert looped < report["wall_s"]
    assert report["evaluation_images_per_s"] and "| bare step |" in output
