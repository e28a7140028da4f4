"""The embedded data set: scikit-learn's 1,797 handwritten digits as a TFDS builder, no download.

Import this module only where the builder is needed: it imports tensorflow_datasets.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from jaxtyping import Int

from binwrn_jax.errors import require


def split_indices(labels: Int[np.ndarray, " N"]) -> dict[str, Int[np.ndarray, " _"]]:
    """Splits the examples once and for all: 1,437 to train on and 360 to test on.

    All examples are shuffled with a fixed seed, sorted by class (a stable sort, so each class stays
    shuffled), and every fifth one is for testing: each class gives a fifth of itself, up to one image.
    The images of one writer can fall on both sides, so errors are lower than on the writer-disjoint
    split of the UCI original (of which scikit-learn ships only the test part).

    Args:
      labels: int [N], the classes, in scikit-learn's order.

    Returns:
      {'train': int [N - ceil(N/5)], 'test': int [ceil(N/5)]}: indices into scikit-learn's order.
    """
    # RandomState, not default_rng: NumPy promises that its stream never changes.
    order = np.random.RandomState(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    in_test = np.arange(len(order)) % 5 == 0
    return {"train": order[~in_test], "test": order[in_test]}


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """TFDS builder of `sklearn.datasets.load_digits`: 8x8x1 uint8 images of the digits 0 to 9.

    The grey levels 0..16 become 0..255 by round(v * 255 / 16). Splits: see `split_indices`.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998
    (CC BY 4.0), as shipped by scikit-learn.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}  # noqa: RUF012  (the base class declares it so)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The 1,797 handwritten digits that scikit-learn ships.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing to download
        data = require("sklearn.datasets", "the data set digits").load_digits()
        images = np.round(data.images * (255 / 16)).astype(np.uint8)
        return {
            split: self._generate_examples(images, data.target, indices)
            for split, indices in split_indices(data.target).items()
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> Iterator:
        for index in indices:
            # A PIL image is encoded by PIL; an array would be encoded by TensorFlow.
            yield int(index), {"image": PIL.Image.fromarray(images[index]), "label": int(labels[index])}
