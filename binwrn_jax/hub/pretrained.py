"""The networks that the paper's author released, by name, where the user has his files."""

from __future__ import annotations

import difflib
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from binwrn_jax.errors import UserError
from binwrn_jax.hub.mat_file import named, read_released
from binwrn_jax.hub.released import to_model
from binwrn_jax.store.model import Model
from binwrn_jax.system.cache import user_cache

REPOSITORY = "https://github.com/McDonnell-Lab/1-bit-per-weight"
FOLDER_VARIABLE = "BINWRN_OFFICIAL_DIR"


class Released(NamedTuple):
    """A file of the author's repository.

    Attributes:
      path: in the repository.
      dataset: what the network was trained on.
      sha256: of the file; '' where this project has not seen it.
      other_name: under which it may lie in the folder too.
    """

    path: str
    dataset: str
    sha256: str = ""
    other_name: str = ""


_MATLAB, _KERAS = "TrainedModels/Matlab", "TrainedModels/Tensorflow.keras"
PRETRAINED: dict[str, Released] = {
    "cifar10-20-10": Released(
        f"{_MATLAB}/TrainedWideResNet20-10_CIFAR10_1-bit-per-weight-4MB.mat",
        "cifar10",
        "c8b0c1e3452f2b275b8eafea2e925e67f3c554a5aa90778fe7adbb54ab32d38e",
        "matlab_cifar10_20-10.mat",
    ),
    "cifar10-20-10-keras": Released(
        f"{_KERAS}/CIFAR10_allparams.mat",
        "cifar10",
        "c1b73fa8820cfe2cc23e0728f7aebbfb02c49c68608da28c96aa78e554acc1f2",
        "keras_cifar10_allparams.mat",
    ),
    "cifar100-20-4-plain": Released(
        "CIFAR100_20-4-Plain_644kB.mat",
        "cifar100",
        "f7c1a16dd57b782bc4cc0f81543836565dd839f2a8311ce8e35383919e91605d",
        "matlab_cifar100_20-4-plain.mat",
    ),
    "cifar100-20-10": Released(
        f"{_MATLAB}/TrainedWideResNet20-10_CIFAR100_1-bit-per-weight-4MB.mat", "cifar100"
    ),
    "cifar100-20-10-keras": Released(f"{_KERAS}/CIFAR100_allparams.mat", "cifar100"),
}


def is_pretrained(name: str | Path) -> bool:
    """Whether a model is named by `PRETRAINED`; a file or folder of that name goes before."""
    return str(name) in PRETRAINED and not Path(name).exists()


def suggestion(name: str | Path) -> str:
    """``; did you mean the pretrained 'cifar10-20-10'?`` for a name that is nearly one, else ''."""
    near = difflib.get_close_matches(str(name), PRETRAINED, n=1, cutoff=0.8)
    return f"; did you mean the pretrained {near[0]!r}?" if near else ""


def find_released(name: str) -> Path:
    """The author's file of a pretrained network.

    It is looked for, by its own name or its path in the repository, in the folder BINWRN_OFFICIAL_DIR, else
    in ``~/.cache/binwrn_jax/released``. Nothing is downloaded.

    Raises:
      UserError: it is not there, or is another file; the message says where to get it.
    """
    released = PRETRAINED[name]
    folder = Path(os.environ.get(FOLDER_VARIABLE) or user_cache("released"))
    file = Path(released.path)
    names = filter(None, (released.path, file.name, released.other_name))
    found = next((path for path in (folder / one for one in names) if path.is_file()), None)
    if found is None:
        raise UserError(
            f"{name} is the file {released.path} of {REPOSITORY}: put it into {folder}, or set "
            f"{FOLDER_VARIABLE} to the folder that has it"
        )
    with named(found), open(found, "rb") as content:
        if released.sha256 and hashlib.file_digest(content, "sha256").hexdigest() != released.sha256:
            raise UserError(f"it is not the file {released.path} of {REPOSITORY}: get it there")
    return found


def load_pretrained(name: str) -> Model:
    """A network that the paper's author trained, from his file on this machine.

    Args:
      name: a key of `PRETRAINED`, such as ``'cifar10-20-10'``.

    Returns:
      The model; its latent weights have the magnitude s of Eq. 1, see `binwrn_jax.hub.released.to_model`.

    Raises:
      UserError: there is no such name, or see `find_released`.
    """
    if name not in PRETRAINED:
        raise UserError(f"unknown pretrained network {name!r}: choose one of {', '.join(PRETRAINED)}")
    path, released = find_released(name), PRETRAINED[name]
    content = read_released(path)
    with named(path):
        return to_model(content, released.dataset, released.sha256 or None)
