"""Files whose metadata lie, with right checksums, to every verb that opens a model: a result or one line."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from packed_models import golden_model

from binwrn_jax import base_config
from binwrn_jax.cli.main import main
from binwrn_jax.deploy import numpy_reader, packed
from binwrn_jax.deploy.onnx_file import write_onnx
from binwrn_jax.deploy.stablehlo import write_stablehlo
from binwrn_jax.nn.registry import create_network
from binwrn_jax.store.manifest import open_sealed, seal
from binwrn_jax.store.model import MODEL_FILE, Model

WEIRD = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e38, 1e-45, -0.0,
    "", "x", "1", "digits", "bilinear", "1bit", "\x1b[2J", "\n", "\ud800", "image", "conv0", "golden.image",
    [], [0], [1, 1], [[0, 0], [0, 0]], [-1, -1], [2**31, 2**31], ["a", "a", "a"],
    {}, {"resize": []}, {"a": {}},
)  # fmt: skip


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values inside a JSON value."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [found for key, child in children for found in ((*path, key), *places(child, (*path, key)))]


def lie(value: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy with one to three things changed, anywhere."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *path, key = rng.choice(places(value))
        parent = value
        for step in path:
            parent = parent[step]
        old, action = parent[key], rng.randrange(6)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(old, int) and not isinstance(old, bool):
            parent[key] = rng.choice((old + 1, old - 1, -old, old * 2, old * 1000))
        elif action == 2 and isinstance(old, list):
            parent[key] = rng.choice((old * 2, old[:-1], old[::-1], [old]))
        elif action == 3:
            where = rng.choice([p for p in places(value) if p])
            other: Any = value
            for step in where:
                other = other[step]
            parent[key] = copy.deepcopy(other)
        else:
            parent[key] = copy.deepcopy(rng.choice(WEIRD))
        if not places(value):
            break
    return value


class Files:
    """Makes a lying file of each kind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._packed = golden_model()
        write_stablehlo(self._packed, folder / "true.stablehlo")
        write_onnx(self._packed, folder / "true.onnx")
        fields = {**base_config().model.to_dict(), "depth": 8, "width": 0.25}
        shapes = jax.eval_shape(
            create_network(fields, 10).init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.uint8)
        )
        variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
        description = {"model": fields, "num_classes": 10, "image_shape": [8, 8, 1], "dataset": "digits",
                       "class_names": [str(i) for i in range(10)], "input": {"resize": "bilinear"},
                       "test": {"error": 1.5}, "step": 3}  # fmt: skip
        Model.create(variables, description).save(folder / "model")
        self._description = open_sealed((folder / "model" / MODEL_FILE).read_bytes())
        np.save(folder / "rgb.npy", self._packed.golden_image)
        np.save(folder / "grey.npy", np.zeros((8, 8), np.uint8))

    def packed(self, rng: random.Random) -> Path:
        metadata = lie(self._packed.metadata, rng)
        with contextlib.suppress(Exception):  # a lie that has no checksum
            metadata["sha256"] = numpy_reader.checksum(metadata, self._packed.bits)
        path = self._folder / "lie.safetensors"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packed, "_check", lambda model: None)
            try:
                path.write_bytes(packed.serialise(dataclasses.replace(self._packed, metadata=metadata)))
            except ValueError:  # a float that JSON has not
                return self.packed(rng)
        return path

    def stablehlo(self, rng: random.Random) -> Path:
        line, header, program = (self._folder / "true.stablehlo").read_bytes().split(b"\n", 2)
        path = self._folder / "lie.stablehlo"
        path.write_bytes(b"\n".join([line, json.dumps(lie(json.loads(header), rng)).encode(), program]))
        return path

    def onnx(self, rng: random.Random) -> Path:
        model = onnx.load_model(str(self._folder / "true.onnx"))
        entry = rng.choice([item for item in model.metadata_props if item.key in ("binwrn", "golden")])
        entry.value = json.dumps(lie(json.loads(entry.value), rng))
        path = self._folder / "lie.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    def model(self, rng: random.Random) -> Path:
        fields = lie(self._description, rng)
        (self._folder / "model" / MODEL_FILE).write_text(seal(fields), encoding="utf-8")
        return self._folder / "model"


def commands(folder: Path, path: Path, rng: random.Random) -> list[str]:
    image = str(folder / ("grey.npy" if path.is_dir() else "rgb.npy"))
    runtime = ["--runtime", "numpy"] if path.suffix == ".safetensors" and rng.random() < 0.7 else []
    return rng.choice(
        (
            ["predict", str(path), image, *runtime],
            ["predict", str(path), image, "--json", *runtime],
            ["evaluate", str(path), "--dataset", "digits", "--limit", "2", *runtime],
            ["inspect", str(path)],
            ["inspect", str(path), "--json"],
            ["verify", str(path)],
            ["export", str(path), "--format", rng.choice(("packed", "onnx", "c")), "--images", "2",
             "--output", str(folder / "out.c")],
        )
    )  # fmt: skip


def try_one(files: Files, folder: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> int:
    rng = random.Random(seed)
    make: Callable[[random.Random], Path] = rng.choice(
        (files.packed, files.packed, files.stablehlo, files.onnx, files.model)
    )
    command = commands(folder, make(rng), rng)
    code = main(command)
    for left in (folder / "out.c", folder / "out.h"):
        left.unlink(missing_ok=True)
    captured = capsys.readouterr()
    told = f"seed {seed}: {command}: {code}\n{captured.out}\n{captured.err}"
    assert code in (0, 2) or (code == 1 and command[0] == "verify"), told
    assert "Traceback" not in captured.err and "\x1b" not in captured.out + captured.err, told
    assert code != 2 or sum(line.startswith("error: ") for line in captured.err.splitlines()) == 1, told
    return code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Files, Path]:
    folder = tmp_path_factory.mktemp("lies")
    return Files(folder), folder


def test_some_lies(made, capsys):
    codes = [try_one(*made, seed, capsys) for seed in range(24)]
    assert codes.count(2) > 5


@pytest.mark.slow
def test_lies_for_five_minutes(made, capsys):
    end, seed = time.monotonic() + 300, 1000
    while time.monotonic() < end:
        try_one(*made, seed, capsys)
        seed += 1
    print(f"{seed - 1000} lies")
