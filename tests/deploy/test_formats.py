"""The table of formats: files are known by their content, and other packages add formats of their own."""

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
from packed_models import golden_model

from binwrn_jax import UserError, open_model
from binwrn_jax.cli.main import main
from binwrn_jax.deploy.export import write_verified
from binwrn_jax.deploy.formats import FORMATS, Format, all_formats, format_of, get_format
from binwrn_jax.deploy.numpy_runtime import NumpyPredictor, open_numpy
from binwrn_jax.deploy.packed import read_packed, serialise, write_packed

LINE = b"a format of somebody else\n"


def write_other(packed, path):
    path.write_bytes(LINE + serialise(packed))


def read_other(path):
    inner = path.with_suffix(".inner")
    inner.write_bytes(path.read_bytes().removeprefix(LINE))
    try:
        return read_packed(inner)
    finally:
        inner.unlink()


OTHER = Format(
    "other",
    ".other",
    lambda start, size: start.startswith(LINE),
    write=write_other,
    open=lambda path: NumpyPredictor(read_other(path)),
    read=read_other,
)


class Entry:
    """An entry point as a package would declare it."""

    def __init__(self, loaded):
        self.value, self._loaded = "somebody:FORMAT", loaded

    def load(self):
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


@pytest.fixture
def plugins(monkeypatch):
    """Declares formats of other packages."""
    all_formats.cache_clear()

    def declare(*loaded):
        entries = [Entry(one) for one in loaded]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)

    yield declare
    all_formats.cache_clear()


def test_the_table():
    assert [known.name for known in FORMATS] == ["packed", "onnx", "stablehlo", "c", "web"]
    assert all(known.write and known.proofs for known in FORMATS)
    assert get_format("onnx") is FORMATS[1]
    with pytest.raises(
        UserError, match="unknown format 'tflite': choose one of packed, onnx, stablehlo, c, web"
    ):
        get_format("tflite")


def test_a_format_of_another_package_is_written_opened_and_listed(plugins, tmp_path, capsys):
    plugins(OTHER)
    write_packed(golden_model(), tmp_path / "packed")
    output = tmp_path / "net.other"
    command = ["export", str(tmp_path / "packed"), "--format", "other", "--output", str(output)]
    assert main([*command, "--images", "3"]) == 0
    assert "other: 3 predictions identical" in capsys.readouterr().out
    assert format_of(str(output)) is OTHER
    image = golden_model().golden_image[None]
    np.testing.assert_allclose(open_model(str(output))(image)[0], golden_model().golden_logits, rtol=1e-5)
    assert main(["inspect", str(output)]) == 0
    assert main(["verify", str(output)]) == 0


def test_a_writer_that_errs_leaves_nothing(tmp_path):
    packed, path = golden_model(), tmp_path / "net.other"
    images = packed.golden_image[None]
    right = NumpyPredictor(packed)(images)
    wrong = Format(
        "wrong", ".x", OTHER.recognises, write=write_other, open=lambda path: lambda images: right + 1
    )
    with pytest.raises(UserError, match="is not written: read back by wrong"):
        write_verified(wrong, packed, path, images, right)
    without = Format("without", ".x", OTHER.recognises, write=write_other)
    with pytest.raises(UserError, match="files of the format without cannot be written"):
        write_verified(without, packed, path, images, right)
    assert not list(tmp_path.iterdir())
    assert len(write_verified(get_format("packed"), packed, path, images, right)) == 2
    assert open_numpy(path).description["num_classes"] == packed.metadata["num_classes"]


@pytest.mark.parametrize("broken", [ImportError("no such module"), "no format", FORMATS[0]])
def test_a_broken_plugin_is_named_and_left_out(plugins, caplog, broken):
    plugins(broken)
    assert all_formats() == FORMATS
    assert "left out: the format somebody:FORMAT" in caplog.text


def test_a_program_in_c_is_no_model_to_run(tmp_path):
    get_format("c").write(golden_model(), tmp_path / "net.c")
    assert format_of(tmp_path / "net.c").name == "c"
    with pytest.raises(UserError, match="a c file cannot be run from here"):
        open_model(tmp_path / "net.c")
    with pytest.raises(UserError, match="no model at"):
        open_model(str(Path("nowhere")))


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(known, id=known.name, marks=[pytest.mark.slow] * (known.name == "web"))
        for known in FORMATS
    ],
)
def test_every_predictor_checks_its_images(tmp_path, known):
    """Else floats from 0 to 1, negative or larger numbers and NaN give wrong logits."""
    image = golden_model().golden_image
    path = tmp_path / f"model{known.suffix}"
    known.write(golden_model(), path)
    for opener in {**known.proofs, **known.runtimes}.values():
        predictor = opener(path)
        assert predictor(image[None]).shape == (1, 3)
        assert predictor([image]).shape == (1, 3)
        for wrong, message in (
            (image, r"shape \(6, 7, 3\), not \[N, H, W, C\]"),
            (image[None] / 255, "float64, not uint8: give integers 0 to 255"),
            (np.full(image[None].shape, np.nan, np.float32), "float32, not uint8"),
            (image[None].astype(np.int64), "int64, not uint8"),
            (image[None].astype(complex), "complex128, not uint8"),
            (image[None] > 100, "bool, not uint8"),
            (image[None, :, :6], r"shape \(6, 6, 3\), but the network takes \(6, 7, 3\)"),
            (None, "not .N, H, W, C.: reshape them"),
        ):
            with pytest.raises(UserError, match=message) as error:
                predictor(wrong)
            assert "\n" not in str(error.value)
