"""Data sets: what they are, and where TFDS has prepared them, or prepares them without TensorFlow.

    data = load("cifar10", "train")          # Arrays: images uint8 [50000, 32, 32, 3], labels int32 [50000]

Where the data come from: the `data_dir` argument, else the environment variable TFDS_DATA_DIR, else
`~/tensorflow_datasets`. What is not prepared there is downloaded and prepared by TFDS at first use, as
ArrayRecord. `digits` needs no download and always lives in the cache, `~/.cache/binwrn_jax/tfds` (or below
XDG_CACHE_HOME). Prepared TFRecord folders are read as well. ImageNet is too large for memory: see
`open_split`, or `load` with a limit.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import functools
import glob
import io
import logging
import math
import os
import shutil
import sys
import time
import types
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from binwrn_jax.data import jpeg as imagenet
from binwrn_jax.data.records import Records, allow_open_files, open_records, parse
from binwrn_jax.errors import UserError
from binwrn_jax.system.cache import user_cache

# tensorflow_datasets takes most of a second to import: only the functions that need it import it.

log = logging.getLogger(__name__)


class DatasetSpec(NamedTuple):
    """Static facts about a data set, known without any data on disk."""

    name: str  # canonical public name: 'cifar10'
    tfds_name: str  # what TFDS calls it, with its config: 'imagenet_resized/32x32'
    image_shape: tuple[int, int, int]  # height, width, channels
    num_classes: int
    train_split: str
    test_split: str  # the split whose error is reported
    streamed: bool = False  # read from disk as needed; images of any size, cropped to image_shape

    @property
    def resize(self) -> str:
        """How an image of another size becomes one of `image_shape`, see docs/packed-format.md."""
        return "center_crop" if self.streamed else "bilinear"


class Arrays(NamedTuple):
    """A split in memory, in record order."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int32 [N], 0 <= label < num_classes
    class_names: tuple[str, ...]  # num_classes names


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec("digits", "digits", (8, 8, 1), 10, "train", "test"),
        DatasetSpec("mnist", "mnist", (28, 28, 1), 10, "train", "test"),
        DatasetSpec("fashion_mnist", "fashion_mnist", (28, 28, 1), 10, "train", "test"),
        DatasetSpec("cifar10", "cifar10", (32, 32, 3), 10, "train", "test"),
        DatasetSpec("cifar100", "cifar100", (32, 32, 3), 100, "train", "test"),
        DatasetSpec("svhn_cropped", "svhn_cropped", (32, 32, 3), 10, "train", "test"),  # and 'extra'
        DatasetSpec("imagenet32", "imagenet_resized/32x32", (32, 32, 3), 1000, "train", "validation"),
        DatasetSpec("imagenet2012", "imagenet2012", (224, 224, 3), 1000, "train", "validation", True),
        DatasetSpec(  # a second test set for networks trained on imagenet2012: there is nothing to train on
            "imagenet_v2", "imagenet_v2/matched-frequency", (224, 224, 3), 1000, "test", "test", True
        ),
        DatasetSpec("imagenette", "imagenette/full-size-v2", (224, 224, 3), 10, "train", "validation", True),
    )
}

# TFDS reads these names from the download, so a prepared folder without its label file has lost them.
_CIFAR10_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

# What no program may download: the files, their bytes, and where a person gets them.
BY_HAND: dict[str, tuple[str, dict[str, int]]] = {
    "imagenet2012": (
        "https://image-net.org/download-images (registration needed; non-commercial research only)",
        {"ILSVRC2012_img_train.tar": 147_897_477_120, "ILSVRC2012_img_val.tar": 6_744_924_160},
    ),
}
# Images that the whole of a data set has, where prepared folders of a part of it are about.
WHOLE = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}

_IMAGENET_COMMON = "tensorflow_datasets.datasets.imagenet2012.imagenet_common"
_RECORDS_PER_READ = 4096
_MAX_BYTES = 16e9  # of a set in memory: ImageNet32 has 4 GB
_SECONDS_BETWEEN_MESSAGES = 2.0


def dataset_spec(name: str) -> DatasetSpec:
    """Returns the facts about the data set `name`, without looking at any disk.

    >>> dataset_spec("cifar10").image_shape
    (32, 32, 3)

    Raises:
      UserError: there is no such data set; the message lists the names and says which is nearest.
    """
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(str(name), DATASETS, n=1, cutoff=0.4)
    hint = f" (nearest: {near[0]})" if near else ""
    raise UserError(f"unknown data set '{name}'{hint}; known: {', '.join(DATASETS)}")


def class_names(name: str, data_dir: str | None = None) -> tuple[str, ...]:
    """Returns the num_classes names of the classes; never downloads or prepares anything.

    Source: the TFDS builder, or the label file of the prepared folder where the names come with the
    download. Where neither knows them (CIFAR-100 that is not prepared) the names are '0', '1', ...

    Raises:
      UserError: unknown data set, or its prepared folder cannot be read.
    """
    spec = dataset_spec(name)
    return _class_names(spec, _open_builder(spec, _data_root(spec, data_dir)))


def load(name: str, split: str, data_dir: str | None = None, limit: int | None = None) -> Arrays:
    """Loads a whole split into memory, downloading and preparing the data set at first use.

    Args:
      name: a key of `DATASETS`.
      split: a TFDS split: 'train', 'train+extra', 'train[:1000]', 'train[-10%:]'.
      data_dir: folder of prepared TFDS data sets; default as described at the top of this module.
        `digits` ignores it.
      limit: read only this many examples, the first ones.

    Returns:
      Arrays: images uint8 [N, H, W, C], labels int32 [N], the class names; in record order, the same
      every time (TFDS shuffled the records, by a hash of their keys, when it prepared them).

    Raises:
      UserError: unknown data set or split, nothing in the split, data missing and not downloadable,
        a prepared folder that is damaged or does not agree with `dataset_spec(name)`.
    """
    spec = dataset_spec(name)
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    builder = _prepared_builder(spec, _data_root(spec, data_dir))
    count = _count(spec, builder, split)
    count = count if limit is None else min(count, limit)
    if count * math.prod(spec.image_shape) > _MAX_BYTES:
        raise UserError(f"{count} images of {name} are too many for memory: give a limit")

    images = np.empty((count, *spec.image_shape), np.uint8)
    labels = np.empty(count, np.int32)
    start = said = time.monotonic()
    index = 0
    decode = _decode_streamed if spec.streamed else _decode
    with _damaged(spec, split, builder, lambda: index):
        for index, record in enumerate(_read_records(builder, split, count)):
            images[index], labels[index] = decode(record, spec)
            if time.monotonic() - said > _SECONDS_BETWEEN_MESSAGES:
                said = time.monotonic()
                log.info("loading %s %s: %d of %d images", name, split, index + 1, count)
        if index + 1 != count:
            raise ValueError(f"{count} records expected")
    if time.monotonic() - start > _SECONDS_BETWEEN_MESSAGES:
        log.info("loaded %s %s: %d images in %.1f s", name, split, count, time.monotonic() - start)
    return Arrays(images, labels, _class_names(spec, builder))


def open_split(name: str, split: str, data_dir: str | None = None) -> Records:
    """Opens a split for random access, downloading and preparing the data set at first use.

    Args and errors as of `load`. Offsets of TFRecords are kept on disk, see `binwrn_jax.data.records`.
    """
    spec = dataset_spec(name)
    builder = _prepared_builder(spec, _data_root(spec, data_dir))
    _count(spec, builder, split)
    with _damaged(spec, split, builder, lambda: 0):
        return open_records(builder, split, cache_offsets=True)


def _count(spec: DatasetSpec, builder: Any, split: str) -> int:
    """The number of examples in a split; there is at least one."""
    try:
        count = int(builder.info.splits[split].num_examples)
    except Exception as error:  # KeyError, ValueError, AssertionError: it depends on what is wrong with it
        raise UserError(
            f"{spec.name} has no split '{split}'; available: {', '.join(builder.info.splits)}, "
            "sums of them, and slices such as 'train[:1000]'"
        ) from error
    if count < 1:  # TFDS counts a slice such as [5:1] negative
        raise UserError(f"split '{split}' of {spec.name} in {builder.data_dir} has no examples")
    return count


@contextlib.contextmanager
def _damaged(spec: DatasetSpec, split: str, builder: Any, index: Callable[[], int]) -> Iterator[None]:
    """Whatever goes wrong in reading becomes one line."""
    try:
        yield
    except Exception as error:  # the readers and decoders raise a dozen types, all for damaged files
        cause = "damaged or foreign files; delete that folder and prepare it again"
        if _is_remote(builder.data_dir):
            cause = "no connection, or damaged files; see which"
        raise UserError(
            f"cannot read {spec.name} '{split}' near record {index()} in {builder.data_dir} "
            f"({_reason(error)}): {cause}, or set TFDS_DATA_DIR or --config.data.dir to a good one"
        ) from error


def is_prepared(name: str, data_dir: str | None = None) -> bool:
    """Whether `load` would find the data set at hand: it is prepared, or needs no download.

    Raises:
      UserError: unknown data set, or its prepared folder cannot be read.
    """
    spec = dataset_spec(name)
    return name == "digits" or _open_builder(spec, _data_root(spec, data_dir)).is_prepared()


def prepare(
    name: str, data_dir: str | None = None, manual_dir: str | None = None
) -> tuple[str, dict[str, int]]:
    """Downloads and prepares a data set where that is not done yet.

    Args:
      name: a key of `DATASETS`.
      data_dir: see `load`.
      manual_dir: folder of the files that were downloaded by hand; default `<data_dir>/downloads/manual`.

    Returns:
      The folder of the prepared data, and the number of images of each split.

    Raises:
      UserError: as `load`; what has to be downloaded by hand and where to put it.
    """
    spec = dataset_spec(name)
    builder = _prepared_builder(spec, _data_root(spec, data_dir), manual_dir)
    return str(builder.data_dir), {s: int(info.num_examples) for s, info in builder.info.splits.items()}


# --- the folder and its builder -------------------------------------------------------------------------


def _data_root(spec: DatasetSpec, data_dir: str | None) -> str:
    """The folder that holds `<tfds name>/<version>/`."""
    if spec.name == "digits":
        return str(user_cache("tfds"))
    # Read now: TFDS reads the variable only once, when it is imported.
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return os.path.expanduser(root)


def _is_remote(folder: Any) -> bool:
    """Whether it is one of a bucket, which is not ours to delete or to write."""
    return "://" in os.fspath(folder)


def _open_builder(spec: DatasetSpec, root: str) -> Any:
    """Returns the TFDS builder of `spec`, prepared or not."""
    import tensorflow_datasets as tfds

    try:
        if spec.name == "digits":
            from binwrn_jax.data.digits import Digits  # our own class: nothing to look up in a registry

            builder = Digits(data_dir=root)
        else:
            builder = tfds.builder(spec.tfds_name, data_dir=root)
        if builder.data_path.exists() and not builder.is_prepared():
            raise FileNotFoundError("dataset_info.json or features.json is missing")
    except ImportError as error:
        if not _is_remote(root):
            raise
        raise UserError(f"reading {root} needs gcsfs: pip install '.[gcs]'") from error
    except Exception as error:
        raise UserError(
            f"the prepared folder of {spec.name} below {root} cannot be read ({_reason(error)}): "
            f"{'see why' if _is_remote(root) else 'delete it'}, or set TFDS_DATA_DIR or --config.data.dir to "
            "another folder"
        ) from error
    return builder


def _prepared_builder(spec: DatasetSpec, root: str, manual_dir: str | None = None) -> Any:
    """Returns the TFDS builder of `spec` with its data on disk, preparing them first where they are not."""
    builder = _open_builder(spec, root)
    if not builder.data_path.exists():
        builder = _prepare(spec, root, manual_dir)
    features = builder.info.features
    found = tuple(features["image"].shape), features["label"].num_classes
    if found != ((None, None, 3) if spec.streamed else spec.image_shape, spec.num_classes):
        raise UserError(
            f"{builder.data_dir} holds images {found[0]} of {found[1]} classes, but {spec.name} has "
            f"{spec.image_shape} of {spec.num_classes}: set TFDS_DATA_DIR or --config.data.dir to another "
            "folder"
        )
    return builder


def _class_names(spec: DatasetSpec, builder: Any) -> tuple[str, ...]:
    names = tuple(builder.info.features["label"].names)
    return _CIFAR10_NAMES if spec.name == "cifar10" and names[0] == "0" else names


def _reason(error: Exception) -> str:
    """The error in one line of at most 200 characters."""
    inner = error.args[0] if error.args else None
    error = getattr(inner, "reason", None) or error  # requests wraps urllib3's error, which is shorter
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:197] + "..."


# --- reading --------------------------------------------------------------------------------------------


def _read_records(builder: Any, split: str, count: int) -> Iterator[bytes]:
    """Yields the first `count` serialized tf.train.Examples of `split`."""
    records = open_records(builder, split)
    for start in range(0, min(count, len(records)), _RECORDS_PER_READ):
        yield from records.read(range(start, min(start + _RECORDS_PER_READ, count)))


def _decode(record: bytes, spec: DatasetSpec) -> tuple[np.ndarray, int]:
    """Decodes a tf.train.Example into its image, uint8 [H, W, C], and its label.

    By hand and not by TFDS's features, which take 4.7 s for CIFAR-10 where this takes 3 to 4 s, check no
    shape and no label, and need OpenCV or warn that it is missing.
    """
    import PIL.Image

    png, label = parse(record)
    if not 0 <= label < spec.num_classes:
        raise ValueError(f"label {label}, but {spec.name} has {spec.num_classes} classes")
    image = np.asarray(PIL.Image.open(io.BytesIO(png), formats=("PNG",)))
    if image.ndim == 2:  # PIL gives grey images no channel axis
        image = image[..., None]
    if image.shape != spec.image_shape:
        raise ValueError(f"image of shape {image.shape}, but {spec.name} has {spec.image_shape}")
    return image, label


def _decode_streamed(record: bytes, spec: DatasetSpec) -> tuple[np.ndarray, int]:
    """The central crop of a large image, uint8 [224, 224, 3], and its label."""
    encoded, label = parse(record)
    if not 0 <= label < spec.num_classes:
        raise ValueError(f"label {label}, but {spec.name} has {spec.num_classes} classes")
    return imagenet.decode(encoded, [imagenet.center_box(*imagenet.image_size(encoded))])[0], label


# --- preparing ------------------------------------------------------------------------------------------


def _check_by_hand(spec: DatasetSpec, manual: str) -> None:
    """Says what has to be downloaded by hand, if something has and is not there."""
    where, files = BY_HAND.get(spec.name, ("", {}))
    missing = [file for file in files if not os.path.exists(os.path.join(manual, file))]
    if missing:
        wanted = " and ".join(f"{file} ({files[file] / 1e9:.1f} GB)" for file in missing)
        raise UserError(
            f"{spec.name} has to be downloaded by hand: get {wanted} from {where} into {manual}, then run "
            f"`binwrn data --dataset {spec.name} --manual-dir {manual}`; or set TFDS_DATA_DIR or "
            "--config.data.dir to a folder where TFDS has prepared it"
        )


def _prepare(spec: DatasetSpec, root: str, manual_dir: str | None) -> Any:
    """Downloads and prepares the data set below `root` as ArrayRecord and returns its builder.

    Safe at any interruption: TFDS writes into a folder `incomplete.*` and renames it when all is there.
    Safe when several processes come at once: one prepares, the others wait for it.
    """
    if _is_remote(root):
        raise UserError(
            f"{spec.name} is not prepared in {root}: prepare it in a local folder (binwrn data) and copy it "
            "there"
        )
    manual = os.path.abspath(os.path.expanduser(manual_dir or os.path.join(root, "downloads", "manual")))
    _check_by_hand(spec, manual)
    log.info("preparing %s in %s (once)", spec.name, root)
    import tensorflow_datasets as tfds

    created = not os.path.exists(root)
    try:
        os.makedirs(root, exist_ok=True)
        with _lock(root):
            builder = _open_builder(spec, root)
            if not builder.data_path.exists():  # else another process has just done it
                try:
                    with _without_tensorflow(builder), _quiet(spec.name == "digits"):
                        builder.download_and_prepare(
                            file_format="array_record",
                            download_config=tfds.download.DownloadConfig(manual_dir=manual),
                        )
                finally:
                    _remove_leftovers(Path(root), builder)
    except UserError:
        raise
    except Exception as error:  # no network, HTTP errors, wrong checksum, no permission, disk full, ...
        if created:
            with contextlib.suppress(OSError):
                os.rmdir(root)  # only if empty
        builder = _open_builder(spec, root)
        if builder.data_path.exists():
            return builder  # no locks on this file system, and another process was first to rename
        if spec.name == "digits":
            todo = "set XDG_CACHE_HOME to a folder that can be written"
        else:
            todo = (
                "set TFDS_DATA_DIR or --config.data.dir to a folder where TFDS has prepared it, or put the "
                f"original files into {manual}"
            )
        raise UserError(
            f"{spec.name} is not prepared in {root} and cannot be prepared now ({_reason(error)}): {todo}"
        ) from error
    return _open_builder(spec, root)  # anew: names and sizes come from the prepared folder


@contextlib.contextmanager
def _lock(folder: str) -> Iterator[None]:
    """Holds an exclusive lock on a folder; it ends with the process, however that ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Hides TFDS's progress bars and prints; for work of a second that needs none."""
    with contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


@contextlib.contextmanager
def _without_tensorflow(builder: Any) -> Iterator[None]:
    """Lets TFDS prepare a data set without TensorFlow, and notice within a minute that there is no network.

    TFDS 4.9.10 reads ArrayRecord without TensorFlow, but while it prepares it calls it to open and list files
    (in its extractor, in its shuffler, which sorts more than 1 GB through 1000 temporary files, and in many
    builders), to encode arrays as PNG, and to re-encode the few images of ImageNet that are no RGB JPEGs.
    Stand-ins for just these calls do the same with Python and PIL.
    """
    import PIL.Image
    from tensorflow_datasets.core import shuffle, utils
    from tensorflow_datasets.core.download import downloader, extractor
    from tensorflow_datasets.core.features import image_feature

    def encode_png(encoder: Any, array: np.ndarray) -> bytes:
        array = array[..., 0] if array.shape[-1] == 1 else array  # PIL's grey images have no channel axis
        return encoder._encode_pil_image(PIL.Image.fromarray(array))

    def to_rgb_jpeg(encoded: bytes, quality: int = 100) -> bytes:
        buffer = io.BytesIO()
        PIL.Image.open(io.BytesIO(encoded)).convert("RGB").save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()

    gfile = types.SimpleNamespace(
        GFile=open, exists=os.path.exists, remove=os.remove, glob=glob.glob,
        listdir=lambda path: sorted(os.listdir(path)),
    )  # fmt: skip
    tf = types.SimpleNamespace(
        io=types.SimpleNamespace(gfile=gfile),
        compat=types.SimpleNamespace(as_text=str),
        errors=types.SimpleNamespace(ResourceExhaustedError=MemoryError),  # open files: see below
    )
    # TFDS waits for ever for a server that does not answer, and tries 10 times over 200 s.
    impatient = functools.partial(downloader._open_with_requests, timeout=(10, 60))
    patches: list[tuple[Any, str, Any]] = [
        (extractor, "tf", tf),
        (shuffle, "tf", tf),
        (image_feature._ImageEncoder, "_encode_image", encode_png),
        (utils, "jpeg_cmyk_to_rgb", to_rgb_jpeg),
        (utils, "png_to_jpeg", to_rgb_jpeg),
        (downloader, "_open_with_requests", impatient),
        (downloader, "MAX_RETRIES", 2),
    ]
    for module in (sys.modules[type(builder).__module__], sys.modules.get(_IMAGENET_COMMON)):
        if hasattr(module, "tf"):
            patches.append((module, "tf", tf))
    allow_open_files()  # those 1000 are open at once
    with contextlib.ExitStack() as stack:
        for owner, name, stand_in in patches:
            stack.enter_context(unittest.mock.patch.object(owner, name, stand_in))
        yield


def _remove_leftovers(root: Path, builder: Any) -> None:
    """Removes the half-written downloads and the empty folders of a preparation; keeps complete downloads."""
    downloads = root / "downloads"
    for partial in (downloads / builder.name).glob("*.tmp.*"):
        shutil.rmtree(partial, ignore_errors=True)
    data_path = Path(builder.data_path)
    for folder in (downloads / builder.name, downloads / "extracted", downloads, *data_path.parents):
        if folder == root:
            break
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if empty
