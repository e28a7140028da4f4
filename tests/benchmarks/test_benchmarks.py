"""The training benchmarks run, and what they report is consistent."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packed_networks import wide_resnet

from binwrn_jax.deploy.packed import write_packed
from binwrn_jax.graph.cost import training_flops
from binwrn_jax.nn.wide_resnet import WideResNet

ROOT = Path(__file__).parents[2]


def run(folder, name, *arguments, cache=True):
    """The JSON that a benchmark wrote, or None, and its output; with ``cache`` it has a cache of its own."""
    output = [f"--output={folder}/result.json"] if name != "collectives" else []
    command = [sys.executable, f"benchmarks/{name}.py", *arguments, *output]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **({"XDG_CACHE_HOME": str(folder)} if cache else {})}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text()) if output else None, done.stdout


def prepared(name):
    """Whether the data set lies ready, so that nothing is downloaded."""
    folder = os.environ.get("TFDS_DATA_DIR")
    return folder is not None and (Path(folder) / name).is_dir()


def test_convolutions(tmp_path):
    setting = ["--shapes=8,4,8,2", "--batch=3", "--rounds=1", "--sample=0", "--dtypes", "float32", "bfloat16"]
    report, output = run(tmp_path, "convolutions", *setting, cache=False)
    for result, dtype in zip(report["results"], ("float32", "bfloat16"), strict=True):
        assert result["gflop"] == pytest.approx(2 * 3 * 4 * 4 * 9 * 4 * 8 / 1e9)
        for engine, passes in result["gflops"].items():
            for name, rate in passes.items():
                milliseconds = result["ms"][engine][name][1]
                assert rate == pytest.approx(result["gflop"] / milliseconds * 1e3)
        assert "xla" in result["gflops"] and f"| 8x8, 4 to 8, stride 2, {dtype} |" in output


def test_batch_norm(tmp_path):
    setting = ["--shapes=2,4,4,8", "--rounds=1", "--sample=0", "--dtypes", "float32", "bfloat16"]
    report, output = run(tmp_path, "batch_norm", *setting, cache=False)
    assert [r["dtype"] for r in report["results"]] == ["float32", "bfloat16"]
    assert set(report["results"][0]["ms"]) == {"ours", "xla", "derived"} and "| 2x4x4x8 bfloat16 |" in output


def test_augmentation(tmp_path):
    setting = ["--dataset=digits", "--batch=16", "--workers", "0", "--rounds=1", "--seconds=0.02"]
    report, output = run(tmp_path, "augmentation", *setting)
    assert set(report["images_per_s"]) == {"device", "numpy", "grain 0", "grain batch 0"}
    assert report["device_times"]["device"] == 1 and "| grain batch 0 |" in output


@pytest.mark.slow
def test_collectives(tmp_path):
    setting = ["--config=digits", "--spec=8-0.25", "--batch=8", "--ghost=4", "--devices", "1", "2"]
    _, output = run(tmp_path, "collectives", *setting)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()[2:]]
    assert [row[0].split(",")[0] for row in rows] == ["1", "2", "1", "2"]
    assert all(row[2:] == ["0: 0", "0: 0", "0: 0", "none"] for row in rows[::2])
    parameters, gradients = (int(cell.split(": ")[-1].replace(",", "")) for cell in rows[1][1:3])
    assert gradients == parameters + 4  # with the loss


@pytest.mark.slow
@pytest.mark.skipif(not prepared("imagenet2012"), reason="needs TFDS_DATA_DIR with imagenet2012")
def test_decode(tmp_path):
    report, output = run(tmp_path, "decode", "--rounds=1", "--batch-size=4", "--batches=2", cache=False)
    assert report["images"] == 200 and set(report["rates"]) == {
        "this project, random", "this project, central",
    }  # fmt: skip
    assert [row["workers"] for row in report["workers"]] == [1, 2] and "2 workers: " in output


@pytest.mark.slow
@pytest.mark.skipif(
    not prepared("cifar10") or "BINWRN_OFFICIAL_DIR" not in os.environ,
    reason="needs TFDS_DATA_DIR with cifar10, and BINWRN_OFFICIAL_DIR",
)
def test_conventions(tmp_path):
    report, _ = run(tmp_path, "conventions", "--limit=2", cache=False)
    change = {name: row["largest_change_of_a_logit"] for name, row in report.items() if name != "images"}
    assert change["as trained"] == 0 and change["no input ReLU"] < 1e-3
    assert change["padding `same`"] > 0.1 and change["average pool divides by 9 at the border"] > 0.01


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
    assert ours["tflops"] == pytest.approx(
        8 * training_flops(WideResNet(8, 0.25, 10), (32, 32, 3)) / seconds / 1e12
    )
    assert ours["share_of_peak"] == pytest.approx(ours["tflops"] / result["peak_tflops"])
    assert ours["times_ours"] == [1, 1, 1] and ours["ms"] == sorted(ours["ms"])
    assert set(result["parts"]) == {"update", "dispatch"}
    assert "| 8-0.25 1bit float32, batch 8, ours |" in output


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make, for the C program")
def test_native_runtime(tmp_path):
    model = tmp_path / "model.packed"
    write_packed(wide_resnet(8, 1), model)
    engines = ["native", "onnxruntime", "sgemm"]
    setting = [str(model), "--threads=1", "--batches=1", "--rounds=2", "--engines", *engines]
    report, output = run(tmp_path, "native_runtime", *setting)
    rows = {row["engine"]: row for row in report["results"]}
    assert list(rows) == engines and rows["native"]["times_native_wall"] == [1, 1, 1]
    assert rows["onnxruntime"]["logit_error"] < 1e-5
    work = 2 * report["multiply_adds_per_image"]
    for engine in ("native", "onnxruntime"):
        assert rows[engine]["effective_gflops"] == pytest.approx(work / rows[engine]["wall_s"][1] / 1e9)
    assert training_flops(WideResNet(8, 1, 10), (32, 32, 3)) == 3 * work
    assert report["file_bytes"]["packed"] < report["file_bytes"]["float_onnx"] / 10
    assert "1 threads, batch 1, load" in output and report["native_program"]["peak_mb"] > 0


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
