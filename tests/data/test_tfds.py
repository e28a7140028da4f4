"""Data sets in memory: what `load` returns, where it looks, and what it says when it cannot.

The folders of CIFAR, SVHN, ImageNet32 and Fashion-MNIST are made by the real TFDS builders out of tiny
files in the original formats, lying where TFDS looks for files downloaded by hand.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import gzip
import hashlib
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import bucket
import numpy as np
import pytest
import scipy.io
import sklearn.datasets
from tfrecords import to_tfrecord

from binwrn_jax.cli import main as cli
from binwrn_jax.data import loading, prepare
from binwrn_jax.data.builder import CIFAR10_NAMES, open_builder
from binwrn_jax.data.catalog import DATASETS, lookup
from binwrn_jax.data.open import load, open_dataset
from binwrn_jax.data.records import masked_crc
from binwrn_jax.errors import UserError

REAL_DATA = os.environ.get("TFDS_DATA_DIR")
COUNTS = {"train": 12, "test": 6, "validation": 6, "extra": 5}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache with `digits` for the whole file: preparing it takes a second."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def environment(monkeypatch, cache, tmp_path):
    """No test reads or writes the user's folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


# --- the original formats, tiny ---------------------------------------------------------------------------


def examples(split, spec):
    """Random images and labels of a split; the last class is always among them."""
    rng = np.random.default_rng(len(split))
    images = rng.integers(0, 256, (COUNTS[split], *spec.image_shape), dtype=np.uint8)
    labels = rng.integers(0, spec.num_classes, COUNTS[split])
    labels[0] = spec.num_classes - 1
    return images, labels


def tar_gz(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def cifar_rows(data, coarse):
    rows = []
    for image, label in zip(*data, strict=True):
        rows.append(bytes(coarse * [0]) + bytes([label]) + image.transpose(2, 0, 1).tobytes())
    return rows


def write_cifar10(folder, splits):
    rows = cifar_rows(splits["train"], coarse=0)
    files = {f"cifar-10-batches-bin/data_batch_{i + 1}.bin": b"".join(rows[i::5]) for i in range(5)}
    files["cifar-10-batches-bin/test_batch.bin"] = b"".join(cifar_rows(splits["test"], coarse=0))
    files["cifar-10-batches-bin/batches.meta.txt"] = "\n".join(CIFAR10_NAMES).encode()
    tar_gz(folder / "cifar-10-binary.tar.gz", files)


def write_cifar100(folder, splits):
    files = {f"cifar-100-binary/{s}.bin": b"".join(cifar_rows(splits[s], coarse=1)) for s in splits}
    files["cifar-100-binary/coarse_label_names.txt"] = "\n".join(f"coarse{i}" for i in range(20)).encode()
    files["cifar-100-binary/fine_label_names.txt"] = "\n".join(f"fine{i}" for i in range(100)).encode()
    tar_gz(folder / "cifar-100-binary.tar.gz", files)


def write_svhn(folder, splits):
    for split, (images, labels) in splits.items():
        y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]  # SVHN calls zero 10
        scipy.io.savemat(folder / f"{split}_32x32.mat", {"X": np.moveaxis(images, 0, -1), "y": y})


def write_imagenet32(folder, splits):
    for split, short in (("train", "train"), ("validation", "val")):
        images, labels = splits[split]
        content = io.BytesIO()
        flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        np.savez(content, data=flat, labels=labels + 1)  # labels count from 1
        with zipfile.ZipFile(folder / f"Imagenet32_{short}_npz.zip", "w") as archive:
            archive.writestr(f"{short}_data_batch_1.npz", content.getvalue())


def write_mnist(folder, splits):
    for split, short in (("train", "train"), ("test", "t10k")):
        images, labels = splits[split]
        images_file = folder / f"{short}-images-idx3-ubyte.gz"
        images_file.write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        labels_file = folder / f"{short}-labels-idx1-ubyte.gz"
        labels_file.write_bytes(gzip.compress(bytes(8) + labels.astype(np.uint8).tobytes()))


WRITERS = {
    "mnist": (write_mnist, ("train", "test")),
    "fashion_mnist": (write_mnist, ("train", "test")),
    "cifar10": (write_cifar10, ("train", "test")),
    "cifar100": (write_cifar100, ("train", "test")),
    "svhn_cropped": (write_svhn, ("train", "test", "extra")),
    "imagenet32": (write_imagenet32, ("train", "validation")),
}


def write_originals(root, name):
    """Writes the original files of `name` for TFDS to find; returns {split: (images, labels)}."""
    writer, splits = WRITERS[name]
    data = {split: examples(split, DATASETS[name]) for split in splits}
    folder = root / "downloads" / "manual"
    folder.mkdir(parents=True)
    writer(folder, data)
    return data


ACCEPT_TINY_FILES = f"""
from tensorflow_datasets.core.download import download_manager
from tensorflow_datasets.image_classification import mnist
download_manager.DownloadManager._register_or_validate_checksums = lambda *args, **kwargs: None
mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = {COUNTS["train"]}, {COUNTS["test"]}
"""


@pytest.fixture
def accept_tiny_files(monkeypatch):
    """Makes TFDS accept originals with other checksums and sizes than the real ones."""
    from tensorflow_datasets.core.download import download_manager
    from tensorflow_datasets.image_classification import mnist

    accept = lambda *args, **kwargs: None  # noqa: E731
    monkeypatch.setattr(download_manager.DownloadManager, "_register_or_validate_checksums", accept)
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", COUNTS["train"])
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", COUNTS["test"])


@pytest.fixture
def tiny_cifar10(tmp_path, accept_tiny_files):
    """A prepared CIFAR-10 of 12 and 6 images: (root, its version folder)."""
    root = tmp_path / "tfds"
    write_originals(root, "cifar10")
    load("cifar10", "train")
    (folder,) = (root / "cifar10").iterdir()
    return root, folder


def as_set(images, labels):
    pairs = zip(images, labels, strict=True)
    return collections.Counter((image.tobytes(), int(label)) for image, label in pairs)


# --- specs ------------------------------------------------------------------------------------------------


def test_specs_agree_with_the_builders_of_tfds(tmp_path):
    for name, spec in DATASETS.items():
        assert spec.name == name and lookup(name) is spec
        features = open_builder(spec, str(tmp_path)).info.features
        if None not in features["image"].shape:  # photographs of any size are cropped to the spec's
            assert features["image"].shape == ((None, None, 3) if spec.streamed else spec.image_shape)
        assert features["label"].num_classes == spec.num_classes
        assert len(open_dataset(name, str(tmp_path)).info.class_names) == spec.num_classes


def test_unknown_name_gives_the_list_and_the_nearest():
    with pytest.raises(
        UserError,
        match=r"'svhn' \(nearest: svhn_cropped\); known: digits, mnist, .*imagenette; own images: folder:",
    ):
        lookup("svhn")
    with pytest.raises(UserError, match="unknown data set 'zzz'; known: digits"):
        load("zzz", "train")


def test_class_names_need_no_data(tmp_path):
    assert open_dataset("cifar10").info.class_names[:2] == ("airplane", "automobile")
    assert open_dataset("fashion_mnist").info.class_names[0] == "T-shirt/top"
    assert open_dataset("imagenet32").info.class_names[0] == "n02119789"
    assert (
        open_dataset("cifar100").info.class_names[99] == "99"
    )  # TFDS knows the names only once it is prepared
    assert not (tmp_path / "tfds").exists()


# --- digits -----------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    original = sklearn.datasets.load_digits()
    train, test = load("digits", "train"), load("digits", "test")
    assert train.images.shape == (1437, 8, 8, 1) and test.images.shape == (360, 8, 8, 1)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
    assert train.class_names == tuple("0123456789")
    images = np.concatenate([train.images, test.images])
    labels = np.concatenate([train.labels, test.labels])
    scaled = np.array([round(v * 255 / 16) for v in range(17)], np.uint8)[original.images.astype(int)]
    assert as_set(images, labels) == as_set(scaled[..., None], original.target)
    # Stratified: every class gives a fifth of itself, up to one.
    share = np.bincount(test.labels) / np.bincount(labels)
    assert np.all(np.abs(share - 0.2) < 1 / 174)


def test_digits_never_change():
    """The same records in the same order on every machine, or results cannot be compared."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        data = load("digits", split)
        digest.update(data.images.tobytes() + data.labels.astype("<i4").tobytes())
    assert digest.hexdigest() == "4871c416f2208dc04df2d5f97105b5cc852e032b9355eb12766ccae812bdc31d"


def test_splits_limits_and_order():
    train = load("digits", "train")
    again = load("digits", "train")
    np.testing.assert_array_equal(train.images, again.images)
    part = load("digits", "train[100:200]")
    np.testing.assert_array_equal(part.images, train.images[100:200])
    np.testing.assert_array_equal(load("digits", "train", limit=7).labels, train.labels[:7])
    assert len(load("digits", "train+test", limit=10**6).labels) == 1797


@pytest.mark.parametrize("split", ["valid", "train+valid", "train[:1", "", None])
def test_wrong_split_gives_the_list(split):
    with pytest.raises(UserError, match=r"digits has no split .*; available: train, test, sums"):
        load("digits", split)


def test_nothing_to_load():
    with pytest.raises(UserError, match="has no examples"):
        load("digits", "train[5:5]")
    with pytest.raises(UserError, match="has no examples"):
        load("digits", "train[5:1]")
    with pytest.raises(UserError, match="limit must be at least 1"):
        load("digits", "train", limit=0)


LOAD_DIGITS = "from binwrn_jax.data.open import load; assert len(load('digits', 'test').labels) == 360"


def start(code, **environment):
    path = os.pathsep.join([environment.pop("path", ""), str(ROOT)]).strip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_first_use_by_several_processes_at_once(tmp_path):
    processes = [start(LOAD_DIGITS, XDG_CACHE_HOME=str(tmp_path)) for _ in range(3)]
    for process in processes:
        finish(process)
    folder = tmp_path / "binwrn_jax" / "tfds"
    assert [path.name for path in folder.iterdir()] == ["digits"]
    assert [path.name for path in (folder / "digits").iterdir()] == ["1.0.0"]


def test_first_use_where_locks_do_not_work(tmp_path, monkeypatch):
    """Another process is first to rename: the loser uses what the winner has prepared."""
    import tensorflow_datasets as tfds

    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    def prepare_twice(builder, **kwargs):
        original(type(builder)(data_dir=str(builder.data_dir_root)), **kwargs)
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    original = tfds.core.DatasetBuilder.download_and_prepare
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare_twice)
    monkeypatch.setattr(prepare.fcntl, "flock", no_locks)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(load("digits", "test").labels) == 360


def test_killed_while_preparing(tmp_path, monkeypatch):
    hang = """
import time
from binwrn_jax.data import digits
from binwrn_jax.data.open import load
original = digits.Digits._generate_examples
def slow(*args):
    for example in original(*args):
        yield example
        open(MARK, 'w').close()
        time.sleep(60)
digits.Digits._generate_examples = slow
load('digits', 'train')
"""
    mark = tmp_path / "mark"
    process = start(hang.replace("MARK", repr(str(mark))), XDG_CACHE_HOME=str(tmp_path))
    while not mark.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(load("digits", "train").labels) == 1437
    assert not [path.name for path in tmp_path.rglob("*incomplete*")]


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"digits .* cannot be prepared now .*: set XDG_CACHE_HOME"):
        load("digits", "train")


# --- TensorFlow -------------------------------------------------------------------------------------------


def test_no_tensorflow(tmp_path):
    """Neither reading nor preparing imports TensorFlow; one that is installed is not touched either."""
    (tmp_path / "path" / "tensorflow").mkdir(parents=True)
    (tmp_path / "path" / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported')")
    write_originals(tmp_path / "tfds", "cifar100")
    out = finish(
        start(
            "import sys\n"
            "from binwrn_jax.data.open import load\n"
            "assert 'tensorflow_datasets' not in sys.modules, 'importing it must be cheap'\n"
            + ACCEPT_TINY_FILES
            + LOAD_DIGITS
            + "\nassert len(load('cifar100', 'train').labels) == 12"
            + "\nprint('tensorflow' in sys.modules)",
            path=str(tmp_path / "path"),
            XDG_CACHE_HOME=str(tmp_path),
        )
    )
    assert out.splitlines()[-1] == "False"


# --- the real builders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_prepare_and_read(name, tmp_path, accept_tiny_files):
    root = tmp_path / "elsewhere"
    spec = lookup(name)
    data = write_originals(root, name)
    assert {spec.train_split, spec.test_split} <= set(data)
    for split, (images, labels) in data.items():
        loaded = load(name, split, data_dir=str(root))
        assert loaded.images.shape == images.shape and loaded.images.dtype == np.uint8
        assert loaded.labels.dtype == np.int32
        assert as_set(loaded.images, loaded.labels) == as_set(images, labels)
        assert len(loaded.class_names) == spec.num_classes
        assert loaded.class_names == open_dataset(name, str(root)).info.class_names
    assert not list(root.rglob("incomplete*"))
    info = json.loads(next(root.rglob("dataset_info.json")).read_text())
    assert info["fileFormat"] == "array_record"
    assert "tensorflow" not in sys.modules


def test_sum_of_splits(tmp_path, accept_tiny_files):
    write_originals(tmp_path / "tfds", "svhn_cropped")
    assert len(load("svhn_cropped", "train+extra").labels) == 17
    with pytest.raises(UserError, match="available: train, test, extra"):
        load("svhn_cropped", "validation")


def test_names_from_the_prepared_folder(tmp_path, accept_tiny_files):
    write_originals(tmp_path / "tfds", "cifar100")
    assert load("cifar100", "test").class_names[99] == "fine99"
    assert open_dataset("cifar100").info.class_names[99] == "fine99"


def test_data_dir_before_environment_before_home(tiny_cifar10, tmp_path, monkeypatch):
    root, _ = tiny_cifar10
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    assert len(load("cifar10", "train", data_dir=str(root)).labels) == 12
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert len(load("cifar10", "train").labels) == 12
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    root.rename(tmp_path / "tensorflow_datasets")
    assert len(load("cifar10", "train").labels) == 12


def test_tfrecord_folders(tiny_cifar10):
    _, folder = tiny_cifar10
    before = load("cifar10", "train")
    to_tfrecord(folder)
    after = load("cifar10", "train")
    np.testing.assert_array_equal(before.images, after.images)
    np.testing.assert_array_equal(before.labels, after.labels)
    part = load("cifar10", "train[3:7]+test[:2]", limit=5)
    np.testing.assert_array_equal(part.images[:4], before.images[3:7])
    assert len(part.labels) == 5
    path = folder / "cifar10-train.tfrecord-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot read cifar10 'train' near record 0 .*ends within a record"):
        load("cifar10", "train")


@pytest.mark.parametrize("size", [0, 1, 9, 1000])
def test_checksums_of_tfrecords_are_those_of_tensorboardx(size):
    """It writes the same format, with a CRC-32C of its own."""
    record_writer = pytest.importorskip("tensorboardX.record_writer")
    data = np.random.default_rng(size).bytes(size)
    assert masked_crc(data) == record_writer.masked_crc32c(data).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("byte", "message"),
    [
        (0, "the length of record 0 has another checksum"),
        (9, "the length of record 0 has another checksum"),
        (500, "record 0 has another checksum"),
        (-1, "record 11 has another checksum"),
    ],
)
def test_flipped_bits_of_tfrecords_are_found(tiny_cifar10, byte, message):
    _, folder = tiny_cifar10
    to_tfrecord(folder)
    path = folder / "cifar10-train.tfrecord-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[byte] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=message + ".*damaged files; delete that folder") as error:
        load("cifar10", "train")
    assert "\n" not in str(error.value)


# --- buckets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_buckets(tiny_cifar10, tmp_path, file_format):
    """The readers' own clients of Cloud Storage, against a server that lets them read and nothing else."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install '.[gcs]'")
    root, folder = tiny_cifar10
    wanted = load("cifar10", "train")
    if file_format == "tfrecord":
        to_tfrecord(folder)
    code = (
        "import sys; import numpy as np; from binwrn_jax.data.open import open_dataset;"
        "from binwrn_jax.data.tfds import decode_record;"
        "dataset = open_dataset('cifar10', 'gs://bucket/tfds');"
        "data = dataset.arrays('train');"
        "records = dataset.records('train[2:9]').serialized;"
        "one = decode_record(records.read([4])[0], dataset.info)[0];"
        "assert np.array_equal(one, data.images[6]);"
        f"np.savez({str(tmp_path / 'read.npz')!r}, images=data.images, labels=data.labels);"
        "from binwrn_jax.cli.main import main;"
        "sys.exit(main(['data', '--dataset', 'cifar10', '--data-dir', 'gs://bucket/tfds']))"
    )
    with bucket.serve(root.parent) as (environment, requests):
        out = finish(start(code, **environment))
    assert out.startswith("cifar10 is prepared in gs://bucket/tfds/cifar10/") and "train: 12 images" in out
    assert any(f"cifar10-train.{file_format}" in line for line in requests)
    with np.load(tmp_path / "read.npz") as read:
        np.testing.assert_array_equal(read["images"], wanted.images)
        np.testing.assert_array_equal(read["labels"], wanted.labels)


def test_what_is_not_in_a_bucket_is_not_prepared_there(tmp_path):
    pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install '.[gcs]'")
    code = (
        "import sys; from binwrn_jax.cli.main import main;"
        "sys.exit(main(['data', '--dataset', 'cifar10', '--data-dir', 'gs://bucket/tfds']))"
    )
    with bucket.serve(tmp_path) as (environment, _):
        process = start(code, **environment)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err == (
        "error: cifar10 is not prepared in gs://bucket/tfds: prepare it in a local folder (binwrn data) and "
        "copy it there\n"
    )
    assert not list(tmp_path.iterdir())


def test_buckets_need_gcsfs(monkeypatch, capsys):
    """The data are where they are: no line says to delete them."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    from etils.epath import backend

    backend.fsspec_backend._get_filesystem.cache_clear()
    assert cli.main(["data", "--dataset", "cifar10", "--data-dir", "gs://bucket/tfds"]) == 2
    assert capsys.readouterr().err == "error: reading gs://bucket/tfds needs gcsfs: pip install '.[gcs]'\n"


# --- ImageNet and its relatives ---------------------------------------------------------------------------


def jpeg(seed, size=(30, 40), mode="RGB", kind="JPEG"):
    import PIL.Image

    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def tar(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def imagenet_tars(tmp_path):
    """ILSVRC 2012 in its two files, tiny; the odd images have the names of those in the original."""
    manual = tmp_path / "manual"
    manual.mkdir()
    classes = {
        "n01440764": {"n01440764_1.JPEG": jpeg(1), "n01440764_2.JPEG": jpeg(2, mode="L")},
        "n01739381": {"n01739381_1309.JPEG": jpeg(3, mode="CMYK")},
        "n02105855": {"n02105855_2933.JPEG": jpeg(4, kind="PNG"), "n02105855_7.JPEG": jpeg(5)},
    }
    train = tar({f"{synset}.tar": tar(files) for synset, files in classes.items()})
    (manual / "ILSVRC2012_img_train.tar").write_bytes(train)
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in (3, 1, 2)]
    validation = {name: jpeg(int(name[-6])) for name in names}
    (manual / "ILSVRC2012_img_val.tar").write_bytes(tar(validation))
    return manual, classes, validation


def stored(name, split):
    """{file name: (encoded image, label)} of a prepared split."""
    from tensorflow_datasets.proto import tf_example_pb2

    source = open_dataset(name).records(split).serialized
    found = {}
    for record in source.read(range(len(source))):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        key = feature["file_name"].bytes_list.value[0].decode()
        found[key] = feature["image"].bytes_list.value[0], feature["label"].int64_list.value[0]
    return found


def test_prepare_imagenet2012(imagenet_tars, tmp_path, monkeypatch, capsys):
    import PIL.Image
    from tensorflow_datasets.core import shuffle

    from binwrn_jax.cli.main import main

    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 2000)  # the real one has to sort on disk
    manual, classes, validation = imagenet_tars
    assert main(["data", "--dataset", "imagenet2012", "--manual-dir", str(manual)]) == 0
    out = capsys.readouterr().out
    (folder,) = (tmp_path / "tfds" / "imagenet2012").iterdir()
    assert f"imagenet2012 has been prepared in {folder}\n" in out
    assert "train: 5 images of 1,281,167: a part" in out and "validation: 3 images of 50,000" in out
    assert "tensorflow" not in sys.modules
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".txt", ".array_record-00000-of-00001"}
    assert folder.name == "5.1.0" and not list(folder.parent.glob("incomplete*"))

    names = open_dataset("imagenet2012").info.class_names
    train = stored("imagenet2012", "train")
    assert len(train) == 5
    for synset, files in classes.items():
        for name, original in files.items():
            encoded, label = train[name]
            assert names[label] == synset
            if name in ("n01739381_1309.JPEG", "n02105855_2933.JPEG"):
                image = PIL.Image.open(io.BytesIO(encoded))
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (40, 30))
            else:
                assert encoded == original  # bytes as they were
    found = stored("imagenet2012", "validation")
    assert {name: encoded for name, (encoded, _) in found.items()} == validation
    # The first three of the official validation labels, in order of names.
    assert [names[found[name][1]] for name in sorted(found)] == ["n01751748", "n09193705", "n02105855"]

    assert main(["data", "--dataset", "imagenet2012"]) == 0  # nothing left to do, and no tars needed
    assert "imagenet2012 is prepared in" in capsys.readouterr().out


def test_what_has_to_be_downloaded_by_hand(imagenet_tars, tmp_path, capsys):
    from binwrn_jax.cli.main import main

    manual, _, _ = imagenet_tars
    (manual / "ILSVRC2012_img_train.tar").unlink()
    folder = tmp_path / "prepared here"
    assert main(["data", "imagenet2012", "--data-dir", str(folder), "--manual-dir", str(manual)]) == 2
    message = capsys.readouterr().err
    # The command that it advises reads and writes the same folders.
    command = shlex.split(message.split("`")[1])
    assert command == [
        "binwrn", "data", "imagenet2012", "--data-dir", str(folder), "--manual-dir", str(manual),
    ]  # fmt: skip
    assert "get ILSVRC2012_img_train.tar (147.9 GB) from https://image-net.org" in message
    assert "img_val.tar" not in message and f"into {manual}" in message and message.count("\n") == 1
    with pytest.raises(
        UserError, match=r"img_train.tar .*and ILSVRC2012_img_val.tar .*binwrn data imagenet2012 "
    ):
        load("imagenet2012", "validation", limit=1)
    assert not (tmp_path / "tfds").exists()


def test_prepare_imagenette_and_imagenet_v2(tmp_path, accept_tiny_files):
    folder = tmp_path / "tfds" / "downloads" / "manual"
    folder.mkdir(parents=True)
    files = {f"imagenette2/{split}/n01440764/{split}_1.JPEG": jpeg(1) for split in ("train", "val")}
    files["imagenette2/train/n03425413/other_2.JPEG"] = jpeg(2)
    tar_gz(folder / "imagenette2.tgz", files)
    top = "imagenetv2-matched-frequency-format-val"
    tar_gz(folder / "imagenetv2-matched-frequency.tar.gz", {f"{top}/{c}/a.jpeg": jpeg(c) for c in (0, 999)})
    assert open_dataset("imagenette").counts == {"train": 2, "validation": 1}
    assert sorted(load("imagenette", "train").labels) == [0, 7]
    assert open_dataset("imagenet_v2").counts == {"test": 2}
    loaded = load("imagenet_v2", "test")
    assert loaded.images.shape == (2, 224, 224, 3) and sorted(loaded.labels) == [0, 999]
    assert "tensorflow" not in sys.modules


# --- what can be wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["svhn_cropped", "imagenet32"])
def test_no_network(name, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"not prepared in .*Failed to resolve.*: set TFDS_DATA_DIR or"):
        load(name, "train")
    assert time.monotonic() - begin < 10
    files = [path for path in (tmp_path / "tfds").rglob("*") if path.is_file()]
    assert [path.name for path in files] in ([], ["metadata.json"])  # TFDS notes the default configuration
    assert not list(tmp_path.rglob("*.tmp.*")) and not list(tmp_path.rglob("incomplete*"))


def test_the_message_is_one_line(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left\non device")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        load("cifar100", "train")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tfds").exists()


def test_wrong_checksum(tmp_path):
    write_originals(tmp_path / "tfds", "cifar10")
    with pytest.raises(UserError, match="NonMatchingChecksumError"):
        load("cifar10", "train")
    assert not (tmp_path / "tfds" / "cifar10").exists()


def shard(folder):
    return folder / "cifar10-train.array_record-00000-of-00001"


def cut_shard(folder):
    shard(folder).write_bytes(shard(folder).read_bytes()[: shard(folder).stat().st_size // 2])


def empty_shard(folder):
    shard(folder).write_bytes(b"")


def overwrite_shard(folder):
    content = bytearray(shard(folder).read_bytes())
    content[20000:30000] = bytes(10000)
    shard(folder).write_bytes(content)


def remove_shard(folder):
    shard(folder).unlink()


def miscount(folder):
    info = folder / "dataset_info.json"
    assert '"12"' in info.read_text()
    info.write_text(info.read_text().replace('"12"', '"13"'))


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        (cut_shard, "damaged files; delete that folder and prepare it again"),
        (overwrite_shard, "damaged files; delete that folder and prepare it again"),
        (empty_shard, "a file is too short: see whether copying it has ended"),
        (miscount, "a file is too short: see whether copying it has ended"),
        (remove_shard, "a file is not there: see whether the disk is mounted"),
    ],
)
def test_damaged_records(tiny_cifar10, damage, advice):
    """Only what a checksum has proven damaged is to be deleted."""
    _, folder = tiny_cifar10
    damage(folder)
    with pytest.raises(UserError, match=r"cannot read cifar10 'train' .*" + advice) as error:
        load("cifar10", "train")
    assert "\n" not in str(error.value)
    assert ("delete" in str(error.value)) == ("delete" in advice)


# Root may read everything: this drops that right (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) for what it starts.
AS_OTHERS = """
import ctypes, os, sys
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def run_data(*options, **environment):
    """``binwrn data --dataset cifar10`` as a process of its own, with the rights of any user."""
    program = ["-m", "binwrn_jax", "data", "--dataset", "cifar10", *options]
    return subprocess.run(
        [sys.executable, "-c", AS_OTHERS, *program],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("what", ["records", "description", "folder"])
def test_files_that_may_not_be_read_are_not_to_be_deleted(tiny_cifar10, what):
    _, folder = tiny_cifar10
    target = {"records": shard(folder), "description": folder / "dataset_info.json", "folder": folder}[what]
    mode = target.stat().st_mode
    target.chmod(0)
    try:
        done = run_data()
    finally:
        target.chmod(mode)
    if done.returncode == 0:
        pytest.skip("this user may read everything")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "Permission denied" in done.stderr, done.stderr
    assert "this user may not read the files" in done.stderr
    assert "delete" not in done.stderr


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_the_owner_of_a_file_need_not_be_known(tiny_cifar10, monkeypatch, file_format):
    import grp
    import pwd

    _, folder = tiny_cifar10
    if file_format == "tfrecord":
        to_tfrecord(folder)

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(grp, "getgrgid", unknown)
    assert len(load("cifar10", "train").labels) == 12
    assert sum(1 for _ in open_dataset("cifar10").records("train").read(range(12))) == 12
    assert cli.main(["data", "cifar10"]) == 0


def too_many(folder):
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"12"', '"11"'))


def cut_record(folder):
    path = next(folder.glob("cifar10-train*"))
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (miscount, "has 12 records, but dataset_info.json says 13"),
        (too_many, "has 12 records, but dataset_info.json says 11"),
        (cut_record, "cifar10-train"),
    ],
)
def test_the_command_finds_counts_and_files_that_lie(tiny_cifar10, capsys, file_format, lie, message):
    _, folder = tiny_cifar10
    if file_format == "tfrecord":
        to_tfrecord(folder)
    lie(folder)
    assert cli.main(["data", "cifar10"]) == 2
    error = capsys.readouterr().err
    assert message in error and f"cifar10-train.{file_format}" in error and error.count("\n") == 1


def test_the_command_finds_images_that_cannot_be_decoded(tiny_cifar10, capsys):
    _, folder = tiny_cifar10
    assert cli.main(["data", "cifar10", "--decode"]) == 0
    assert "all images can be decoded" in capsys.readouterr().out
    rewrite(folder, "cifar10", np.zeros((32, 32, 3), np.uint8), 99)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"12"', '"1"'))
    assert cli.main(["data", "cifar10"]) == 0
    assert cli.main(["data", "cifar10", "--decode"]) == 2
    error = capsys.readouterr().err
    assert "near record 0" in error and "label 99, but cifar10 has 10 classes" in error
    assert "files of another data set or version" in error and "delete" not in error


def garble_info(folder):
    (folder / "dataset_info.json").write_text('{"name": ')


def remove_info(folder):
    (folder / "dataset_info.json").unlink()


@pytest.mark.parametrize("damage", [garble_info, remove_info])
def test_damaged_folder(tiny_cifar10, damage):
    _, folder = tiny_cifar10
    damage(folder)
    with pytest.raises(UserError, match=r"folder of cifar10 below .* cannot be read") as error:
        load("cifar10", "train")
    assert "\n" not in str(error.value)


def rewrite(folder, spec_name, image, label):
    """Puts one record with this image and label into the train split of a prepared folder."""
    import PIL.Image
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    png = io.BytesIO()
    PIL.Image.fromarray(image).save(png, "PNG")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(png.getvalue())
    example.features.feature["label"].int64_list.value.append(label)
    path = next(folder.glob(f"{spec_name}-train.array_record-*"))
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    writer.write(example.SerializeToString())
    writer.close()


@pytest.mark.parametrize(
    ("shape", "label", "message"),
    [
        ((64, 64, 3), 0, r"image of shape \(64, 64, 3\), but cifar10 has \(32, 32, 3\)"),
        ((32, 32), 0, r"image of shape \(32, 32, 1\)"),
        ((32, 32, 3), 10, "label 10, but cifar10 has 10 classes"),
        ((32, 32, 3), -1, "label -1"),
    ],
)
def test_records_that_disagree_with_the_spec(tiny_cifar10, shape, label, message):
    _, folder = tiny_cifar10
    rewrite(folder, "cifar10", np.zeros(shape, np.uint8), label)
    with pytest.raises(UserError, match=message):
        load("cifar10", "train", limit=1)


def test_features_that_disagree_with_the_spec(tiny_cifar10, monkeypatch):
    wrong = dataclasses.replace(DATASETS["cifar10"], num_classes=11)
    monkeypatch.setitem(DATASETS, "cifar10", wrong)
    with pytest.raises(UserError, match=r"holds images \(32, 32, 3\) of 10 classes, but .* of 11"):
        load("cifar10", "train")


def test_other_formats(tiny_cifar10):
    _, folder = tiny_cifar10
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"riegeli"'))
    with pytest.raises(UserError, match="holds riegeli files: only array_record and tfrecord are read"):
        load("cifar10", "train")


def test_long_loads_say_so(caplog, monkeypatch):
    monkeypatch.setattr(loading, "_SECONDS_BETWEEN_MESSAGES", 0.001)
    with caplog.at_level("INFO", logger=loading.__name__):
        load("digits", "train")
    assert "loaded digits train: 1437 images" in caplog.text


# --- real data --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL_DATA, reason="TFDS_DATA_DIR is not set")
@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_real_data(name):
    spec = lookup(name)
    if not (Path(REAL_DATA) / spec.tfds_name).exists():
        pytest.skip(f"{name} is not prepared in TFDS_DATA_DIR")
    data = load(name, "test[:200]", data_dir=REAL_DATA)
    assert data.images.shape == (200, *spec.image_shape)
    assert data.images.min() == 0 and data.images.max() == 255
    assert set(data.labels) == set(range(10))
    # The reader here and TFDS's own decoding agree.
    own = open_builder(spec, REAL_DATA).as_data_source("test")
    for index in range(0, 200, 20):
        np.testing.assert_array_equal(data.images[index], own[index]["image"])
        assert data.labels[index] == own[index]["label"]
