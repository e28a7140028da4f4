"""Preparing data sets with TFDS, as ArrayRecord and without TensorFlow.

The public functions of TFDS 4.9.10 would import TensorFlow. While a data set is prepared, these names, which
are private or belong to its modules, are replaced, each for the reason given:

* ``core.download.extractor.tf``, ``core.shuffle.tf`` and ``tf`` of the builder's own module: they open, list
  and remove local files through TensorFlow; plain Python does the same.
* ``core.features.image_feature._ImageEncoder._encode_image`` (and ``_encode_pil_image``, which it calls):
  arrays become PNGs through TensorFlow, PIL images through PIL.
* ``core.utils.jpeg_cmyk_to_rgb`` and ``png_to_jpeg``: 23 images of ImageNet are encoded anew by TensorFlow.
* ``core.download.downloader._open_with_requests`` and ``MAX_RETRIES``: TFDS waits for ever for a server that
  does not answer, and has no option for a time limit.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import io
import logging
import os
import shlex
import shutil
import sys
import types
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.data.builder import open_builder
from binwrn_jax.data.catalog import MANUAL_DOWNLOADS
from binwrn_jax.data.dataset import DatasetInfo
from binwrn_jax.data.failures import is_remote, one_line
from binwrn_jax.data.records import allow_open_files
from binwrn_jax.errors import UserError

log = logging.getLogger(__name__)

_IMAGENET_COMMON = "tensorflow_datasets.datasets.imagenet2012.imagenet_common"


def _command(info: DatasetInfo, root: str, manual: str) -> str:
    """What prepares a data set in the folder that this run reads, as it can be typed."""
    return shlex.join(["binwrn", "data", info.name, "--data-dir", root, "--manual-dir", manual])


def _check_manual_downloads(info: DatasetInfo, root: str, manual: str) -> None:
    """Raises a `UserError` that names the files to download by hand, if they are missing."""
    where, files = MANUAL_DOWNLOADS.get(info.name, ("", {}))
    missing = [file for file in files if not os.path.exists(os.path.join(manual, file))]
    if missing:
        wanted = " and ".join(f"{file} ({files[file] / 1e9:.1f} GB)" for file in missing)
        raise UserError(
            f"{info.name} has to be downloaded by hand: get {wanted} from {where} into {manual}, then run "
            f"`{_command(info, root, manual)}`; or set TFDS_DATA_DIR or "
            "--config.data.dir to a folder where TFDS has prepared it"
        )


def prepare(info: DatasetInfo, root: str, manual_dir: str | None) -> Any:
    """Downloads and prepares the data set below ``root`` as ArrayRecord and returns its builder.

    Safe at any interruption: TFDS writes into a folder ``incomplete.*`` and renames it when all is there.
    Safe when several processes come at once: one prepares, the others wait for it.

    Args:
      info: of the catalogue.
      root: folder of prepared data sets.
      manual_dir: folder of the files that were downloaded by hand; None is ``<root>/downloads/manual``.

    Raises:
      UserError: with the files to download by hand and their folder, or the reason why it cannot be prepared.
    """
    if is_remote(root):
        raise UserError(
            f"{info.name} is not prepared in {root}: prepare it in a local folder (binwrn data) and copy it "
            "there"
        )
    manual = os.path.abspath(os.path.expanduser(manual_dir or os.path.join(root, "downloads", "manual")))
    _check_manual_downloads(info, root, manual)
    log.info("preparing %s in %s (once)", info.name, root)
    import tensorflow_datasets as tfds

    created = not os.path.exists(root)
    try:
        os.makedirs(root, exist_ok=True)
        with _locked(root) as alone:
            builder = open_builder(info, root)
            if alone:
                _remove_interrupted(builder)
            if not builder.data_path.exists():  # else another process has just done it
                try:
                    with _without_tensorflow(builder), _quiet(info.name == "digits"):
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
        builder = open_builder(info, root)
        if builder.data_path.exists():
            return builder  # no locks on this file system, and another process was first to rename
        if info.name == "digits":
            todo = "set XDG_CACHE_HOME to a folder that can be written"
        else:
            todo = (
                "set TFDS_DATA_DIR or --config.data.dir to a folder where TFDS has prepared it, or put the "
                f"original files into {manual}"
            )
        raise UserError(
            f"{info.name} is not prepared in {root} and cannot be prepared now ({one_line(error)}): {todo}"
        ) from error
    return open_builder(info, root)  # anew: names and sizes come from the prepared folder


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[bool]:
    """Locks a folder, until the process ends at the latest, and gives whether it could."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            alone = True
        except OSError:  # some network file systems have no locks
            alone = False
        yield alone
    finally:
        os.close(handle)


def _remove_interrupted(builder: Any) -> None:
    """Removes what preparations left that were killed; the caller holds the lock, so none is running."""
    for partial in Path(builder.data_path).parent.glob("incomplete.*"):
        shutil.rmtree(partial, ignore_errors=True)


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
    """Lets TFDS prepare a data set without TensorFlow, and detect a missing network within a minute.

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
