"""binwrn benchmark: each runtime in a process of its own, timed in turn."""

import dataclasses
import json

import numpy as np
import pytest
from packed_networks import residual

from binwrn_jax.cli.main import main
from binwrn_jax.deploy.packed import write_packed


@pytest.fixture
def packed_file(tmp_path):
    packed = residual(np.random.default_rng(0), (8, 8, 1))
    packed = dataclasses.replace(packed, metadata={**packed.metadata, "dataset": "digits"})
    write_packed(packed, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_each_runtime_has_a_row_with_its_times(packed_file, capsys):
    arguments = ["--runtimes", "native", "--int8", "--seconds", "0.2", "--batch", "3"]
    assert main(["benchmark", str(packed_file), *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["runtime"], row["activations"]): row for row in found["timings"]}
    assert set(rows) == {("native", "float32"), ("native", "int8")}
    assert found["processor"] and "digits test" in found["images"]
    for row in rows.values():
        assert 0 < row["latency_s"]["50"] <= row["latency_s"]["90"] <= row["latency_s"]["99"] < 10
        assert row["images_per_s"] > 0 and row["load_s"] > 0 and row["images"] >= 5
    assert rows["native", "float32"]["file_bytes"] == packed_file.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads is 0"),
        (["--batch", "0"], "--batch is 0"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--runtimes", "native,tflite"], "unknown runtime 'tflite'"),
        (["--int8", "--calibrate", "mnist"], "mnist"),
    ],
)
def test_bad_options_are_one_line(packed_file, capsys, arguments, message):
    assert main(["benchmark", str(packed_file), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
