"""Bad input of many kinds to every verb: one line that says what is wrong, exit code 2, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from packed_models import golden_model

from binwrn_jax.cli.main import main
from binwrn_jax.deploy.packed import write_packed
from binwrn_jax.training.config import base_config, flatten
from paper.__main__ import main as paper

HERE = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad files."""
    folder = tmp_path_factory.mktemp("files")
    write_packed(golden_model(), folder / "packed")
    whole = (folder / "packed").read_bytes()
    (folder / "cut").write_bytes(whole[:-40])
    (folder / "flipped").write_bytes(whole[:-9] + bytes([whole[-9] ^ 16]) + whole[-8:])
    (folder / "text").write_text("some text\n")
    (folder / "nothing").write_bytes(b"")
    (folder / "zeros").write_bytes(bytes(1000))
    (folder / "matlab").write_bytes(b"MATLAB 5.0 MAT-file".ljust(200))
    (folder / "onnx").write_bytes(b"\x08\x08\x12\x04xxxx")
    (folder / "hlo").write_bytes(b"binwrn-stablehlo 1\n{}\nxx")
    (folder / "json").write_text('{"a": 1}')
    (folder / "safetensors").write_bytes((8).to_bytes(8, "little") + b'{"a":1} ')
    for name, content in {
        "not-json": "{",
        "a-list": "[]",
        "no-fields": "{}",
        "other-format": '{"format": "x"}',
        "lies": json.dumps(
            {"format": "binwrn-jax model 1", "num_classes": -1, "image_shape": "x", "model": []}
        ),
    }.items():
        (folder / name).mkdir()
        (folder / name / "model.json").write_text(content)
    (folder / "empty").mkdir()
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text("{}")
    (folder / "image.png").write_bytes(b"\x89PNG no more")
    np.save(folder / "floats.npy", np.zeros((6, 7, 3)))
    np.save(folder / "flat.npy", np.zeros(4, np.uint8))
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)
    (folder / "config.py").write_text("raise ValueError('no')\n")
    (folder / "syntax.py").write_text("def\n")
    (folder / "none.py").write_text("x = 1\n")
    (folder / "number.py").write_text("def get_config(spec=''):\n    return 3\n")
    (folder / "exits.py").write_text("import sys\nsys.exit(0)\n")
    for name, value in {"negative": -ONES, "complex": ONES + 0j, "truth": ONES > 0, "none": ONES[:0]}.items():
        np.save(folder / f"{name}.npy", value)
    (folder / "loop").symlink_to("loop")
    (folder / "fields.py").write_text(
        "from binwrn_jax import base_config\n"
        "def get_config(spec=''):\n"
        "    config = base_config()\n"
        "    with config.unlocked():\n"
        "        exec(spec)\n"
        "    return config\n"
    )
    return folder


ONES = np.ones((2, 6, 7, 3), np.int16)
MODELS = [
    "absent",
    "text",
    "nothing",
    "zeros",
    "matlab",
    "json",
    "safetensors",
    "cut",
    "flipped",
    "onnx",
    "hlo",
    "empty",
    "run",
    "not-json",
    "a-list",
    "no-fields",
    "other-format",
    "lies",
    "loop",
    "x" * 5000,
    "/dev/null",
    "floats.npy",
]
IMAGES = [
    "absent",
    "image.png",
    "floats.npy",
    "flat.npy",
    "objects.npy",
    "text",
    "empty",
    "negative.npy",
    "complex.npy",
    "truth.npy",
    "none.npy",
    "loop",
    "x" * 5000,
    "/dev/null",
    "http://host/image.png",
]
NAMES = [
    "npz:absent",
    "npz:floats.npy",
    "npz:",
    "folder:",
    "folder:absent",
    "folder:text",
    "folder:loop",
    "tfds:",
    "tfds:absent",
    "tfds:../../etc",
    "other:x",
    "digits:x",
    "DIGITS",
    " digits",
    "\n",
]
CASES = [
    [],
    ["--verbose"],
    ["-x", "predict"],
    ["predcit"],
    [""],
    ["predict"],
    ["predict", "packed"],
    *(["predict", model, "floats.npy"] for model in MODELS),
    *(["predict", "packed", image] for image in IMAGES),
    ["predict", "packed", "floats.npy", "--top", "0"],
    ["predict", "packed", "floats.npy", "--top", "x"],
    ["predict", "packed", "floats.npy", "--runtime", "fast"],
    ["predict", "packed", "floats.npy", "--unknown"],
    ["evaluate", "packed"],
    ["evaluate", "packed", "--dataset", "digit"],
    ["evaluate", "packed", "--dataset", ""],
    ["evaluate", "packed", "--dataset", "digits"],  # of another size
    *(["evaluate", model, "--dataset", "digits"] for model in MODELS),
    ["evaluate", "packed", "--dataset", "digits", "--limit", "0"],
    ["evaluate", "packed", "--dataset", "digits", "--limit", "-1"],
    ["evaluate", "packed", "--dataset", "digits", "--batch-size", "0"],
    ["evaluate", "packed", "--dataset", "digits", "--batch-size", "1e3"],
    ["evaluate", "packed", "--dataset", "digits", "--crops", "25"],
    ["evaluate", "packed", "--dataset", "digits", "--crops", "7"],
    ["evaluate", "packed", "--dataset", "digits", "--workers", "-2"],
    ["evaluate", "packed", "--dataset", "digits", "--dtype", "float8"],
    ["evaluate", "packed", "--dataset", "digits", "--dtype", "bfloat16"],
    ["evaluate", "packed", "--dataset", "digits", "--split", "test[:"],
    ["evaluate", "packed", "--dataset", "digits", "--predictions", "empty"],
    *(["evaluate", "packed", "--dataset", name] for name in NAMES),
    *(
        ["evaluate", "packed", "--dataset", "digits", *options]
        for options in (
            ["--split", "\n"],
            ["--split", "test[50%:20%]"],
            ["--split", f"test[{'9' * 500}:]"],
            ["--batch-size", str(10**18)],
            ["--predictions", ""],
            ["--predictions", "/dev/full"],
            ["--confusion", "x.gif"],
        )
    ),
    ["export", "packed"],
    ["export", "packed", "--format", "tflite", "--output", "new"],
    ["export", "packed", "--format", "packed", "--output", "new", "--images", "0"],
    ["export", "packed", "--format", "packed", "--output", "absent/new"],
    ["export", "packed", "--format", "packed", "--output", "text/new"],
    ["export", "packed", "--format", "c", "--output", "new.txt"],
    ["export", "packed", "--format", "c", "--output", "a b.c"],
    ["export", "packed", "--format", "onnx", "--output", "text"],
    *(
        ["export", "packed", "--format", "packed", "--output", output]
        for output in ("", ".", "..", "/", "/dev/null", "/proc/x", "loop", "x" * 300, "empty")
    ),
    ["export", "packed", "--format", "packed", "--output", "new", "--coding", "zip"],
    ["export", "packed", "--format", "onnx", "--output", "new", "--coding", "entropy"],
    ["export", "packed", "--format", "packed", "--output", "new", "--license", "\x1b[2J"],
    *(["export", model, "--format", "packed", "--output", "new"] for model in MODELS),
    ["verify"],
    *(["verify", "packed", "--max-multiply-adds", number] for number in ("nan", "-1", "inf", "x")),
    ["verify", "empty"],
    ["verify", "hlo"],
    *(["verify", model] for model in MODELS if model not in ("cut", "flipped", "onnx", "safetensors")),
    *(["inspect", model] for model in MODELS),
    ["import", "absent", "--output", "new"],
    ["import", "text", "--output", "new"],
    ["import", "matlab", "--output", "new"],
    ["import", "empty", "--output", "new"],
    ["import", "matlab", "--output", "text"],
    ["import", "matlab"],
    ["compare"],
    ["compare", "absent"],
    ["compare", "text"],
    ["compare", "empty"],
    ["compare", "run", "--png", "curves.jpg"],
    ["compare", "run", "--png", "absent/curves.png"],
    ["compare", "run", "--png", "image.png"],
    ["data"],
    ["data", "--dataset", "cifar"],
    ["preflight"],
    ["preflight", "--config=nowhere"],
    ["preflight", "--config=cifar10:20-4,1bti"],
    ["preflight", "--config=cifar10", "--topology", "v9z:2x2"],
    ["preflight", "--config=cifar10", "--topology", "v5e:0x0"],
    ["preflight", "--config=cifar10", "--topology", "cpu:0"],
    ["preflight", "--config=cifar10", "--topology", "cuda:GTX1x8"],
    ["preflight", "--config=cifar10", "--topology", "cpu", "--slices", "0"],
    ["preflight", "--config=cifar10", "--topology", "cpu", "--price", "x"],
    ["preflight", "--config=cifar10", "--topology", "cpu", "--config.sed=1"],
    ["preflight", "--config=cifar10", "--topology", "cpu", f"--config.batch_size={10**20}"],
    ["preflight", "--config=cifar10", "--topology", "cpu", "--config.model.width=1e300"],
    *(
        ["preflight", "--config=cifar10", "--topology", target]
        for target in ("", "v5e", "v5e:99999x99999", "v5e:2.5x2", "cpu:9999999", "cuda:H100x0", "\n")
    ),
    ["train", "runs"],
    ["train", "--wrokdir=x"],
    ["train", "--workdir=gs://bucket/x"],
    ["train", "--config=nowhere"],
    ["train", "--config="],
    ["train", "--config=empty"],
    ["train", "--config=config.py"],
    ["train", "--config=syntax.py"],
    ["train", "--config=none.py"],
    ["train", "--config=number.py"],
    ["train", "--config=exits.py"],
    ["train", "--config=fields.py:config.epoch=3"],
    ["train", "--config=fields.py:config.epochs=None"],
    ["train", "--config=fields.py:config.schedule.drops=('a',)"],
    ["train", "--config=digits:" + "x" * 3000],
    ["train", "--config=digits:8-1e9"],
    ["train", "--config=digits:\x1b[2J"],
    ["train", "--config=digits:0-4"],
    ["train", "--config=digits:20-0"],
    ["train", "--config=digits:word"],
    ["train", "--process_count=two"],
    ["train", "--process_count=2"],
    ["train", "--process_timeout=-1"],
    ["train", "--coordinator=x", "--process_count=2", "--process_index=0"],
    ["train", "--coordinator=x:99999", "--process_count=2", "--process_index=0"],
    *(
        ["train", f"--config.{name}=what"]
        for name, value in flatten(base_config())
        if not isinstance(value, str)
    ),
]
PAPER = [
    [],
    ["lsit"],
    ["list", "table9"],
    ["run"],
    ["run", "nothing"],
    ["run", "c10-1bit-20-4", "--seeds", "a"],
    ["run", "c10-1bit-20-4", "--seeds", "-1"],
    ["report", "absent", "--output", "new"],
    ["report", "empty"],
]


def check(capsys, files, program, arguments) -> None:
    before = sorted(path.name for path in files.rglob("*"))
    code = program(arguments)
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.out == "" or (captured.out.startswith("config ") and captured.out.count("\n") == 1)
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err and len(captured.err) < 1600
    assert captured.err[:-1].isprintable()
    assert sorted(path.name for path in files.rglob("*")) == before


@pytest.mark.parametrize("arguments", CASES, ids=lambda words: " ".join(words)[:80])
def test_one_line(capsys, monkeypatch, files, arguments):
    monkeypatch.chdir(files)
    check(capsys, files, main, arguments)


@pytest.mark.parametrize("arguments", PAPER, ids=" ".join)
def test_one_line_of_the_paper(capsys, monkeypatch, files, arguments):
    monkeypatch.chdir(files)
    check(capsys, files, paper, arguments)


@pytest.mark.parametrize("name", ["cut", "flipped", "safetensors", "onnx"])
def test_damaged_files_fail_to_verify(capsys, monkeypatch, files, name):
    monkeypatch.chdir(files)
    assert main(["verify", name]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("FAILED ") and captured.err == ""


def test_there_are_many_cases():
    assert len(CASES) + len(PAPER) >= 270
