"""Data sets by name: `open_dataset` looks the name up, once, and gives the images in memory or on disk.

dataset = open_dataset("cifar10")
dataset.info.num_classes                 # 10
data = dataset.arrays("train")           # Arrays: images uint8 [50000, 32, 32, 3], labels int32 [50000]
"""

from __future__ import annotations

from jax.sharding import Mesh

from binwrn_jax.data.array_files import ArraySource
from binwrn_jax.data.catalog import lookup
from binwrn_jax.data.dataset import Arrays, Dataset, ImageOptions
from binwrn_jax.data.folder import FolderSource
from binwrn_jax.data.huggingface import HuggingFaceSource
from binwrn_jax.data.on_device import DeviceData
from binwrn_jax.data.own import OwnDataset
from binwrn_jax.data.source import Source
from binwrn_jax.data.streamed import StreamedData
from binwrn_jax.data.tfds import TfdsDataset
from binwrn_jax.data.tfds_folder import TfdsSource
from binwrn_jax.errors import UserError

Batches = DeviceData | StreamedData


# How own images are named: what comes before the colon, and what may follow it.
SCHEMES = {
    "folder": "a folder with one folder of image files for each class",
    "npz": "a .npz file with the arrays images and labels, or a folder of such .npy files",
    "tfds": "a data set that TFDS has prepared, by its name or folder",
    "hf": "a data set of the library datasets, by its name or folder",
}


def open_dataset(name: str, data_dir: str | None = None, options: ImageOptions | None = None) -> Dataset:
    """Opens a data set. If it is not prepared, its first use downloads and prepares it.

    Args:
      name: a name of the catalogue, such as ``'cifar10'``, or own images: ``'folder:PATH'``, ``'npz:PATH'``,
        ``'tfds:NAME'``, ``'hf:NAME'`` (docs/own-data.md), which are surveyed here.
      data_dir: folder of prepared TFDS data sets; default TFDS_DATA_DIR, else ``~/tensorflow_datasets``.
      options: how own images are read.

    Raises:
      UserError: there is no such data set; options that are not for it; own images that cannot be used.
    """
    scheme, colon, rest = str(name).partition(":")
    if colon and scheme in SCHEMES:
        return OwnDataset(
            _open_source(scheme, rest, data_dir, options or ImageOptions()), options or ImageOptions()
        )
    if options not in (None, ImageOptions()):
        raise UserError(f"{name} has its own size and channels: data.size and its like are for own images")
    return TfdsDataset(lookup(name), data_dir)


def is_own(name: str) -> bool:
    """Whether a name means own images, as ``'folder:PATH'`` does."""
    scheme, colon, _ = str(name).partition(":")
    return bool(colon) and scheme in SCHEMES


def _open_source(scheme: str, rest: str, data_dir: str | None, options: ImageOptions) -> Source:
    if not rest:
        raise UserError(f"{scheme}: names nothing: after the colon comes {SCHEMES[scheme]}")
    if scheme == "folder":
        return FolderSource(rest)
    if scheme == "npz":
        return ArraySource(rest)
    columns = options.image_column, options.label_column
    if scheme == "tfds":
        return TfdsSource(rest, data_dir, *columns)
    return HuggingFaceSource(rest, *columns)


def load(name: str, split: str, data_dir: str | None = None, limit: int | None = None) -> Arrays:
    """Loads a split into memory: ``open_dataset(name, data_dir).arrays(split, limit)``.

    Returns:
      Arrays: images uint8 ``[N, H, W, C]``, labels int32 ``[N]``, the class names; in record order.

    Raises:
      UserError: see `open_dataset` and `binwrn_jax.data.dataset.Dataset.arrays`.
    """
    return open_dataset(name, data_dir).arrays(split, limit)


def open_batches(
    dataset: Dataset,
    split: str,
    mesh: Mesh,
    batch_size: int,
    *,
    seed: int = 0,
    augmentation: str = "none",
    crops: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> Batches:
    """A split for the training loop: on the devices if it is small, else streamed from disk.

    Arguments as of `DeviceData` and `StreamedData`.

    Raises:
      UserError: see `binwrn_jax.data.dataset.Dataset.arrays`.
    """
    if not dataset.info.streamed:
        return DeviceData(dataset.arrays(split), mesh, batch_size, seed)
    return StreamedData(
        dataset, split, mesh, batch_size, seed=seed, augmentation=augmentation, crops=crops, workers=workers,
        prefetch=prefetch,
    )  # fmt: skip
