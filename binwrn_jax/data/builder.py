"""Builders of TFDS: the folder of a data set, opened and compared with the catalogue."""

from __future__ import annotations

import os
from typing import Any

from binwrn_jax.data.dataset import DatasetInfo
from binwrn_jax.data.failures import is_remote, one_line, remedy
from binwrn_jax.errors import UserError
from binwrn_jax.system.cache import user_cache

# tensorflow_datasets takes most of a second to import: only the functions that need it import it.

# TFDS reads these names from the download, so a prepared folder without its label file has lost them.
CIFAR10_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def data_root(info: DatasetInfo, data_dir: str | None) -> str:
    """The folder that holds ``<tfds name>/<version>/``."""
    if info.name == "digits":
        return str(user_cache("tfds"))
    return root_folder(data_dir)


def root_folder(data_dir: str | None) -> str:
    """The folder of prepared data sets: ``data_dir``, else TFDS_DATA_DIR, else ``~/tensorflow_datasets``."""
    # Read now: TFDS reads the variable only once, when it is imported.
    return os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def open_builder(info: DatasetInfo, root: str) -> Any:
    """Returns the TFDS builder of a data set, prepared or not.

    Raises:
      UserError: the prepared folder cannot be read.
    """
    import tensorflow_datasets as tfds

    try:
        if info.name == "digits":
            from binwrn_jax.data.digits import Digits  # our own class: nothing to look up in a registry

            builder = Digits(data_dir=root)
        else:
            builder = tfds.builder(info.tfds_name, data_dir=root)
        if builder.data_path.exists() and not builder.is_prepared():
            os.listdir(builder.data_path) if not is_remote(root) else None  # says so if it may not be read
            raise EOFError("dataset_info.json or features.json is missing")
    except Exception as error:
        raise unreadable_folder(info.name, root, error) from error
    return builder


def unreadable_folder(name: str, root: str, error: Exception) -> UserError:
    """The message about a prepared folder whose description cannot be read."""
    if isinstance(error, ImportError) and is_remote(root):
        return UserError(f"reading {root} needs gcsfs: pip install '.[gcs]'")
    if isinstance(error, ImportError):
        raise error
    seen: BaseException | None = error
    while seen and not (isinstance(seen, OSError) and seen.errno):  # TFDS wraps it in a page of its own
        seen = seen.__cause__ or seen.__context__
    return UserError(
        f"the prepared folder of {name} below {root} cannot be read ({one_line(seen or error)}): "
        f"{remedy(error, root)}"
    )


def check_features(info: DatasetInfo, builder: Any) -> None:
    """Refuses a prepared folder that disagrees with the catalogue.

    Raises:
      UserError: it has images of another shape, or another number of classes.
    """
    features = builder.info.features
    found = tuple(features["image"].shape), features["label"].num_classes
    if found != ((None, None, 3) if info.streamed else info.image_shape, info.num_classes):
        raise UserError(
            f"{builder.data_dir} holds images {found[0]} of {found[1]} classes, but {info.name} has "
            f"{info.image_shape} of {info.num_classes}: set TFDS_DATA_DIR or --config.data.dir to another "
            "folder"
        )


def class_names(info: DatasetInfo, builder: Any) -> tuple[str, ...]:
    """The names of the classes: from the builder, or the label file of the prepared folder.

    Where neither has them (CIFAR-100 that is not prepared) they are '0', '1', ...
    """
    names = tuple(builder.info.features["label"].names)
    return CIFAR10_NAMES if info.name == "cifar10" and names[0] == "0" else names
