"""The run's record: each step once, whatever a kill or a damaged disk left of the file."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from binwrn_jax import Model
from binwrn_jax.nn.registry import default_fields
from binwrn_jax.training.curves import draw_curves
from binwrn_jax.training.records import MetricsLog, read_records

TRAIN = {"epoch": 0.5, "loss": 1.5, "error": 50.0, "learning_rate": 0.1, "images_per_s": None, "seconds": 1.0}
EPOCH = {"epoch": 1, "train_loss": 1.2, "train_error": 40.0, "seconds": 2.0}
EVAL = {"epoch": 1, "seconds": 3.0, "cycle_end": True, "error": 30.0, "loss": 0.9, "n": 10, "correct": 7}


def test_resumed_log_has_each_step_once(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    for step in (10, 20, 30):
        log.write("train", step, **{**TRAIN, "loss": 1.0 / step})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 4')  # killed in the middle of a line
    log = MetricsLog(tmp_path, resume_step=20)
    log.write("train", 30, **{**TRAIN, "loss": float("inf")})
    log.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in records] == [(10, 0.1), (20, 0.05), (30, None)]
    assert read_records(tmp_path / "metrics.jsonl") == records == log.records


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe\x00",
        b"null",
        b"[1]",
        b"[" * 100_000,
        b'{"kind": "train"}',
        json.dumps({"kind": "train", **TRAIN, "step": "20"}).encode(),
        json.dumps({"kind": "train", **TRAIN, "step": True}).encode(),
        json.dumps({"kind": "train", **TRAIN, "step": -1}).encode(),
        json.dumps({"kind": ["train"], **TRAIN, "step": 20}).encode(),
        json.dumps({"kind": "train", **TRAIN, "step": 20, "loss": "low"}).encode(),
        json.dumps({"kind": "train", **TRAIN, "step": 20, "seconds": None}).encode(),
        b'{"kind": "train", "step": 20, "epoch": NaN, "loss": 1, "learning_rate": 1, "images_per_s": 1}',
        b'{"kind": "eval", "step": 20}',
        json.dumps({"kind": "eval", **EVAL, "step": 20, "error": None}).encode(),
        json.dumps({"kind": "eval", **EVAL, "step": 20, "cycle_end": 1}).encode(),
        json.dumps({"kind": "eval", **EVAL, "step": 20, "validation_error": "low"}).encode(),
        json.dumps({"kind": "epoch", **EPOCH, "step": 20, "train_error": {}}).encode(),
    ],
)
def test_a_damaged_line_is_left_out_and_the_others_stay(tmp_path, line):
    good = [
        {"kind": "train", "step": 10, **TRAIN},
        {"kind": "epoch", "step": 28, **EPOCH},
        {"kind": "eval", "step": 28, **EVAL},
        {"kind": "note", "step": 28, "text": "of a later version"},
    ]
    lines = [json.dumps(record).encode() for record in good]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([lines[0], line, *lines[1:]]) + b"\n")
    assert read_records(tmp_path / "metrics.jsonl") == good
    log = MetricsLog(tmp_path, resume_step=56)
    log.close()
    assert log.records == good
    draw_curves(tmp_path / "curves.png", log.records, "damaged")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_an_interval_begins_where_the_last_record_ends(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    assert log.last_report(3, 28) == {"step": 0, "epoch_loss": 0.0, "epoch_errors": 0}
    log.write("train", 25, **TRAIN, epoch_loss=30.25, epoch_errors=300)
    log.write("train", 28, **TRAIN, epoch_loss=33.5, epoch_errors=330)
    log.write("train", 30, **TRAIN, epoch_loss=2.125, epoch_errors=20)
    log.close()
    assert log.last_report(27, 28) == {"step": 25, "epoch_loss": 30.25, "epoch_errors": 300}
    assert (
        log.last_report(28, 28)
        == log.last_report(29, 28)
        == {"step": 28, "epoch_loss": 0.0, "epoch_errors": 0}
    )
    assert log.last_report(33, 28) == {"step": 30, "epoch_loss": 2.125, "epoch_errors": 20}
    log.records.append({"kind": "train", "step": 35, **TRAIN})  # as version 0.1.0 wrote it
    assert log.last_report(36, 28) is None


def write_model(workdir: Path, step: int) -> None:
    fields = {**default_fields(), "depth": 8, "width": 0.25}
    description = {"model": fields, "num_classes": 2, "image_shape": [8, 8, 1], "step": step}
    network = Model.create({}, description).network
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.uint8))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    Model.create(variables, description).save(workdir / "model")


def test_an_evaluation_counts_only_with_its_model(tmp_path, caplog):
    log = MetricsLog(tmp_path, resume_step=0)
    for step in (28, 56):
        log.write("eval", step, **EVAL)
    log.close()
    everything = (tmp_path / "metrics.jsonl").read_bytes()

    def kept() -> list[int]:
        (tmp_path / "metrics.jsonl").write_bytes(everything)
        log = MetricsLog(tmp_path, resume_step=56)
        log.close()
        return [record["step"] for record in log.of_kind("eval")]

    write_model(tmp_path, step=56)
    assert kept() == [28, 56] and not caplog.records
    (tmp_path / "model" / "model.json").write_bytes(b"{}")
    assert kept() == [28]
    write_model(tmp_path, step=28)
    assert kept() == [28]
    (tmp_path / "model" / "model.json").unlink()
    assert kept() == [28]
    assert "model is not that of step 56: it is made again" in caplog.text
