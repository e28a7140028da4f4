"""A run that shows itself in every service, stopped and gone on: read back with their own libraries."""

import json
import sys

import pytest
from wandb_records import history, records

from binwrn_jax import base_config, train
from binwrn_jax.training.loggers import PROJECT
from binwrn_jax.training.records import read_records

pytestmark = pytest.mark.slow

FILES = {"config.json", "curves.png", "confusion.png", "model.safetensors", "summary.json"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two epochs, then, by another start on the same folder, six."""
    folder = tmp_path_factory.mktemp("logged") / "run"
    config = base_config()
    config.data.name = "digits"
    config.model.depth, config.model.width = 8, 0.25
    config.batch_size, config.seed = 50, 1
    config.log.every_steps = 10
    config.log.to = "tensorboard,wandb,mlflow"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        for config.epochs in (2, 6):
            train(config, folder)
    return folder


@pytest.fixture(scope="module")
def expected(workdir):
    """Step and loss of each training record, and step and error of each evaluation."""
    records = read_records(workdir / "metrics.jsonl")
    assert [r["epoch"] for r in records if r["kind"] == "eval"] == [2, 6]
    return (
        [(r["step"], r["loss"]) for r in records if r["kind"] == "train"],
        [(r["step"], r["error"]) for r in records if r["kind"] == "eval"],
    )


def test_tensorboard(workdir, expected):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(workdir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for tag, values in zip(("train/loss", "eval/error"), expected, strict=True):
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in values]
        assert [value for _, value in found] == pytest.approx([value for _, value in values], rel=1e-6)
    assert set(events.Tags()["images"]) == {"curves", "confusion"}


def test_wandb(workdir, expected):
    pytest.importorskip("wandb")
    ids, losses, artifacts, config = set(), [], set(), {}
    for record in records(workdir):
        if record.HasField("run"):
            ids.add(record.run.run_id)
            config |= {item.key: item.value_json for item in record.run.config.update}
        for artifact in (record.artifact, record.request.log_artifact.artifact):
            artifacts |= {entry.path for entry in artifact.manifest.contents}
        items = history(record)
        if "train/loss" in items:
            losses.append((int(items["_step"]), float(items["train/loss"])))
    assert len(list((workdir / "wandb").glob("offline-run-*"))) == 2  # two processes of one run
    assert ids == {json.loads((workdir / "loggers.json").read_text())["wandb"]}
    assert json.loads(config["model.width"]) == 0.25
    assert losses == expected[0]
    assert artifacts >= FILES


def test_mlflow(workdir, expected):
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=(workdir / "mlflow").as_uri())
    experiment = client.get_experiment_by_name(PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    for tag, values in zip(("train/loss", "eval/error"), expected, strict=True):
        history = client.get_metric_history(run.info.run_id, tag)
        assert [(metric.step, metric.value) for metric in history] == values
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == FILES
    assert run.data.params["model.width"] == "0.25" and run.info.status == "FINISHED"
    packed = client.download_artifacts(run.info.run_id, "model.safetensors")
    with open(packed, "rb") as ours:
        assert ours.read() == (workdir / "model.safetensors").read_bytes()


def test_no_service_loads_tensorflow(workdir):
    assert "tensorflow" not in sys.modules
