"""Loggers: what each service reads back of a run in two processes' time, and those that are not there."""

import json
import sys

import numpy as np
import pytest
from wandb_records import history, records

from binwrn_jax.errors import UserError
from binwrn_jax.training import loggers
from binwrn_jax.training.loggers import logger_names, open_loggers
from binwrn_jax.training.records import MetricsLog

CONFIG = {"seed": 3, "model.width": 0.5}


def log_run(workdir, to):
    """Two steps, then as a resumed run the second one again and a third."""
    (workdir / "config.json").write_text(json.dumps(CONFIG))
    for resume, steps in ((0, (10, 20)), (10, (20, 30))):
        log = MetricsLog(workdir, resume)
        log.mirrors = open_loggers(to, workdir, CONFIG, resume)
        log.artifact(workdir / "config.json")
        for step in steps:
            log.write("train", step, loss=1 / step, images_per_s=None, note=True)
        log.close()


def test_tensorboard_has_each_step_once(tmp_path):
    log_run(tmp_path, "tensorboard")
    from tensorboardX.proto import event_pb2

    values, starts = [], []
    for path in sorted((tmp_path / "tensorboard").glob("events.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            starts += [event.step] if event.HasField("session_log") else []
            values += [
                (event.step, v.tag, round(v.simple_value, 6))
                for v in event.summary.value
                if v.tag == "train/loss"
            ]
    assert values[:2] == [(10, "train/loss", 0.1), (20, "train/loss", 0.05)]
    assert values[2:] == [(20, "train/loss", 0.05), (30, "train/loss", 0.033333)]
    assert starts[-1] == 11  # readers drop what the earlier process wrote from there on


def test_mlflow_keeps_one_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_run(tmp_path, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name(loggers.PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in CONFIG.items()}
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [10, 20, 20, 30]
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["config.json"]
    assert "train/note" not in run.data.metrics


@pytest.mark.slow
def test_wandb_offline_keeps_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    log_run(tmp_path, "wandb")
    ids, losses = set(), []
    for record in records(tmp_path):
        if record.HasField("run"):
            ids.add(record.run.run_id)
        items = history(record)
        if "train/loss" in items:
            losses.append((int(items["_step"]), round(float(items["train/loss"]), 6)))
    assert ids == {json.loads((tmp_path / "loggers.json").read_text())["wandb"]}
    assert losses == [(10, 0.1), (20, 0.05), (20, 0.05), (30, 0.033333)]


OWN_LOGGER = """
import json

class Own:
    def __init__(self, run):
        self.file = open(run.workdir / "own.jsonl", "a")
        self.write("opened", run.resume_step, run.config["seed"], run.run_id)

    def write(self, *values):
        self.file.write(json.dumps(values) + "\\n")

    def log(self, kind, step, values):
        self.write(kind, step, values)

    def artifact(self, path):
        self.write("artifact", path.name)

    def close(self):
        self.write("closed")
        self.file.close()
"""


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """An installed package with a logger: a module, and the folder that pip writes beside it."""
    site = tmp_path / "site"
    (site / "own_logger-1.0.dist-info").mkdir(parents=True)
    (site / "own_logger.py").write_text(OWN_LOGGER)
    (site / "own_logger-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: own-logger\nVersion: 1.0\n"
    )
    (site / "own_logger-1.0.dist-info" / "entry_points.txt").write_text(
        "[binwrn_jax.loggers]\nown = own_logger:Own\n"
    )
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop("own_logger", None)


def test_a_package_brings_its_own_logger(tmp_path, own_package):
    log_run(tmp_path, "own")
    seen = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    run_id = json.loads((tmp_path / "loggers.json").read_text())["own"]
    assert seen[:5] == [
        ["opened", 0, 3, run_id],
        ["artifact", "config.json"],
        ["train", 10, {"loss": 0.1}],
        ["train", 20, {"loss": 0.05}],
        ["closed"],
    ]
    assert seen[5] == ["opened", 10, 3, run_id]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        (
            "tensorbord",
            r"unknown logger 'tensorbord' in log.to \(did you mean 'tensorboard'\?\)",
        ),
        ("tensorboard,comet", "unknown logger 'comet'"),
    ],
)
def test_unknown_loggers_are_named(to, message):
    with pytest.raises(UserError, match=message):
        logger_names(to)


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"^log.to=wandb needs .*loggers"):
        open_loggers("wandb", tmp_path, CONFIG, 0)


def test_images_reach_tensorboard(tmp_path):
    import PIL.Image

    PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "curves.png")
    (board,) = open_loggers("tensorboard", tmp_path, CONFIG, 0)
    board.artifact(tmp_path / "curves.png")
    board.close()
    (path,) = (tmp_path / "tensorboard").glob("events.*")
    assert b"curves" in path.read_bytes()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"tensorboard": 3}'])
def test_damaged_names_are_made_anew(tmp_path, content):
    (tmp_path / "loggers.json").write_bytes(content)
    for logger in open_loggers("tensorboard", tmp_path, {}, 0):
        logger.close()
    assert list(json.loads((tmp_path / "loggers.json").read_text())) == ["tensorboard"]
