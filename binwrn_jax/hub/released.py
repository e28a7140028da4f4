"""The networks that the paper's author released, as models of this project."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from binwrn_jax.data.catalog import lookup
from binwrn_jax.data.open import open_dataset
from binwrn_jax.errors import UserError
from binwrn_jax.hub.mat_file import Released, named, read_released
from binwrn_jax.nn.layers import BN_EPSILON
from binwrn_jax.nn.registry import create_network, default_fields
from binwrn_jax.nn.rules import he_scale
from binwrn_jax.store.model import MODEL_FILE, VARIABLES, Model

# No file says how large its images are, and the networks take any size. All that the author released
# take 32x32.
ASSUMED_SIZE = (32, 32)


def to_model(released: Released, dataset: str | None = None, sha256: str | None = None) -> Model:
    """The model that a file describes.

    The bits become latent weights of magnitude s (Eq. 1; appendix B for plain networks), so that the
    binarised network is the author's and training can go on.

    Args:
      released: see `read_released`.
      dataset: what the network was trained on; no file says it.
      sha256: of the file, for the description's ``source``.

    Returns:
      Float32 ``params`` and ``batch_stats``. Where no data set is named, ``image_shape`` has 32x32 with
      ``image_size_assumed`` true.

    Raises:
      UserError: the shapes form no wide ResNet, or not one for the data set.
    """
    fields = _network_fields(released)
    channels, classes = released.bits[0].shape[2], released.bits[-1].shape[3]
    if dataset:
        spec = lookup(dataset)
        if (spec.num_classes, spec.image_shape[2]) != (classes, channels):
            raise UserError(
                f"the network has {channels} input channels and {classes} classes, but {dataset} has "
                f"{spec.image_shape[2]} and {spec.num_classes}: name another --dataset, or none"
            )
    size = lookup(dataset).image_shape[:2] if dataset else ASSUMED_SIZE
    source = {"layout": released.layout, "bn_epsilon": BN_EPSILON}
    return Model.create(
        _variables(released, fields, (*size, channels)),
        {
            "model": fields,
            "num_classes": classes,
            "image_shape": [*size, channels],
            "image_size_assumed": dataset is None,
            "dataset": dataset,
            "class_names": list(open_dataset(dataset).info.class_names) if dataset else [],
            "epoch": len(released.accuracy) or None,
            "test": None,  # nothing measured here yet
            "recorded": {"accuracy_by_epoch": released.accuracy} if released.accuracy else None,
            "source": {**source, "sha256": sha256} if sha256 else source,
        },
    )


def _network_fields(released: Released) -> dict[str, Any]:
    """The fields of the network: its size from the shapes, its conventions from the layout."""
    norms = released.norms[1:]
    return {
        **default_fields(),
        "depth": len(released.bits),
        "width": released.bits[0].shape[3] / 16,
        "plain": released.plain,
        "padding": "same" if released.layout == "keras" else "symmetric",
        "input_relu": released.layout != "keras",
        "affine": any((norm.gain != 1).any() or (norm.offset != 0).any() for norm in norms),
    }


def _variables(
    released: Released, fields: dict[str, Any], image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """``params`` and ``batch_stats``; each array has the shape that the network expects."""
    bits, norms = released.bits, released.norms
    depth, classes = len(bits), bits[-1].shape[3]
    model = create_network(fields, classes)
    try:
        expected = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *image_shape), np.uint8))
    except UserError as error:
        raise UserError(f"{depth} convolutions of these shapes form no wide ResNet: {error}") from None
    params: dict[str, Any] = {}
    for index, bit in enumerate(bits):
        name = f"conv{index}"
        shape = expected["params"][name]["kernel"].shape
        if bit.shape != shape:
            raise UserError(
                f"the shapes form no wide ResNet: convolution {index + 1} of {depth} is {bit.shape}, "
                f"where a network {depth}-{fields['width']:g} for {classes} classes has {shape}"
            )
        scale = np.float32(he_scale(shape, plain=released.plain))
        params[name] = {"kernel": np.where(bit, scale, -scale)}
    stats: dict[str, Any] = {}
    for index, norm in enumerate(norms):
        name = f"bn{index}"
        (size_expected,) = expected["batch_stats"][name]["mean"].shape
        if len(norm.mean) != size_expected:
            raise UserError(
                f"the shapes form no wide ResNet: batch norm {index + 1} of {len(norms)} has "
                f"{len(norm.mean)} channels, not {size_expected}"
            )
        stats[name] = {"mean": norm.mean, "var": norm.var}
        if index == 0 or fields["affine"]:
            params[name] = {"scale": norm.gain, "offset": norm.offset}
    return {"params": params, "batch_stats": stats}


def import_released(
    path: str | Path, output: str | Path, dataset: str | None = None, max_memory: int | None = None
) -> dict[str, Any]:
    """Makes a model folder of a released file; returns the content of its ``model.json``.

    Args:
      path: see `read_released`.
      output: folder to create; an imported or trained model there is replaced.
      dataset: see `to_model`.
      max_memory: see `binwrn_jax.hub.mat5.load_mat`.

    Raises:
      UserError: see `read_released` and `to_model`; or ``output`` holds something else.
    """
    path, output = Path(path), Path(output)
    released = read_released(path, max_memory)
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with named(path):
        model = to_model(released, dataset, sha256)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: choose another --output")
    # `Model.save` replaces the whole folder: only a model may be lost.
    names = {p.name for p in output.iterdir()} if output.exists() else set()
    foreign = sorted(names - {MODEL_FILE, VARIABLES})
    if foreign:
        raise UserError(
            f"{output} holds {foreign[0]!r}, which is no part of a model: choose another --output"
        )
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        model.save(output)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"cannot write {output} ({error.strerror}): choose another --output") from error
    return model.description.to_dict()
