"""Own images: what a folder, arrays, TFDS and Hugging Face data sets are understood as, and how they are "
"read."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import own_images
import PIL.Image
import pytest

from binwrn_jax.data import survey
from binwrn_jax.data.dataset import ImageOptions
from binwrn_jax.data.images import cut, from_file, read_picture
from binwrn_jax.data.open import open_batches, open_dataset
from binwrn_jax.data.report import report
from binwrn_jax.errors import UserError
from binwrn_jax.parallel.sharding import make_mesh

ROOT = Path(__file__).parents[2]
SIZED = ImageOptions(size=16, skip_broken=True)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """Five classes of 12 images, three broken, two equal."""
    top = tmp_path_factory.mktemp("own") / "my flowers"
    own_images.make_folder(top, 12)
    return top


def small(folder, classes=("a", "b"), count=4, start=0):
    """Tiny PNGs, image i of class c filled with colours of its own."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = np.full((6, 6, 3), (40 * label, 10 * (start + index), 7), np.uint8)
            PIL.Image.fromarray(pixels).save(folder / name / f"{index}.png")


def names_of(dataset, split):
    """The file names of a split."""
    part, indices = dataset.division[split]
    return [os.path.basename(dataset.source.describe(part, i)) for i in indices.tolist()]


# --- folders ----------------------------------------------------------------------------------------------


def test_a_folder_of_classes_is_understood(flowers):
    dataset = open_dataset(f"folder:{flowers}", None, SIZED)
    info = dataset.info
    assert info.class_names == tuple(sorted(own_images.CLASSES))
    assert (info.image_shape, info.num_classes, info.resize) == ((16, 16, 3), 5, "bilinear")
    assert (info.train_split, info.validation_split, info.test_split) == ("train", "validation", "test")
    assert dict(info.splits) == {"train": 48, "validation": 5, "test": 5}
    for split, count in info.splits.items():
        data = dataset.arrays(split)
        assert data.images.shape == (count, 16, 16, 3) and data.images.dtype == np.uint8
        assert set(data.labels) == set(range(5))
        # Each class has its colour: the labels belong to the images.
        for image, label in zip(data.images, data.labels, strict=True):
            own = own_images.COLOURS[own_images.CLASSES.index(info.class_names[label])]
            assert np.abs(image.mean((0, 1)) - own).max() < 30


def test_the_division_depends_on_the_content_alone(flowers, tmp_path):
    """Another place, other file names, another order: the same images in the same splits."""
    dataset = open_dataset(f"folder:{flowers}", None, SIZED)
    copy = tmp_path / "elsewhere"
    for number, file in enumerate(sorted(flowers.rglob("*.*"), reverse=True)):
        target = copy / file.relative_to(flowers).parts[0] / f"{number}{file.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    again = open_dataset(f"folder:{copy}", None, SIZED)
    assert again.manifest()["sha256"] == dataset.manifest()["sha256"]
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(dataset.arrays(split).images, again.arrays(split).images)
    shutil.copy(flowers / "zebra" / "zebra 1.jpg", copy / "zebra" / "one more.jpg")
    assert open_dataset(f"folder:{copy}", None, SIZED).manifest()["sha256"] != dataset.manifest()["sha256"]


def test_equal_images_are_in_one_split(tmp_path):
    small(tmp_path, count=12)
    for file in list((tmp_path / "a").iterdir()):
        shutil.copy(file, file.with_name(f"copy {file.name}"))
    dataset = open_dataset(f"folder:{tmp_path}")
    splits = {
        split: {n.removeprefix("copy ") for n in names_of(dataset, split)} for split in dataset.division
    }
    digests = {}
    for split, (part, indices) in dataset.division.items():
        for index in indices:
            digests.setdefault(dataset.surveys[part].digests[index].tobytes(), set()).add(split)
    assert all(len(found) == 1 for found in digests.values()) and all(splits.values())


def test_folders_for_splits_are_taken_as_they_are(tmp_path):
    small(tmp_path / "Train", count=8)
    small(tmp_path / "val", count=2, start=8)
    small(tmp_path / "test", count=3, start=12)
    dataset = open_dataset(f"folder:{tmp_path}")
    assert dict(dataset.info.splits) == {"train": 16, "validation": 4, "test": 6}
    assert dataset.info.image_shape == (6, 6, 3)
    assert "the splits are those of the source" in "\n".join(report(dataset))


def test_a_missing_split_is_made_of_training_images(tmp_path):
    small(tmp_path / "train", count=10)
    small(tmp_path / "test", count=3, start=12)
    dataset = open_dataset(f"folder:{tmp_path}")
    assert dict(dataset.info.splits) == {"train": 18, "test": 6, "validation": 2}
    assert dataset.division["validation"][0] == "train"


def test_the_folder_of_an_archive_is_entered(tmp_path):
    small(tmp_path / "archive" / "images")
    (tmp_path / "__MACOSX").mkdir()
    assert open_dataset(f"folder:{tmp_path}").info.class_names == ("a", "b")


def test_a_class_called_train_is_a_class(tmp_path):
    small(tmp_path, ("car", "train"))
    assert open_dataset(f"folder:{tmp_path}").info.class_names == ("car", "train")


def test_names_with_accents_are_the_same_from_every_system(tmp_path):
    small(tmp_path, (unicodedata.normalize("NFD", "é"), "z"))
    assert open_dataset(f"folder:{tmp_path}").info.class_names == ("z", "é")


def test_links_that_lead_back_end(tmp_path):
    small(tmp_path)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert sum(open_dataset(f"folder:{tmp_path}").info.splits.values()) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda top: None, "holds no images: give a folder with one folder of images for each class"),
        (lambda top: small(top, ("only",)), "holds one class, 'only'"),
        (lambda top: small(top.parent, (top.name,)), "holds images and no folders: put those of each class"),
        (lambda top: small(top, count=2), "the class 'a' has 2 different images: it needs at least 3"),
        (lambda top: [small(top / p) for p in ("train", "more")], r"folders for splits \(train\) and others"),
        (lambda top: [small(top / p, ("a", c)) for p, c in (("train", "b"), ("test", "c"))], "a class 'c'"),
        (lambda top: [small(top / part) for part in ("val", "validation", "train")], "two folders"),
    ],
    ids=["empty", "one class", "no classes", "too few", "mixed", "foreign class", "two of a split"],
)  # fmt: skip
def test_folders_that_cannot_be_used_are_told_in_one_line(tmp_path, make, message):
    top = tmp_path / "top"
    top.mkdir()
    make(top)
    with pytest.raises(UserError, match=message) as error:
        open_dataset(f"folder:{top}")
    assert "\n" not in str(error.value)


def test_links_that_lead_nowhere_and_pipes_are_named(tmp_path):
    small(tmp_path / "a")
    (tmp_path / "a" / "a" / "link.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(
        UserError, match=r"cannot read .*link.png \(No such file or directory\): mend or remove"
    ):
        open_dataset(f"folder:{tmp_path / 'a'}")
    small(tmp_path / "b")
    os.mkfifo(tmp_path / "b" / "b" / "pipe.jpg")
    with pytest.raises(UserError, match=r"pipe.jpg has the name of an image and is no file"):
        open_dataset(f"folder:{tmp_path / 'b'}")


def test_a_path_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="does not exist: give the folder of the images"):
        open_dataset(f"folder:{tmp_path / 'nothing'}")
    with pytest.raises(UserError, match="is no folder"):
        open_dataset(f"folder:{tmp_path / 'file'}")
    with pytest.raises(UserError, match="folder: names nothing"):
        open_dataset("folder:")


def test_several_sizes_need_one(flowers):
    with pytest.raises(UserError, match=r"pixels high .* give the size .*--config.data.size=32"):
        open_dataset(f"folder:{flowers}").info  # noqa: B018


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": -1}, "data.size is -1"),
        ({"channels": 2}, "data.channels is 2"),
        ({"resize": "crop"}, "unknown data.resize 'crop'"),
        ({"stream": "maybe"}, "unknown data.stream 'maybe'"),
    ],
)
def test_options_are_checked(flowers, options, message):
    with pytest.raises(UserError, match=message):
        open_dataset(f"folder:{flowers}", None, ImageOptions(**options))
    with pytest.raises(UserError, match="cifar10 has its own size"):
        open_dataset("cifar10", None, ImageOptions(**options))


def test_broken_images_are_named_and_left_out_only_when_told(flowers):
    dataset = open_dataset(f"folder:{flowers}", None, ImageOptions(size=16))
    with pytest.raises(
        UserError, match=r"3 of 61 images cannot be decoded: .*café au lait 0.png \(no image"
    ) as e:
        dataset.arrays("test")
    assert "skip_broken=True" in str(e.value) and "\n" not in str(e.value)
    assert len(open_dataset(f"folder:{flowers}", None, SIZED).arrays("train", limit=7).labels) == 7


def test_the_report_says_what_was_understood(flowers):
    lines = list(report(open_dataset(f"folder:{flowers}", None, ImageOptions(size=16))))
    text = "\n".join(lines)
    assert "15 images are in folders inside those of the classes" in text
    assert "not those of images: 1 .txt" in text
    assert any(line.split() == ["all", "48", "5", "5"] for line in lines)
    assert "1 within a split, 0 images in several splits" in text and "a copy.png" in text
    assert "3 images cannot be decoded" in text and sum("no image that Pillow reads" in x for x in lines) == 1
    assert "the network sees 16x16 RGB (bilinear), kept on the devices" in text


def test_duplicates_between_splits_are_reported(tmp_path, caplog):
    small(tmp_path / "train", count=5)
    small(tmp_path / "test", count=1)
    text = "\n".join(report(open_dataset(f"folder:{tmp_path}")))
    assert "2 images in several splits" in text
    assert "2 test images are training images, too" in caplog.text


def test_the_index_is_kept_and_made_anew_when_a_file_changes(tmp_path, monkeypatch):
    small(tmp_path / "images")
    first = open_dataset(f"folder:{tmp_path / 'images'}")
    with monkeypatch.context() as patch:
        patch.setattr(survey, "_look", lambda example: pytest.fail("looked at again"))
        again = open_dataset(f"folder:{tmp_path / 'images'}")
    assert again.manifest() == first.manifest()
    PIL.Image.fromarray(np.full((6, 6, 3), 77, np.uint8)).save(tmp_path / "images" / "a" / "0.png")
    assert open_dataset(f"folder:{tmp_path / 'images'}").manifest()["sha256"] != first.manifest()["sha256"]
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:-50])
    assert open_dataset(f"folder:{tmp_path / 'images'}").info.splits["train"] == 4


# --- one rule for pixels ------------------------------------------------------------------------------------


def files_of_every_kind(folder):
    """Pictures of 20 x 30 of all the kinds that the rule speaks of."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels)
    folder.mkdir(parents=True)
    image.convert("P").save(folder / "palette.png")
    PIL.Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "grey16.png")
    image.convert("L").save(folder / "grey.jpg")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image.transpose(PIL.Image.Transpose.ROTATE_90).save(folder / "rotated.jpg", exif=exif)
    image.save(folder / "animated.gif", save_all=True, append_images=[PIL.Image.fromarray(255 - pixels)])
    rgba = np.concatenate([pixels, np.where(pixels[..., :1] > 127, 255, 0).astype(np.uint8)], 2)
    PIL.Image.fromarray(rgba).save(folder / "transparent.webp", lossless=True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["bilinear", "center_crop"])
@pytest.mark.parametrize("stream", ["no", "yes"])
def test_training_sees_the_pixels_that_predict_sees(tmp_path, channels, resize, stream):
    """Whatever kind a file is of, on the devices and streamed."""
    for name in ("a", "b", "c"):
        files_of_every_kind(tmp_path / "train" / name)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    options = ImageOptions(size=12, channels=channels, resize=resize, stream=stream)
    dataset = open_dataset(f"folder:{tmp_path}", None, options)
    assert dataset.info.streamed == (stream == "yes") and not dataset.broken
    data = open_batches(dataset, "test", make_mesh(1), 8)
    part, indices = dataset.division["test"]
    batches = list(data.in_order())
    if stream == "yes":
        ours = np.concatenate([np.asarray(batch["images"])[np.asarray(batch["mask"])] for batch in batches])
    else:
        ours = dataset.arrays("test").images
    assert ours.shape == (21, 12, 12, channels)
    for image, index in zip(ours, indices.tolist(), strict=True):
        with open(dataset.source.describe(part, index), "rb") as file:
            np.testing.assert_array_equal(image, from_file(file, (12, 12, channels), resize))


def test_a_jpeg_for_a_grey_network_is_cropped_in_grey():
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((40, 60, 3), (200, 0, 0), np.uint8)).save(file, "JPEG")
    image = cut(read_picture(file.getvalue(), 1, "center_crop"), (16, 16, 1), "center_crop")
    assert image.shape == (1, 16, 16, 1) and np.abs(image.astype(int) - 60).max() <= 2


# --- streaming ----------------------------------------------------------------------------------------------


def test_streamed_own_images_resume_at_any_position(flowers):
    options = ImageOptions(size=24, skip_broken=True, stream="yes")
    dataset = open_dataset(f"folder:{flowers}", None, options)
    whole = open_batches(dataset, "train", make_mesh(1), 8, seed=3, augmentation="scale_aspect_flip")
    batches = [
        {k: np.asarray(v) for k, v in whole.batch(p).items() if k in ("images", "labels")} for p in range(8)
    ]
    whole.close()
    assert batches[0]["images"].shape == (8, 24, 24, 3)
    resumed = open_batches(dataset, "train", make_mesh(1), 8, seed=3, augmentation="scale_aspect_flip")
    np.testing.assert_array_equal(np.asarray(resumed.batch(5)["images"]), batches[5]["images"])
    resumed.close()
    one_epoch = np.concatenate([batch["labels"] for batch in batches[:6]])
    np.testing.assert_array_equal(np.bincount(one_epoch), np.bincount(dataset.arrays("train").labels))


STREAM = """
import sys
from binwrn_jax.data.dataset import ImageOptions
from binwrn_jax.data.open import open_batches, open_dataset
from binwrn_jax.parallel.sharding import make_mesh

if __name__ == "__main__":
    options = ImageOptions(size=64, skip_broken=True, stream="yes")
    dataset = open_dataset(sys.argv[1], None, options)
    train = open_batches(dataset, "train", make_mesh(1), 8, workers=2, prefetch=4)
    test = open_batches(dataset, "test", make_mesh(1), 2, workers=1)
    kept = [train.batch(position) for position in (0, 1, 5)]
    kept += list(test.in_order())
    train.close()
    print(len(kept))
"""


def test_workers_leave_nothing_behind(flowers, tmp_path):
    """No shared memory, no message of an iterator that ends after its modules."""
    script = tmp_path / "stream.py"
    script.write_text(STREAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, str(script), f"folder:{flowers}"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "6\n", "")


def test_on_the_devices_and_streamed_the_order_and_pixels_are_the_same(flowers):
    found = []
    for stream in ("no", "yes"):
        options = ImageOptions(size=16, skip_broken=True, stream=stream)
        data = open_batches(
            open_dataset(f"folder:{flowers}", None, options), "train", make_mesh(1), 8, seed=1
        )
        batch = data.batch(9)
        images = batch["images"][batch["indices"]] if stream == "no" else batch["images"]
        found.append(np.asarray(images))
        data.close()
    np.testing.assert_array_equal(*found)


def test_records_go_to_other_processes(flowers, tmp_path):
    records = open_dataset(f"folder:{flowers}", None, SIZED).records("train[3:9]+test")
    ours, theirs = (list(r.read([5, 0])) for r in (records, pickle.loads(pickle.dumps(records))))
    assert len(records) == 11
    for (image, label), (other, same) in zip(ours, theirs, strict=True):
        assert label == same
        np.testing.assert_array_equal(image, other)


def test_a_file_that_vanishes_is_named(tmp_path):
    small(tmp_path)
    dataset = open_dataset(f"folder:{tmp_path}")
    part, indices = dataset.division["test"]
    os.unlink(dataset.source.describe(part, int(indices[0])))
    with pytest.raises(
        UserError, match=r"cannot read .*png \(No such file or directory\): it has changed since"
    ):
        dataset.arrays("test")


# --- arrays -------------------------------------------------------------------------------------------------


def arrays(count=40, shape=(5, 7, 3), classes=4):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % classes


def test_an_npz_file_with_class_names(tmp_path):
    images, labels = arrays()
    np.savez(tmp_path / "a.npz", images=images, labels=labels, class_names=np.array(["w", "x", "y", "z"]))
    dataset = open_dataset(f"npz:{tmp_path / 'a.npz'}")
    assert dataset.info.image_shape == (5, 7, 3) and dataset.info.class_names == ("w", "x", "y", "z")
    assert dict(dataset.info.splits) == {"train": 32, "test": 4, "validation": 4}
    data = dataset.arrays("train+validation+test")
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert [known[image.tobytes()] for image in data.images] == data.labels.tolist()


def test_npy_files_and_splits_by_name(tmp_path):
    images, labels = arrays(shape=(5, 7))
    for name, part in (("x_train", slice(0, 30)), ("x_test", slice(30, 40))):
        np.save(tmp_path / f"{name}.npy", images[part])
        np.save(tmp_path / f"{name.replace('x', 'y')}.npy", labels[part])
    for path in (tmp_path, tmp_path / "x_train.npy"):
        dataset = open_dataset(f"npz:{path}")
        assert dataset.info.image_shape == (5, 7, 1) and dataset.info.splits["test"] == 10
        assert dataset.info.class_names == ("0", "1", "2", "3")
    records = pickle.loads(pickle.dumps(dataset.records("test")))
    assert next(records.read([3])).image.shape == (5, 7, 1)


def test_labels_may_be_texts(tmp_path):
    images, labels = arrays()
    np.savez(tmp_path / "a.npz", images=images, labels=np.array(["dog", "cat"])[labels % 2])
    dataset = open_dataset(f"npz:{tmp_path / 'a.npz'}")
    assert dataset.info.class_names == ("cat", "dog")


def test_test_images_without_labels_are_left_out(tmp_path):
    images, labels = arrays()
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images[:5], y_test=np.full(5, -1))
    dataset = open_dataset(f"npz:{tmp_path / 'a.npz'}")
    assert dict(dataset.info.splits) == {"train": 32, "test": 4, "validation": 4}
    assert "  the test images have no labels and are left out" in list(report(dataset))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"images": np.zeros((9, 5, 5, 3), np.uint8), "labels": np.arange(9) + 1},
            "begin at 1: give the numbers from 0 on, labels - 1",
        ),
        ({"pictures": np.zeros(3)}, r"no arrays images and labels .*it has: pictures"),
        ({"images": np.zeros((9, 5, 5, 3)), "labels": np.arange(9) % 3}, "images are float64, not uint8"),
        ({"images": np.zeros((9, 5, 5, 3), np.uint8), "labels": np.arange(8)}, "9 images and 8 labels"),
        ({"images": np.zeros((9, 5, 5, 3), np.uint8), "labels": np.eye(9)}, "labels of .* are one-hot"),
        (
            {"images": np.zeros((9, 5, 5, 3), np.uint8), "labels": np.arange(9) - 1},
            "has the label -1, but there are",
        ),
        (
            {"images": np.zeros((9, 5, 5, 3), np.uint8), "labels": np.arange(9.0)},
            "are float64: give integers or texts",
        ),
        (
            {
                "images": np.zeros((9, 5, 5, 3), np.uint8),
                "labels": np.arange(9),
                "class_names": np.array(["a"]),
            },
            "has the label 1, but there are 1 classes",
        ),
        ({"images": np.array([{}]), "labels": np.zeros(1)}, "is no .npz file of numbers and texts"),
    ],
    ids=[
        "from 1",
        "names",
        "floats",
        "lengths",
        "one-hot",
        "negative",
        "float labels",
        "too few names",
        "pickle",
    ],
)
def test_arrays_that_cannot_be_used_are_told_in_one_line(tmp_path, content, message):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(UserError, match=message) as error:
        open_dataset(f"npz:{tmp_path / 'a.npz'}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_npz(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"is no \.npz file"):
        open_dataset(f"npz:{tmp_path / 'a.npz'}")
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(f"npz:{tmp_path / 'b.npz'}")


# --- TFDS folders of any name -------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path):
    """A folder that TFDS has written for a data set that only its author knows."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    folder = tmp_path / "tfds" / "my_flowers" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "photo": tfds.features.Image(shape=(None, None, 3)),
            "kind": tfds.features.ClassLabel(names=["a", "b", "c"]),
        }
    )
    features.save_metadata(str(folder))
    features.save_config(str(folder))
    writer = array_record_module.ArrayRecordWriter(
        str(folder / "my_flowers-train.array_record-00000-of-00001"), "group_size:1"
    )
    for index in range(30):
        example = tf_example_pb2.Example()
        encoded = own_images.encode(own_images.picture(index % 3, index), "JPEG")
        example.features.feature["photo"].bytes_list.value.append(encoded)
        example.features.feature["kind"].int64_list.value.append(index % 3)
        writer.write(example.SerializeToString())
    writer.close()
    info = {
        "name": "my_flowers",
        "version": "1.0.0",
        "fileFormat": "array_record",
        "splits": [
            {
                "name": "train",
                "numBytes": "1",
                "shardLengths": ["30"],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return tmp_path / "tfds", folder


def test_a_tfds_folder_of_any_name(prepared):
    root, folder = prepared
    for name in ("my_flowers", "my_flowers:1.0.0", str(folder)):
        dataset = open_dataset(f"tfds:{name}", str(root), SIZED)
        assert dataset.info.class_names == ("a", "b", "c")
        assert dict(dataset.info.splits) == {"train": 24, "test": 3, "validation": 3}
    data = dataset.arrays("train")
    for image, label in zip(data.images, data.labels, strict=True):
        assert np.abs(image.mean((0, 1)) - own_images.COLOURS[label]).max() < 30


def test_a_tfds_name_that_is_not_prepared(prepared):
    root, _ = prepared
    with pytest.raises(UserError, match="your_flowers is not prepared in") as error:
        open_dataset("tfds:your_flowers", str(root))
    assert "\n" not in str(error.value)
    with pytest.raises(
        UserError, match=r"no feature 'photos': name one with --config.data.image_column; .*photo"
    ):
        open_dataset("tfds:my_flowers", str(root), ImageOptions(image_column="photos"))


# --- Hugging Face -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install '.[hf]'")
    folder = tmp_path_factory.mktemp("hf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        features = datasets.Features(
            {
                "img": datasets.Image(),
                "kind": datasets.ClassLabel(names=["a", "b", "c"]),
                "note": datasets.Value("string"),
            }
        )
        rows = [own_images.encode(own_images.picture(i % 3, i), "PNG") for i in range(30)]
        table = datasets.Dataset.from_dict(
            {
                "img": [{"bytes": row, "path": None} for row in rows],
                "kind": [i % 3 for i in range(30)],
                "note": ["xyz"[i % 3] for i in range(30)],
            },
            features=features,
        )
        datasets.disable_progress_bars()
        table.to_parquet(str(folder / "train-00000-of-00001.parquet"))
        table.select(range(6)).to_parquet(str(folder / "test-00000-of-00001.parquet"))
        datasets.DatasetDict({"train": table}).save_to_disk(str(folder.with_name("saved")))
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install '.[hf]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_parquet_files_of_hugging_face(parquet, offline):
    dataset = open_dataset(f"hf:{parquet}", None, SIZED)
    assert dataset.info.class_names == ("a", "b", "c")
    assert dict(dataset.info.splits) == {"train": 27, "test": 6, "validation": 3}
    data = dataset.arrays("test")
    for image, label in zip(data.images, data.labels, strict=True):
        assert np.abs(image.mean((0, 1)) - own_images.COLOURS[label]).max() < 30
    records = pickle.loads(pickle.dumps(dataset.records("train")))
    assert next(records.read([0])).image.dtype == np.uint8
    assert "6 images in several splits" in "\n".join(report(dataset))


def test_columns_and_folders_of_save_to_disk(parquet, offline):
    texts = open_dataset(f"hf:{parquet.with_name('saved')}", None, ImageOptions(size=8, label_column="note"))
    assert texts.info.class_names == ("x", "y", "z") and texts.info.splits["train"] == 24
    with pytest.raises(
        UserError, match=r"no column 'none': name one with --config.data.label_column; its columns: img"
    ):
        open_dataset(f"hf:{parquet}", None, ImageOptions(label_column="none"))


def test_a_hugging_face_name_that_cannot_be_loaded(offline):
    with pytest.raises(
        UserError, match=r"cannot load hf:/nowhere/at/all \(.*give a name of the Hub"
    ) as error:
        open_dataset("hf:/nowhere/at/all")
    assert "\n" not in str(error.value)
