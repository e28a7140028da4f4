"""The table of data sets by name, with the facts about each; reads no file."""

from __future__ import annotations

import difflib

from binwrn_jax.data.dataset import DatasetInfo
from binwrn_jax.errors import UserError

# The numbers of images are those of the TFDS builders; prepared folders may hold a part of them.
DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo("digits", (8, 8, 1), 10, {"train": 1_437, "test": 360}, tfds_name="digits"),
        DatasetInfo("mnist", (28, 28, 1), 10, {"train": 60_000, "test": 10_000}, tfds_name="mnist"),
        DatasetInfo(
            "fashion_mnist", (28, 28, 1), 10, {"train": 60_000, "test": 10_000}, tfds_name="fashion_mnist"
        ),
        DatasetInfo("cifar10", (32, 32, 3), 10, {"train": 50_000, "test": 10_000}, tfds_name="cifar10"),
        DatasetInfo("cifar100", (32, 32, 3), 100, {"train": 50_000, "test": 10_000}, tfds_name="cifar100"),
        DatasetInfo(
            "svhn_cropped", (32, 32, 3), 10, {"train": 73_257, "test": 26_032, "extra": 531_131},
            tfds_name="svhn_cropped",
        ),
        DatasetInfo(
            "imagenet32", (32, 32, 3), 1000, {"train": 1_281_167, "validation": 50_000},
            test_split="validation", tfds_name="imagenet_resized/32x32",
        ),
        DatasetInfo(
            "imagenet2012", (224, 224, 3), 1000, {"train": 1_281_167, "validation": 50_000},
            test_split="validation", streamed=True, resize="center_crop", tfds_name="imagenet2012",
        ),
        # A second test set for networks that were trained on imagenet2012: there is nothing to train on.
        DatasetInfo(
            "imagenet_v2", (224, 224, 3), 1000, {"test": 10_000}, train_split="test", streamed=True,
            resize="center_crop", tfds_name="imagenet_v2/matched-frequency",
        ),
        DatasetInfo(
            "imagenette", (224, 224, 3), 10, {"train": 9_469, "validation": 3_925}, test_split="validation",
            streamed=True, resize="center_crop", tfds_name="imagenette/full-size-v2",
        ),
    )
}  # fmt: skip

# Data sets that no program may download: where a person gets the files, and their sizes in bytes.
MANUAL_DOWNLOADS: dict[str, tuple[str, dict[str, int]]] = {
    "imagenet2012": (
        "https://image-net.org/download-images (registration needed; non-commercial research only)",
        {"ILSVRC2012_img_train.tar": 147_897_477_120, "ILSVRC2012_img_val.tar": 6_744_924_160},
    ),
}


def lookup(name: str) -> DatasetInfo:
    """Returns the facts about the data set ``name``, without looking at any disk.

    >>> lookup("cifar10").image_shape
    (32, 32, 3)

    Raises:
      UserError: there is no such data set; the message lists the names and says which is nearest.
    """
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(str(name), DATASETS, n=1, cutoff=0.4)
    hint = f" (nearest: {near[0]})" if near else ""
    raise UserError(
        f"unknown data set '{name}'{hint}; known: {', '.join(DATASETS)}; own images: folder:PATH, npz:PATH, "
        "tfds:NAME, hf:NAME"
    )
