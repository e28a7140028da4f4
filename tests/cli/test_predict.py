"""``binwrn predict``: any image file in, class names out; what cannot be read is named, the rest goes on."""

import csv
import io
import json
import shutil
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
from packed_models import GOLDEN, golden_model

from binwrn_jax.cli import predict
from binwrn_jax.cli.main import main
from binwrn_jax.data.images import UnreadableImage, read_images
from binwrn_jax.deploy.numpy_runtime import open_numpy
from binwrn_jax.deploy.packed import read_packed, write_packed

RGB, GREY = (6, 7, 3), (6, 7, 1)


@pytest.fixture
def picture():
    """uint8 [6, 7, 3], the size that the golden model takes."""
    return np.random.default_rng(5).integers(0, 256, RGB, dtype=np.uint8)


def read(path, shape=RGB):
    ((_, image),) = read_images(path, shape)
    assert image.shape == shape and image.dtype == np.uint8
    return image


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_formats_give_the_very_pixels(tmp_path, picture, suffix):
    PIL.Image.fromarray(picture).save(
        tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {})
    )
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}"), picture)


def test_jpeg_is_near(tmp_path):
    grey = np.full(RGB, 90, np.uint8)
    PIL.Image.fromarray(grey).save(tmp_path / "a.jpg")
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - 90).max() <= 2


def test_colours_and_grey_become_each_other(tmp_path, picture):
    PIL.Image.fromarray(picture).save(tmp_path / "colour.png")
    PIL.Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    luma = np.round(picture @ [0.299, 0.587, 0.114])
    assert np.abs(read(tmp_path / "colour.png", GREY)[..., 0] - luma).max() <= 1
    np.testing.assert_array_equal(read(tmp_path / "grey.png"), np.repeat(picture[..., :1], 3, axis=2))
    np.testing.assert_array_equal(read(tmp_path / "grey.png", GREY), picture[..., :1])


def test_16_bits_are_scaled_and_not_cut(tmp_path, picture):
    grey = picture[..., 0]
    PIL.Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png", GREY)[..., 0], grey)
    PIL.Image.fromarray(grey.astype(np.int32) * 257).save(tmp_path / "b.tiff")
    np.testing.assert_array_equal(read(tmp_path / "b.tiff", GREY)[..., 0], grey)


def test_transparent_parts_are_white(tmp_path, picture):
    alpha = np.zeros((6, 7, 1), np.uint8)
    alpha[:, :3] = 255
    PIL.Image.fromarray(np.concatenate([picture, alpha], 2)).save(tmp_path / "rgba.png")
    expected = np.where(alpha == 255, picture, 255)
    np.testing.assert_array_equal(read(tmp_path / "rgba.png"), expected)
    PIL.Image.fromarray(np.concatenate([picture[..., :1], alpha], 2), "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read(tmp_path / "la.png", GREY), expected[..., :1])
    palette = PIL.Image.fromarray(np.arange(42, dtype=np.uint8).reshape(6, 7) % 2, "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=1)
    assert read(tmp_path / "p.png")[0, :2].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_other_modes(tmp_path):
    for mode in ("1", "CMYK", "YCbCr"):
        image = PIL.Image.new(mode, (7, 6), "white" if mode == "1" else None)
        image.save(tmp_path / f"{mode}.tiff")
        image = read(tmp_path / f"{mode}.tiff")
        assert (image == image[0, 0]).all()
    assert (read(tmp_path / "1.tiff") == 255).all()


def test_rotated_photographs_are_turned_upright(tmp_path, picture):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is on the right
    PIL.Image.fromarray(np.rot90(picture)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), picture)


def test_other_sizes_are_resized_with_antialiasing(tmp_path):
    stripes = np.zeros((600, 700, 3), np.uint8)
    stripes[:, ::2] = 200  # without antialiasing some pixels would be 0 or 200
    PIL.Image.fromarray(stripes).save(tmp_path / "a.png")
    assert np.abs(read(tmp_path / "a.png").astype(int) - 100).max() <= 2
    ramp = np.tile(np.linspace(0, 250, 14).astype(np.uint8)[:, None, None], (1, 3, 3))
    np.save(tmp_path / "a.npy", ramp)
    image = read(tmp_path / "a.npy").astype(int)
    assert (np.diff(image[:, 0, 0]) > 0).all() and (image == image[:, :1]).all()


def test_first_picture_of_an_animation(tmp_path, picture):
    frames = [PIL.Image.fromarray(picture), PIL.Image.fromarray(255 - picture)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read(tmp_path / "a.png"), picture)


def test_arrays(tmp_path, picture):
    np.save(tmp_path / "one.npy", picture)
    np.save(tmp_path / "many.npy", np.stack([picture, 255 - picture]))
    np.save(tmp_path / "grey.npy", picture[..., 0])
    np.testing.assert_array_equal(read(tmp_path / "one.npy"), picture)
    np.testing.assert_array_equal(read(tmp_path / "grey.npy", GREY), picture[..., :1])
    (first, a), (second, b) = read_images(tmp_path / "many.npy", RGB)
    assert first.endswith("many.npy[0]") and second.endswith("many.npy[1]")
    np.testing.assert_array_equal(np.stack([a, b]), np.stack([picture, 255 - picture]))


def bomb():
    """A PNG of 60,000 x 60,000 pixels in some kilobytes."""

    def chunk(kind, data):
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    size = (60_000).to_bytes(4)
    header = chunk(b"IHDR", size + size + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        bomb(),
        saved(np.zeros(RGB, np.float32)),
        saved(np.zeros((6, 7, 4), np.uint8)),
        saved(np.zeros((0, 7, 3), np.uint8)),
        saved(np.zeros(3, np.uint8)),
        saved(np.array([{}])),
        saved(np.zeros(RGB, np.uint8))[:-1],
        b"\x93NUMPY",
    ],
    ids=["empty", "text", "bomb", "floats", "channels", "no rows", "vector", "pickle", "truncated", "magic"],
)
def test_unreadable_content_is_named_in_one_line(tmp_path, content):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(UnreadableImage) as caught:
        read(tmp_path / "bad")
    assert str(tmp_path / "bad") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "webp", "bmp"])
def test_truncated_files_are_unreadable(tmp_path, picture, suffix):
    big = np.tile(picture, (20, 20, 1))
    buffer = io.BytesIO()
    PIL.Image.fromarray(big).save(buffer, suffix.replace("jpg", "jpeg"))
    (tmp_path / "bad").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(UnreadableImage):
        read(tmp_path / "bad")


def test_float_pixels_are_refused(tmp_path, picture):
    PIL.Image.fromarray(picture[..., 0].astype(np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(UnreadableImage, match="mode F"):
        read(tmp_path / "a.tiff")


def test_models_of_other_channels_take_arrays_alone(tmp_path, picture):
    PIL.Image.fromarray(picture).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match="the model takes 2 channels"):
        read(tmp_path / "a.png", (6, 7, 2))
    np.save(tmp_path / "a.npy", picture[..., :2])
    np.testing.assert_array_equal(read(tmp_path / "a.npy", (6, 7, 2)), picture[..., :2])


# --- the command --------------------------------------------------------------------------------------------


def test_many_sources_and_the_readers_logits(tmp_path, picture, capsys, monkeypatch):
    """Files, a folder, an array of several and standard input; more images than one batch."""
    monkeypatch.setattr(predict, "BATCH_SIZE", 3)
    folder = tmp_path / "folder"
    folder.mkdir()
    PIL.Image.fromarray(picture).save(folder / "b.PNG")
    np.save(folder / "a.npy", np.stack([picture, 255 - picture]))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((folder / "b.PNG").read_bytes())))
    sources = [str(folder), "-", str(folder / "b.PNG")]
    assert main(["predict", str(GOLDEN), *sources, "--json", "--top", "9"]) == 0
    found = lines(capsys)
    assert [entry["image"].split("/")[-1] for entry in found] == [
        "a.npy[0]",
        "a.npy[1]",
        "b.PNG",
        "standard input",
        "b.PNG",
    ]
    logits = open_numpy(GOLDEN)(np.stack([picture, 255 - picture])).astype(np.float64)
    for entry, row in zip(found, logits[[0, 1, 0, 0, 0]], strict=True):
        probabilities = np.exp(row - row.max())
        probabilities /= probabilities.sum()
        assert len(entry["predictions"]) == 3  # all the classes there are
        for prediction in entry["predictions"]:
            assert prediction["probability"] == pytest.approx(probabilities[prediction["class"]], abs=1e-4)
            assert prediction["name"] == ["zero", "one", "two"][prediction["class"]]
        values = [prediction["probability"] for prediction in entry["predictions"]]
        assert values == sorted(values, reverse=True)


def test_one_bad_file_does_not_stop_the_others(tmp_path, picture, capsys):
    PIL.Image.fromarray(picture).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"hello")
    names = ["bad.png", "nothing.png", "good.png"]
    assert main(["predict", str(GOLDEN), *(str(tmp_path / name) for name in names), "--top", "1"]) == 2
    output = capsys.readouterr()
    assert output.out.startswith(f"{tmp_path / 'good.png'}: ") and output.out.count("\n") == 1
    errors = output.err.splitlines()
    assert len(errors) == 2 and "bad.png" in errors[0] and "nothing.png (No such file" in errors[1]
    assert "BytesIO" not in output.err


def test_invert_swaps_black_and_white(tmp_path, picture, capsys):
    np.save(tmp_path / "a.npy", picture)
    np.save(tmp_path / "b.npy", 255 - picture)
    main(["predict", str(GOLDEN), str(tmp_path / "a.npy"), "--json", "--invert"])
    main(["predict", str(GOLDEN), str(tmp_path / "b.npy"), "--json"])
    inverted, other = lines(capsys)
    assert inverted["predictions"] == other["predictions"]


def test_classes_without_names_are_numbers(tmp_path, picture, capsys):
    packed = golden_model()
    packed.metadata["class_names"] = []
    write_packed(packed, tmp_path / "m")
    np.save(tmp_path / "a.npy", picture)
    assert (
        main(["predict", str(tmp_path / "m"), str(tmp_path / "a.npy"), "--json", "--runtime", "numpy"]) == 0
    )
    (entry,) = lines(capsys)
    assert all(prediction["name"] == str(prediction["class"]) for prediction in entry["predictions"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "{tmp}/empty"], "no image files in the folder"),
        (["{model}", "{tmp}/a.npy", "--top", "0"], "--top is 0"),
        (["{tmp}/nothing", "{tmp}/a.npy"], "no model at"),
        (["{tmp}/a.npy", "{tmp}/a.npy"], "is no model"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, picture, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "a.npy", picture)
    shutil.copy(GOLDEN, tmp_path / "model")
    assert read_packed(tmp_path / "model").metadata["num_classes"] == 3
    arguments = [argument.format(tmp=tmp_path, model=tmp_path / "model") for argument in arguments]
    assert main(["predict", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# --- folders and CSV ----------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path, picture):
    """A folder of folders: two images, a damaged one, and what is no image."""
    top = tmp_path / "my photos"
    (top / "été, 2026").mkdir(parents=True)
    (top / ".hidden").mkdir()
    PIL.Image.fromarray(picture).save(top / "b.png")
    PIL.Image.fromarray(255 - picture).save(top / "été, 2026" / "a.png")
    (top / "broken.jpg").write_bytes(b"no image")
    (top / "notes.txt").write_text("no image")
    shutil.copy(top / "b.png", top / ".hidden" / "c.png")
    return top


def test_a_folder_as_csv(tmp_path, photos, capsys):
    out = tmp_path / "out.csv"
    assert main(["predict", str(GOLDEN), str(photos), "--csv", str(out)]) == 2
    output = capsys.readouterr()
    assert output.out == f"{out}: 2 images predicted, 1 not readable\n"
    assert "cannot read" in output.err and output.err.count("\n") == 1
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [
        str(photos / name) for name in ("b.png", "été, 2026/a.png", "broken.jpg")
    ]
    assert main(["predict", str(GOLDEN), str(photos), "--json", "--top", "1"]) == 2
    for row, entry in zip(rows, lines(capsys), strict=False):
        (best,) = entry["predictions"]
        assert (row["path"], row["class"]) == (entry["image"], best["name"])
        assert float(row["probability"]) == best["probability"] and not row["error"]
    assert not rows[2]["class"] and not rows[2]["probability"] and "broken.jpg" in rows[2]["error"]
    # The same again replaces it; without the broken file all is well.
    (photos / "broken.jpg").unlink()
    assert main(["predict", str(GOLDEN), str(photos), "--csv", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 3


def test_csv_replaces_nothing_else(tmp_path, photos, capsys):
    (tmp_path / "mine.csv").write_text("name,age\n")
    assert main(["predict", str(GOLDEN), str(photos), "--csv", str(tmp_path / "mine.csv")]) == 2
    assert "is no CSV file of predictions" in capsys.readouterr().err
    assert (tmp_path / "mine.csv").read_text() == "name,age\n"
    assert main(["predict", str(GOLDEN), str(photos), "--json", "--csv", str(tmp_path / "new.csv")]) == 2
    assert "give one of them" in capsys.readouterr().err
