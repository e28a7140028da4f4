"""The ImageNet data path: which pixels of which record a network sees, at which position, in any process."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
import scipy.special
from tfrecords import to_tfrecord

from binwrn_jax.cli.main import main
from binwrn_jax.data import jpeg as imagenet
from binwrn_jax.data import records
from binwrn_jax.data.catalog import lookup
from binwrn_jax.data.dataset import Example
from binwrn_jax.data.jpeg import Box
from binwrn_jax.data.open import open_dataset
from binwrn_jax.data.streamed import StreamedData, StreamedImages, TestBatches, TrainBatches
from binwrn_jax.data.workers import iterate_batches, stream
from binwrn_jax.deploy.formats import open_model
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import evaluate, make_eval_step, measure
from binwrn_jax.nn.registry import create_network
from binwrn_jax.parallel import sharding
from binwrn_jax.store.description import Description
from binwrn_jax.store.model import Model
from binwrn_jax.training.config import base_config
from binwrn_jax.training.resolve import resolve

REAL_DATA = os.environ.get("TFDS_DATA_DIR")
ROOT = Path(__file__).parents[2]
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


def imagenet2012(root):
    return open_dataset("imagenet2012", str(root))


def streamed(root, split="train", batch_size=8, devices=1, **options):
    mesh = sharding.make_mesh(devices)
    return StreamedData(imagenet2012(root), split, mesh, batch_size, **options)


def host(inputs):
    return {name: np.asarray(value) for name, value in inputs.items() if name != "split"}


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
def test_bytes_that_are_no_image_are_refused(encoded):
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
    train = imagenet2012(root).records("train")
    for epoch in range(2):
        ((encoded, label),) = train.read([5])
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
    dataset = imagenet2012(root)

    def batch(rows):
        args = (dataset.records("train"), dataset.info, 8, rows)
        return TrainBatches(*args, seed=2, augmentation="scale_aspect_flip")[4]

    whole, parts = batch(range(8)), [batch(range(0, 3)), batch(range(3, 8))]
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))


SHARE = """
import sys
import jax
import numpy as np
from binwrn_jax.parallel import sharding
from binwrn_jax.data.open import open_dataset
from binwrn_jax.data.streamed import StreamedData

port, process, root, out = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
dataset, mesh = open_dataset("imagenet2012", root), sharding.make_mesh()
data = StreamedData(dataset, "train", mesh, 8, seed=4, augmentation="scale_aspect_flip")
test = StreamedData(dataset, "validation", mesh, 8)
found = {}
for name, batch in (("train", data.batch(3)), ("test", next(test.in_order()))):
    for field, value in batch.items():
        if field == "split":
            continue
        assert value.shape[0] == 8
        for shard in value.addressable_shards:
            found[f"{name} {field} {shard.index[0].start}"] = np.asarray(shard.data)
np.savez(out, **found)
"""


def test_each_of_two_processes_reads_its_share(root, tmp_path):
    """Real processes, two devices each: together they hold what one process has."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    files = [tmp_path / f"{process}.npz" for process in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARE, port, str(process), str(root), str(file)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for process, file in enumerate(files)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    shares = [dict(np.load(file)) for file in files]
    assert not shares[0].keys() & shares[1].keys()
    together = {**shares[0], **shares[1]}
    whole = streamed(root, seed=4, augmentation="scale_aspect_flip")
    for name, batch in (("train", whole.batch(3)), ("test", next(streamed(root, "validation").in_order()))):
        for field, value in host(batch).items():
            parts = [together[f"{name} {field} {start}"] for start in (0, 2, 4, 6)]
            np.testing.assert_array_equal(np.concatenate(parts), value)
    whole.close()


def test_in_order_covers_every_image_once(root):
    data = streamed(root, "validation", batch_size=4)
    batches = [host(batch) for batch in data.in_order()]
    assert [batch["mask"].tolist() for batch in batches] == [[True] * 4, [True] * 3 + [False]]
    labels = np.concatenate([batch["labels"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(labels, range(7))
    arrays = imagenet2012(root).arrays("validation")
    images = np.concatenate([batch["images"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(images, arrays.images)
    np.testing.assert_array_equal(arrays.labels, range(7))


def test_25_crops_of_each_image(root):
    data = streamed(root, "validation", batch_size=3, crops=25)
    batches = [host(batch) for batch in data.in_order()]
    assert batches[0]["images"].shape == (3, 25, 224, 224, 3)
    validation = imagenet2012(root).records("validation")
    ((encoded, _),) = validation.read([4])
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


def test_damage_is_reported_in_one_line(root, tmp_path):
    class Damaged:
        folder = "FOLDER"

        def __len__(self):
            return 8

        def read(self, indices):
            for i in indices:
                yield Example(b"\xff\xd8\xff no JPEG" if i == 5 else jpeg(picture(30, 30)), 1)

        def describe(self, index):
            return f"the train split near record {index}"

    source = TestBatches(Damaged(), imagenet2012(root).info, 8, range(8))
    with pytest.raises(UserError, match=r"cannot read the train split near record 5 \(.*delete") as caught:
        list(iterate_batches(stream(source, 0, 0, 1)))
    assert "\n" not in str(caught.value)


# --- TFRecord ---------------------------------------------------------------------------------------------


def test_tfrecords_are_read_at_random(root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(root, tmp_path / "tfds")
    (folder,) = (tmp_path / "tfds" / "imagenet2012").iterdir()
    to_tfrecord(folder)
    names = "train[5:9]+validation[2:4]"
    copy = imagenet2012(tmp_path / "tfds")
    ours = copy.records(names).serialized
    theirs = imagenet2012(root).records(names).serialized
    assert len(ours) == len(theirs) == 6
    assert ours.read([5, 0, 3]) == theirs.read([5, 0, 3])
    assert pickle.loads(pickle.dumps(ours)).read([4]) == theirs.read([4])
    # The offsets are kept, and believed as long as names and sizes are the same.
    (_,) = folder.glob(".binwrn-offsets-*")
    monkeypatch.setattr(records, "_scan", lambda *args: pytest.fail("scanned again"))
    again = copy.records(names).serialized
    assert again.read([1]) == theirs.read([1])
    monkeypatch.undo()
    train = folder / "imagenet2012-train.tfrecord-00000-of-00001"
    train.write_bytes(train.read_bytes()[:-10])
    with pytest.raises(UserError, match="ends within a record"):
        copy.records("train")


# --- evaluation -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder of a tiny network for 224x224 images, with moments that make its logits differ."""
    fields = {**base_config().model.to_dict(), "depth": 8, "width": 0.25, "weights": "32bit"}
    network = create_network(fields, 1000)
    images = np.stack([picture(32, 32, seed) for seed in range(16)])
    variables = jax.jit(network.init)(jax.random.key(0), images)
    apply = jax.jit(functools.partial(network.apply, train=True, mutable=["moments", "batch_stats"]))
    moments = jax.device_get(apply(variables, images)[1]["moments"])
    stats = {name: {"mean": m["mean"], "var": m["std"] ** 2} for name, m in moments.items()}
    # Only the first ten classes have a chance: so some of the seven labels are right, and some among five.
    stats["bn8"] = {**stats["bn8"], "mean": stats["bn8"]["mean"] + np.float32(30) * (np.arange(1000) >= 10)}
    names = open_dataset("imagenet2012").info.class_names
    resize = {"resize": "center_crop"}
    description = Description(1000, (224, 224, 3), fields, "imagenet2012", names, resize)
    folder = tmp_path_factory.mktemp("model")
    Model(network, {"params": variables["params"], "batch_stats": stats}, description).save(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(model):
    return open_model(model)


@pytest.mark.parametrize("crops", [1, 25])
def test_measured_over_the_crops_of_each_image(predictor, root, crops):
    data = StreamedImages(imagenet2012(root), "validation", crops=crops)
    assert len(data) == 7
    result, logits, labels = measure(predictor, data)
    # The same by hand, in float64.
    validation = imagenet2012(root).records("validation")
    images = []
    for index, (encoded, _) in enumerate(validation.read(range(7))):
        boxes = imagenet.crop_boxes(*imagenet.image_size(encoded), index, crops)
        images.append(imagenet.decode(encoded, boxes))
    each = scipy.special.softmax(predictor(np.concatenate(images)).astype(np.float64), axis=1)
    average = each.reshape(7, crops, 1000).mean(1)
    np.testing.assert_allclose(scipy.special.softmax(logits, axis=1), average, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(labels, range(7))
    own = average[labels, labels]
    rank = (average > own[:, None]).sum(1)
    assert result["n"] == 7 and len(np.unique(rank)) > 2
    assert result["error"] == pytest.approx(100 * (rank > 0).mean())
    assert result["top5_error"] == pytest.approx(100 * (rank > 4).mean())
    assert result["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-4)


def test_the_command_and_the_run_evaluate_alike(capsys, model, root, tmp_path):
    """The run does it on eight devices, by the evaluation step of the training loop, with padding."""
    command = ["evaluate", str(model), "--dataset", "imagenet2012", "--data-dir", str(root), "--json"]
    file = tmp_path / "predictions.npz"
    options = ["--workers", "0", "--crops", "25", "--limit", "4", "--predictions", str(file)]
    assert main([*command, *options]) == 0
    theirs = json.loads(capsys.readouterr().out)
    assert (theirs["n"], theirs["crops"]) == (4, 25)
    np.testing.assert_array_equal(np.load(file)["labels"], range(4))
    opened = Model.load(model)
    step = jax.jit(make_eval_step(opened.network))
    data = streamed(root, "validation[:4]", batch_size=8, devices=min(8, len(jax.devices())), crops=25)
    ours = evaluate(step, dict(opened.variables), data.in_order())
    for key in ("n", "correct", "top5_error"):
        assert ours[key] == theirs[key]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_predict_sees_what_evaluation_sees(capsys, model, predictor, root, tmp_path):
    validation = imagenet2012(root).records("validation")
    ((encoded, _),) = validation.read([2])
    (tmp_path / "photo.jpg").write_bytes(encoded)
    pixels = np.asarray(PIL.Image.open(tmp_path / "photo.jpg"))
    PIL.Image.fromarray(pixels).save(tmp_path / "same.png")
    np.save(tmp_path / "crop.npy", imagenet.decode(encoded, [imagenet.center_box(*pixels.shape[:2])]))
    files = [str(tmp_path / name) for name in ("photo.jpg", "same.png", "crop.npy")]
    assert main(["predict", str(model), *files, "--json"]) == 0
    answers = [json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines()]
    assert answers[0] == answers[2] and [p["class"] for p in answers[1]] == [p["class"] for p in answers[0]]
    arrays = imagenet2012(root).arrays("validation", limit=3)
    best = int(predictor(arrays.images[2:])[0].argmax())
    assert answers[0][0]["class"] == best and answers[0][0]["name"].startswith("n")


def test_crops_are_for_large_images(capsys, model):
    assert main(["evaluate", str(model), "--dataset", "digits", "--crops", "25"]) == 2
    assert "--crops 25 is for large images: digits is not" in capsys.readouterr().err
    config = base_config()
    config.eval.crops = 25
    with pytest.raises(UserError, match=r"eval.crops 25 is for large images: cifar10 is not"):
        resolve(config, lookup("cifar10"))
    config.eval.crops, config.augmentation = 1, "scale_flip"
    with pytest.raises(UserError, match="augmentation 'scale_flip' is for large images"):
        resolve(config, lookup("cifar10"))
    config.data.name = "imagenet2012"
    assert resolve(config, lookup("imagenet2012")).recipe.host_crop == "scale_flip"
