"""The ImageNet data path: which pixels of which record a network sees, at which position, in any process."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import struct
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from binwrn_jax import sharding
from binwrn_jax.data import imagenet, pipeline, records, sources
from binwrn_jax.data.imagenet import Box
from binwrn_jax.errors import UserError

REAL_DATA = os.environ.get("TFDS_DATA_DIR")
COUNTS = {"train": 22, "validation": 7}


def picture(height, width, seed=0):
    """A smooth image, which JPEG and resizing keep: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), PIL.Image.Resampling.BICUBIC))


def jpeg(pixels, **options):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def example(encoded, label):
    from tensorflow_datasets.proto import tf_example_pb2

    message = tf_example_pb2.Example()
    message.features.feature["image"].bytes_list.value.append(encoded)
    message.features.feature["label"].int64_list.value.append(label)
    message.features.feature["file_name"].bytes_list.value.append(b"some.JPEG")
    return message.SerializeToString()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a prepared `imagenet2012` of small generated JPEGs; image i has label i of its split."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    root = tmp_path_factory.mktemp("tfds")
    builder = tfds.builder("imagenet2012", data_dir=str(root))
    folder = Path(builder.data_path)
    folder.mkdir(parents=True)
    splits = []
    for split, count in COUNTS.items():
        path = folder / f"imagenet2012-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        sizes = [(40 + 3 * i, 90 - 2 * i) for i in range(count)]
        encoded = [example(jpeg(picture(*size, seed=i)), i) for i, size in enumerate(sizes)]
        for record in encoded:
            writer.write(record)
        writer.close()
        splits.append(
            {
                "name": split,
                "numBytes": str(sum(map(len, encoded))),
                "shardLengths": [str(count)],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    builder.info.features.save_metadata(str(folder))
    builder.info.features.save_config(str(folder))
    info = {"name": "imagenet2012", "version": "5.1.0", "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return root


def streamed(root, split="train", batch_size=8, devices=1, **options):
    mesh = sharding.make_mesh(devices)
    spec = sources.dataset_spec("imagenet2012")
    return pipeline.StreamedData(spec, split, str(root), mesh, batch_size, **options)


def host(inputs):
    return {name: np.asarray(value) for name, value in inputs.items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


# --- which pixels -----------------------------------------------------------------------------------------


def test_the_central_crop_is_224_of_256():
    assert imagenet.center_box(256, 300) == Box(16, 38, 224, 224)
    assert imagenet.center_box(375, 500) == Box(23, 86, 328, 328)
    assert imagenet.center_box(1000, 512) == Box(276, 32, 448, 448)
    assert imagenet.center_box(1, 1) == Box(0, 0, 1, 1)


def inside(box, height, width):
    return (
        box.top >= 0
        and box.left >= 0
        and box.height > 0
        and box.width > 0
        and box.top + box.height <= height
        and box.left + box.width <= width
    )


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (40, 900), (3, 2), (1, 1)])
def test_random_crops_lie_inside(height, width):
    for record in range(200):
        rng = imagenet.random_stream(0, 0, record)
        assert inside(imagenet.scale_aspect_box(height, width, rng), height, width)
        assert inside(imagenet.scale_box(height, width, rng), height, width)
        assert all(inside(box, height, width) for box in imagenet.crop_boxes(height, width, record, 25))


def test_scale_and_aspect_are_distributed_as_szegedy_et_al_say():
    boxes = [imagenet.scale_aspect_box(4000, 4000, imagenet.random_stream(1, 2, i)) for i in range(4000)]
    areas = np.array([box.height * box.width / 16e6 for box in boxes])
    aspects = np.array([box.width / box.height for box in boxes])
    assert areas.min() >= 0.0799 and aspects.min() >= 0.749 and aspects.max() <= 1.335
    # Uniform from 0.08 to 1, but for boxes near the whole image that do not fit and are drawn again.
    expected = np.linspace(0.08, 0.75, 5)
    share = [(areas < bound).mean() for bound in expected]
    whole = share[-1] / (0.75 - 0.08)
    np.testing.assert_allclose(share, whole * (expected - 0.08), atol=0.03)
    assert abs(np.log(aspects).mean()) < 0.01
    np.testing.assert_allclose(np.log(aspects).std(), np.log(16 / 9) / np.sqrt(12), rtol=0.06)
    tops = np.array([box.top / max(1, 4000 - box.height) for box in boxes])
    np.testing.assert_allclose(np.quantile(tops, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.04)


def test_scale_augmentation_is_that_of_he_et_al():
    sides = [imagenet.scale_box(480, 700, imagenet.random_stream(0, 0, i)).height for i in range(3000)]
    scales = 480 * 224 / np.array(sides)
    assert 255 <= scales.min() < 258 and 478 < scales.max() <= 482
    np.testing.assert_allclose(np.quantile(scales, (0.25, 0.5, 0.75)), (312, 368, 424), atol=8)


def test_25_crops_are_5_scales_of_5_positions():
    boxes = imagenet.crop_boxes(480, 640, 7, 25)
    sides = [box.height for box in boxes]
    assert sides == [side for side in (480, 420, 280, 224, 168) for _ in range(5)]
    assert len(set(boxes)) > 20
    assert boxes == imagenet.crop_boxes(480, 640, 7, 25)
    assert boxes != imagenet.crop_boxes(480, 640, 8, 25)
    assert imagenet.crop_boxes(480, 640, 7) == [imagenet.center_box(480, 640)]


def test_random_numbers_depend_on_seed_epoch_and_record():
    streams = {
        (s, e, r): imagenet.random_stream(s, e, r).random() for s in (0, 1) for e in (0, 1) for r in (0, 1)
    }
    assert len(set(streams.values())) == 8
    assert streams[1, 1, 1] == imagenet.random_stream(1, 1, 1).random()


# --- decoding ---------------------------------------------------------------------------------------------


def reference(pixels, box, size=224):
    """Bilinear interpolation with half-pixel centres, in float64."""
    crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width].astype(np.float64)
    for axis, length in enumerate(crop.shape[:2]):
        at = ((np.arange(size) + 0.5) * length / size - 0.5).clip(0, length - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, length - 1)
        weight = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        crop = crop.take(low, axis) * (1 - weight) + crop.take(high, axis) * weight
    return crop


@pytest.mark.parametrize(
    "box", [Box(10, 20, 200, 150), Box(0, 0, 300, 400), Box(50, 60, 224, 224), Box(5, 5, 3, 2)]
)
def test_decoded_crops_are_the_bilinear_ones(box):
    pixels = picture(300, 400)
    decoded = imagenet.decode(jpeg(pixels, subsampling=0), [box])[0]
    assert decoded.shape == (224, 224, 3) and decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded, reference(pixels, box), atol=4)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_large_crops_are_decoded_at_a_part_of_the_size(factor, monkeypatch):
    import simplejpeg

    shapes = []
    original = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda *a, **k: shapes.append((out := original(*a, **k)).shape) or out
    )
    pixels = picture(230 * factor + 3, 260 * factor + 1)
    box = Box(2, 9, 224 * factor, 240 * factor)
    decoded = imagenet.decode(jpeg(pixels), [box])[0]
    assert shapes == [(-(-pixels.shape[0] // factor), -(-pixels.shape[1] // factor), 3)]
    np.testing.assert_allclose(decoded, reference(pixels, box), atol=6)
    # One small box among them needs all pixels.
    imagenet.decode(jpeg(pixels), [box, Box(0, 0, 224, 224)])
    assert shapes[1] == pixels.shape


@pytest.mark.parametrize("mode", ["L", "CMYK", "PNG", "progressive"])
def test_the_odd_images_of_imagenet(mode):
    pixels = picture(60, 50)
    if mode == "L":
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
        encoded = jpeg(pixels[..., 0])
    elif mode == "progressive":
        encoded = jpeg(pixels, progressive=True)
    else:
        image, file = PIL.Image.fromarray(pixels), io.BytesIO()
        image.convert("CMYK").save(file, "JPEG", quality=95) if mode == "CMYK" else image.save(file, "PNG")
        encoded = file.getvalue()
    assert imagenet.image_size(encoded) == (60, 50)
    box = Box(0, 0, 60, 50)
    np.testing.assert_allclose(imagenet.decode(encoded, [box])[0], reference(pixels, box), atol=12)


@pytest.mark.parametrize("encoded", [b"", b"no image", jpeg(picture(40, 40))[:100]])
def test_what_is_no_image_is_refused(encoded):
    with pytest.raises(ValueError):
        imagenet.decode(encoded, [Box(0, 0, 1, 1)])


# --- which records, at which position ---------------------------------------------------------------------


def test_an_epoch_shows_each_record_once(root):
    data = streamed(root, batch_size=11, augmentation="scale_aspect_flip", seed=3)
    assert (data.size, data.steps_per_epoch) == (22, 2)
    data.check_trains()
    epochs = [[host(data.batch(2 * epoch + place)) for place in range(2)] for epoch in range(3)]
    labels = [np.concatenate([batch["labels"] for batch in epoch]) for epoch in epochs]
    for epoch in labels:
        assert sorted(epoch) == list(range(22))  # label i is record i
    assert not np.array_equal(labels[0], labels[1])
    # The crop of a record: what the functions above say, and another one in each epoch.
    train = sources.open_split("imagenet2012", "train", str(root))
    for epoch in range(2):
        encoded, label = records.parse(train.read([5])[0])
        assert label == 5
        box = imagenet.scale_aspect_box(*imagenet.image_size(encoded), imagenet.random_stream(3, epoch, 5))
        images = np.concatenate([batch["images"] for batch in epochs[epoch]])
        (row,) = np.flatnonzero(labels[epoch] == 5)
        np.testing.assert_array_equal(images[row], imagenet.decode(encoded, [box])[0])
    data.close()


def test_any_position_can_be_the_first(root):
    options = {"augmentation": "scale_flip", "seed": 1}
    whole = streamed(root, **options)
    batches = [host(whole.batch(position)) for position in range(6)]
    whole.close()
    for start in (5, 2, 3):
        resumed = streamed(root, **options)
        assert_same(host(resumed.batch(start)), batches[start])
        resumed.close()
    assert_same(host(whole.batch(1)), batches[1])  # back, as the moments pass goes
    assert_same(host(whole.batch(4)), batches[4])
    whole.close()


def test_number_of_devices_changes_nothing(root, eight_devices):
    one, eight = streamed(root, devices=1), streamed(root, devices=8)
    ours, theirs = one.batch(1), eight.batch(1)
    assert len(theirs["images"].addressable_shards) == 8
    assert theirs["images"].addressable_shards[0].data.shape == (1, 224, 224, 3)
    assert_same(host(ours), host(theirs))
    one.close(), eight.close()


def test_rows_of_several_processes_are_the_rows_of_one(root):
    source = sources.open_split("imagenet2012", "train", str(root))

    def batch(rows):
        args = ("train", source, 1000, 8, rows)
        return pipeline.TrainBatches(*args, seed=2, augmentation="scale_aspect_flip")[4]

    whole, parts = batch(range(8)), [batch(range(0, 3)), batch(range(3, 8))]
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))


def test_in_order_covers_every_image_once(root):
    data = streamed(root, "validation", batch_size=4)
    batches = [host(batch) for batch in data.in_order()]
    assert [batch["mask"].tolist() for batch in batches] == [[True] * 4, [True] * 3 + [False]]
    labels = np.concatenate([batch["labels"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(labels, range(7))
    arrays = sources.load("imagenet2012", "validation", str(root))
    images = np.concatenate([batch["images"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(images, arrays.images)
    np.testing.assert_array_equal(arrays.labels, range(7))


def test_25_crops_of_each_image(root):
    data = streamed(root, "validation", batch_size=3, crops=25)
    batches = [host(batch) for batch in data.in_order()]
    assert batches[0]["images"].shape == (3, 25, 224, 224, 3)
    validation = sources.open_split("imagenet2012", "validation", str(root))
    encoded, _ = records.parse(validation.read([4])[0])
    boxes = imagenet.crop_boxes(*imagenet.image_size(encoded), 4, 25)
    np.testing.assert_array_equal(batches[1]["images"][1], imagenet.decode(encoded, boxes))


def test_split_of_less_than_a_batch(root):
    with pytest.raises(UserError, match="22 training images are fewer than one batch of 40"):
        streamed(root, batch_size=40).check_trains()


# --- workers ----------------------------------------------------------------------------------------------


def test_workers_change_nothing_and_their_death_is_told(root):
    """One test, as each worker process takes seconds to start."""
    options = {"augmentation": "scale_aspect_flip", "seed": 5, "prefetch": 1}
    alone, several = streamed(root, **options), streamed(root, workers=2, **options)
    for position in (3, 4, 5):
        assert_same(host(alone.batch(position)), host(several.batch(position)))
    alone.close()
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"a data worker died \(exit code -9"):
        for position in range(6, 30):
            several.batch(position)
    several.close()


def test_damage_is_told_in_one_line(root, tmp_path):
    class Damaged:
        def __len__(self):
            return 8

        def read(self, indices):
            return [example(b"\xff\xd8\xff no JPEG" if i == 5 else jpeg(picture(30, 30)), 1) for i in indices]

    source = pipeline.TestBatches("imagenet2012 'train'", Damaged(), 1000, 8, range(8))
    with pytest.raises(UserError, match=r"cannot read imagenet2012 'train' near record 5 \(") as caught:
        list(pipeline.follow(pipeline.stream(source, 0, 0, 1)))
    assert "\n" not in str(caught.value)


# --- TFRecord ---------------------------------------------------------------------------------------------


def to_tfrecord(folder):
    """Turns a prepared folder into the older format."""
    for path in folder.glob("*.array_record-*"):
        shard = records.Shard(str(path), 0, COUNTS[path.name.split("-")[1].split(".")[0]], 0)
        source = records.ArrayRecords([shard])
        content = [struct.pack("<Q4x", len(r)) + r + bytes(4) for r in source.read(range(len(source)))]
        (folder / path.name.replace("array_record", "tfrecord")).write_bytes(b"".join(content))
        path.unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))


def test_tfrecords_are_read_at_random(root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(root, tmp_path / "tfds")
    (folder,) = (tmp_path / "tfds" / "imagenet2012").iterdir()
    to_tfrecord(folder)
    names = "train[5:9]+validation[2:4]"
    ours = sources.open_split("imagenet2012", names, str(tmp_path / "tfds"))
    theirs = sources.open_split("imagenet2012", names, str(root))
    assert len(ours) == len(theirs) == 6
    assert ours.read([5, 0, 3]) == theirs.read([5, 0, 3])
    assert pickle.loads(pickle.dumps(ours)).read([4]) == theirs.read([4])
    # The offsets are kept, and believed as long as names and sizes are the same.
    (_,) = folder.glob(".binwrn-offsets-*")
    monkeypatch.setattr(records, "_scan", lambda *args: pytest.fail("scanned again"))
    again = sources.open_split("imagenet2012", names, str(tmp_path / "tfds"))
    assert again.read([1]) == theirs.read([1])
    monkeypatch.undo()
    train = folder / "imagenet2012-train.tfrecord-00000-of-00001"
    train.write_bytes(train.read_bytes()[:-10])
    with pytest.raises(UserError, match="ends within a record"):
        sources.open_split("imagenet2012", "train", str(tmp_path / "tfds"))
