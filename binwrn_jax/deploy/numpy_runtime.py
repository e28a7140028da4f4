"""Packed files run by the definition of their format, `binwrn_jax.deploy.numpy_reader`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from binwrn_jax.data.arrays import check_images
from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.packed import PackedModel, read_packed
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import Predictor


class NumpyPredictor:
    """A packed file as a `Predictor` that runs on NumPy."""

    def __init__(self, packed: PackedModel) -> None:
        self._model = numpy_reader.Model(packed.metadata, packed.tensors)
        self.description = packed.description

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `binwrn_jax.evaluation.Predictor`."""
        images = check_images(images, self.description["image_shape"])
        try:
            return self._model(images)
        except numpy_reader.PackedFileError as error:  # values that become too large
            raise UserError(str(error)) from error


def open_numpy(path: str | Path) -> Predictor:
    """A packed file run by the executable definition of the format; raises as `read_packed` does."""
    return NumpyPredictor(read_packed(path))
