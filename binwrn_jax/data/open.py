"""Data sets by name: `open_dataset` looks the name up, once, and gives the images in memory or on disk.

dataset = open_dataset("cifar10")
dataset.info.num_classes                 # 10
data = dataset.arrays("train")           # Arrays: images uint8 [50000, 32, 32, 3], labels int32 [50000]
"""

from __future__ import annotations

from jax.sharding import Mesh

from binwrn_jax.data.catalog import lookup
from binwrn_jax.data.dataset import Arrays, Dataset
from binwrn_jax.data.on_device import DeviceData
from binwrn_jax.data.streamed import StreamedData
from binwrn_jax.data.tfds import TfdsDataset

Batches = DeviceData | StreamedData


def open_dataset(name: str, data_dir: str | None = None) -> Dataset:
    """Opens a data set. What is not prepared is downloaded and prepared when its images are first asked for.

    Args:
      name: a name of the catalogue, such as ``'cifar10'``.
      data_dir: folder of prepared TFDS data sets; default TFDS_DATA_DIR, else ``~/tensorflow_datasets``.

    Raises:
      UserError: there is no such data set.
    """
    return TfdsDataset(lookup(name), data_dir)


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
    """A split as the training loop reads it: on the devices where it is small, else streamed from disk.

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
