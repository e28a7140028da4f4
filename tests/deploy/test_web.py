"""The web folder: its program gives the logits of other readers, its module the pixels of `predict`."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from coded_corpus import coded_model
from integer_networks import random_integer_model
from PIL import Image, PngImagePlugin
from version2_networks import random_file

import binwrn_jax
from binwrn_jax.cli import export
from binwrn_jax.cli.main import main
from binwrn_jax.data.images import read_images
from binwrn_jax.deploy import web
from binwrn_jax.deploy.numpy_runtime import open_numpy
from binwrn_jax.deploy.packed import PackedModel, write_packed
from binwrn_jax.errors import UserError, require
from binwrn_jax.evaluation import probabilities

pytest.importorskip("ziglang")
pytest.importorskip("wasmtime")

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(not NODE, reason="there is no Node.js: install nodejs (20 or newer)")


def small_model() -> PackedModel:
    """A coded model with names and a temperature."""
    packed = coded_model()
    names = ["cat", "dög", "<b>", "4"]
    return dataclasses.replace(
        packed, metadata={**packed.metadata, "class_names": names, "temperature": 1.25, "dataset": "<i>pets"}
    )


def images_for(packed: PackedModel, count: int) -> np.ndarray:
    shape = packed.metadata["input"]["shape"]
    return np.random.default_rng(1).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A folder with a page for `small_model`."""
    folder = tmp_path_factory.mktemp("web") / "site"
    packed = small_model()
    web.write_web(packed, folder, examples=images_for(packed, 3))
    return folder


def test_the_program_gives_the_logits_of_the_definition(site):
    images = images_for(small_model(), 3)
    reference = open_numpy(site / web.MODEL)(images)
    np.testing.assert_allclose(
        web.open_web(site)(images), reference, rtol=0, atol=1e-5 * np.abs(reference).max()
    )


def test_the_program_gives_the_integers_of_the_definition_to_the_last_bit(tmp_path):
    packed = random_integer_model(5)
    web.write_web(packed, tmp_path / "site")
    images = images_for(packed, 3)
    reference = open_numpy(tmp_path / "site" / web.MODEL)(images)
    np.testing.assert_array_equal(web.open_web(tmp_path / "site")(images), reference)


@pytest.mark.parametrize("kernel", [None, "plain"])
@pytest.mark.parametrize("seed", range(6))
def test_the_program_runs_all_features_of_the_format(tmp_path, kernel, seed):
    content, images = random_file(seed, None if seed % 2 else ["groups", "dilation"])
    model = tmp_path / "m"
    model.write_bytes(content)
    reference = open_numpy(model)(images)
    logits = web.WebPredictor(web.build().read_bytes(), model, kernel)(images)
    np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def test_a_damaged_file_is_refused_in_one_line(tmp_path, site):
    content = bytearray((site / web.MODEL).read_bytes())
    content[-9] ^= 4
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        web.WebPredictor(web.build().read_bytes(), tmp_path / "m")


def test_the_npm_package_has_this_version_and_all_its_files(site):
    package = json.loads((site / "binwrn" / "package.json").read_text())
    assert package["version"] == binwrn_jax.__version__
    assert all((site / "binwrn" / name).is_file() for name in package["files"])
    imported = set(
        re.findall(r'from "\./([\w.]+)"', "".join(p.read_text() for p in (site / "binwrn").glob("*.js")))
    )
    assert imported | {"binwrn.js", "binwrn.d.ts", "binwrn.wasm.gz"} <= set(package["files"])


def test_the_page_asks_no_other_server(site):
    allowed = {"http://localhost:8000", "https://arxiv.org", "http://www.w3.org"}  # text, a link, a namespace
    for path in site.rglob("*"):
        if path.suffix in (".html", ".css", ".js"):
            found = set(re.findall(r"https?://[\w.:-]+", path.read_text()))
            assert found <= allowed, path
    index = (site / "index.html").read_text()
    assert "default-src 'none'" in index and "{{" not in index and "&lt;i&gt;pets" in index


def test_the_folder_is_small_and_the_same_twice(tmp_path, site):
    packed = small_model()
    web.write_web(packed, tmp_path / "again", examples=images_for(packed, 3))
    names = {p.relative_to(site) for p in site.rglob("*") if p.is_file()}
    assert names == {
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()
    }
    for name in names:
        assert (site / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    unread = (web.MODEL, "binwrn/README.md", "binwrn/package.json", "binwrn/binwrn.d.ts")  # by the page
    beside = sum((site / name).stat().st_size for name in names if name.as_posix() not in unread)
    assert beside <= 120_000 - web._MAX_EXAMPLE_BYTES + (site / web.EXAMPLES).stat().st_size
    assert (site / web.MODEL).stat().st_size < 4_500  # coded


def test_the_command_line_writes_a_folder_and_replaces_no_other(tmp_path, capsys):
    model, folder = tmp_path / "m.safetensors", tmp_path / "site"
    write_packed(coded_model(), model)
    export = ["export", str(model), "--format", "web", "--images", "3", "--output", str(folder)]
    assert main(export) == 0
    out = capsys.readouterr().out
    assert "WebAssembly: 3 predictions identical" in out and "python3 -m http.server" in out
    assert not (folder / web.EXAMPLES).exists()  # random images are no examples
    assert main(export) == 0
    assert main([*export, "--examples", "-1"]) == 2
    assert main([*export[:2], "--format", "c", "--examples", "1", "--output", str(tmp_path / "m.c")]) == 2
    assert capsys.readouterr().err.count("--examples is a number of at least 0, for --format web") == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    assert main([*export[:-1], str(tmp_path / "mine")]) == 2
    assert "is no web folder" in capsys.readouterr().err
    assert (tmp_path / "mine" / "index.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("public", "options", "shown"), [(True, [], 8), (True, ["2"], 2), (False, [], 0), (False, ["3"], 3)]
)
def test_own_images_are_on_the_page_only_if_asked_for(tmp_path, monkeypatch, public, options, shown):
    packed = coded_model()
    name = "cifar10" if public else "folder:/private"
    write_packed(dataclasses.replace(packed, metadata={**packed.metadata, "dataset": name}), tmp_path / "m")
    monkeypatch.setattr(export, "images_for", lambda *_: (images_for(packed, 12), "12 real images"))
    command = ["export", str(tmp_path / "m"), "--format", "web", "--output", str(tmp_path / "site")]
    assert main([*command, *(["--examples", *options] if options else [])]) == 0
    index = (tmp_path / "site" / "index.html").read_text()
    assert f'data-examples="{shown}"' in index
    assert (tmp_path / "site" / web.EXAMPLES).exists() is (shown > 0)


@pytest.mark.parametrize("missing", ["ziglang", "wasmtime"])
def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path, capsys, monkeypatch, missing):
    def without(module, purpose):
        if module == missing:
            raise UserError(f"{purpose} needs the package {module}: pip install 'binwrn-jax[web]'")
        return require(module, purpose)

    monkeypatch.setattr(web, "require", without)
    monkeypatch.delenv("WASM_CC", raising=False)
    model = tmp_path / "m.safetensors"
    write_packed(coded_model(), model)
    assert main(["export", str(model), "--format", "web", "--output", str(tmp_path / "site")]) == 2
    assert "pip install 'binwrn-jax[web]'" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors"]


def test_a_compiler_of_the_users_is_taken(tmp_path, monkeypatch, site):
    clang = tmp_path / "my-clang"
    clang.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang cc "$@"\n')
    clang.chmod(0o700)
    monkeypatch.setenv("WASM_CC", str(clang))
    monkeypatch.setattr(web, "require", lambda module, purpose: pytest.fail(f"{purpose} took {module}"))
    assert web.build().read_bytes() == gzip.decompress((site / web.PROGRAM).read_bytes())


def test_a_compiler_of_the_users_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("WASM_CC", "no-such-clang")
    with pytest.raises(UserError, match="WASM_CC=no-such-clang is no program"):
        web.build()


# --- the ES module in Node ----------------------------------------------------------------------------------


def in_node(site, tmp_path, **job):
    """What web_check.mjs answers."""
    (tmp_path / "job.json").write_text(json.dumps(job))
    script = str(__file__).replace("test_web.py", "web_check.mjs")
    assert NODE
    result = subprocess.run(
        [NODE, script, str(site), str(tmp_path / "job.json")], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# Some of which are scaled by columns first.
SIZES = ((90, 40), (60, 45), (61, 37), (40, 90), (30, 30), (200, 7), (7, 200), (33, 42), (45, 44), (29, 50))


def pictures(folder):
    """PNG files of each kind, random and smooth; some larger, some smaller than 32 pixels."""
    rng = np.random.default_rng(5)

    def random(*shape, dtype=np.uint8):
        return rng.integers(0, 256 if dtype == np.uint8 else 65536, shape, dtype=dtype)

    y, x = np.mgrid[:150, :211]
    smooth = np.stack([y + x, 255 * np.sin(x / 20) ** 2, 255 - y], -1).astype(np.uint8)
    palette = Image.fromarray(smooth).quantize(200)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "rgb": Image.fromarray(smooth),
        "small": Image.fromarray(random(9, 5, 3)),
        "equal": Image.fromarray(random(32, 32, 3)),
        "wide": Image.fromarray(random(3, 200, 3)),
        "grey": Image.fromarray(random(45, 80)),
        "one bit": Image.fromarray(random(45, 83)).convert("1"),
        "16 bit": Image.fromarray(random(40, 64, dtype=np.uint16)),
        "rgba": Image.fromarray(random(70, 50, 4)),
        "grey and alpha": Image.fromarray(random(33, 64, 2)),
        "palette": palette,
        **{f"{height} x {width}": Image.fromarray(random(height, width)) for height, width in SIZES},
    }
    found = {}
    for name, image in kinds.items():
        found[name] = folder / f"{name}.png"
        image.save(found[name])
    found |= {
        name: folder / f"{name}.png" for name in ("clear palette", "clear colour", "turned", "few colours")
    }
    palette.save(found["clear palette"], transparency=bytes(range(0, 200)))
    clear = PngImagePlugin.PngInfo()
    Image.fromarray(smooth).save(
        found["clear colour"], transparency=tuple(smooth[3, 4].tolist()), pnginfo=clear
    )
    Image.fromarray(smooth).save(found["turned"], exif=exif)
    Image.fromarray(smooth).quantize(3).save(found["few colours"], bits=2)
    return found


@needs_node
def test_the_module_reads_pictures_as_predict_does(site, tmp_path):
    found = pictures(tmp_path)
    shapes = ([32, 32, 3], [8, 8, 1], [28, 40, 1])
    jobs = [
        {"path": str(path), "shape": shape, "rule": "bilinear"} for path in found.values() for shape in shapes
    ]
    answers = in_node(site, tmp_path, pictures=jobs)["pictures"]
    for job, answer in zip(jobs, answers, strict=True):
        assert isinstance(answer, dict), (job, answer)
        ((_, reference),) = read_images(job["path"], tuple(job["shape"]), job["rule"])
        pixels = np.frombuffer(base64.b64decode(answer["data"]), np.uint8).reshape(answer["shape"])
        np.testing.assert_array_equal(pixels, reference, err_msg=str(job))


@needs_node
def test_the_module_crops_the_centre_as_predict_does(site, tmp_path):
    found = [path for name, path in pictures(tmp_path).items() if name in ("rgb", "rgba", "small", "grey")]
    jobs = [
        {"path": str(path), "shape": [size, size, channels], "rule": "center_crop"}
        for path in found
        for size, channels in ((32, 3), (100, 3), (224, 3), (65, 1))
    ]
    for job, answer in zip(jobs, in_node(site, tmp_path, pictures=jobs)["pictures"], strict=True):
        assert isinstance(answer, dict), (job, answer)
        ((_, reference),) = read_images(job["path"], tuple(job["shape"]), job["rule"])
        pixels = np.frombuffer(base64.b64decode(answer["data"]), np.uint8).reshape(answer["shape"])
        differences = np.abs(pixels.astype(int) - reference)
        with Image.open(job["path"]) as image:
            side = round(min(image.size) * 224 / 256)
        # OpenCV's means of areas depend on the processor in their last bit.
        assert differences.max() <= (1 if side >= 2 * job["shape"][0] else 0), job


@needs_node
def test_the_module_refuses_what_is_no_picture(site, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    whole = pictures(tmp_path)["rgb"].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    jobs = [{"path": str(tmp_path / f"{name}.png"), "shape": [8, 8, 3]} for name in ("text", "cut")]
    text, cut = in_node(site, tmp_path, pictures=jobs)["pictures"]
    assert text == "UnreadableImage: without a browser, only PNG files are read"
    assert cut.startswith("UnreadableImage: this is no picture that can be read here")


@needs_node
def test_the_module_predicts_in_node(site, tmp_path):
    packed, model = small_model(), site / web.MODEL
    images = images_for(packed, 3)
    (tmp_path / "pixels").write_bytes(images.tobytes())
    damaged = bytearray(model.read_bytes())
    damaged[-3] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    jobs = [{"path": str(path), "pixels": str(tmp_path / "pixels")} for path in (model, tmp_path / "damaged")]
    answer, refusal = in_node(site, tmp_path, models=jobs)["models"]
    assert refusal.startswith("ModelError: ") and "checksum" in refusal
    reference = open_numpy(model)(images)
    logits = np.reshape(answer["logits"], (3, 4))
    np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-5 * np.abs(reference).max())
    shares = probabilities(reference[0], {"temperature": 1.25})
    order = np.argsort(-shares, kind="stable")
    assert [c["index"] for c in answer["classes"]] == order.tolist()
    assert [c["name"] for c in answer["classes"]] == [answer["classNames"][i] for i in order]
    np.testing.assert_allclose([c["probability"] for c in answer["classes"]], shares[order], atol=1e-6)
    assert answer["classNames"] == ["cat", "dög", "<b>", "4"] and answer["resize"] == "bilinear"
    assert answer["shape"] == [5, 6, 3] and answer["bytes"]["model"] == model.stat().st_size
    assert answer["weights"]["count"] == 9 * 3 * 32 + 9 * 32 * 32 + 32 * 4
    assert answer["wrong"].startswith("TypeError") and answer["freed"].startswith(
        "Error: the model has been freed"
    )
