"""Images and labels that a caller brings: what is refused, in which words, and that what is right passes."""

import numpy as np
import pytest

from binwrn_jax import Arrays, DeviceData, UserError, make_mesh
from binwrn_jax.data.arrays import check_arrays
from binwrn_jax.evaluation import ArrayImages, measure

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.int32)
NAMES = ("a", "b", "c")

WRONG = [
    (IMAGES[..., 0], LABELS, r"shape \(6, 8, 8\), not \[N, H, W, C\]: add the axis of the channels"),
    (IMAGES / 255, LABELS, r"float64, not uint8: give integers 0 to 255: \(255 \* images\)"),
    (IMAGES.astype(np.float32), LABELS, r"float32, not uint8: .*images.astype\(np.uint8\)"),
    (IMAGES, LABELS[:, None], r"shape \(6, 1\), not \[N\]: labels\[:, 0\]"),
    (IMAGES, np.eye(3)[LABELS], r"one-hot, of shape \(6, 3\): give integers, labels.argmax\(1\)"),
    (IMAGES, LABELS.astype(float), "labels are float64, not integers"),
    (IMAGES, LABELS + 1, "from 1 to 3, but 3 classes have the labels 0 to 2; they seem to begin at 1"),
    (IMAGES, LABELS - 1, "from -1 to 1, but 3 classes"),
    (IMAGES, LABELS[:5], "5 labels for 6 images"),
    (IMAGES[:0], LABELS[:0], "there are no images"),
]


@pytest.mark.parametrize("entry", [lambda a: DeviceData(a, make_mesh(1), 3), ArrayImages])
@pytest.mark.parametrize(("images", "labels", "message"), WRONG)
def test_wrong_arrays_are_one_line(entry, images, labels, message):
    with pytest.raises(UserError, match=message) as error:
        entry(Arrays(images, labels, NAMES))
    assert "\n" not in str(error.value)


def test_right_arrays_pass_unchanged():
    images, labels = check_arrays(IMAGES, LABELS.astype(np.uint8), 3)
    assert images is IMAGES and labels.dtype == np.int32 and (labels == LABELS).all()


def test_fewer_images_than_a_batch():
    data = DeviceData(Arrays(IMAGES, LABELS, NAMES), make_mesh(1), 7)
    with pytest.raises(UserError, match="6 training images are fewer than one batch of 7"):
        data.batch(0)


class TwoClasses:
    def __init__(self):
        self.description = {"num_classes": 2, "image_shape": [8, 8, 1], "class_names": [], "dataset": None}

    def __call__(self, images):
        return np.zeros((len(images), 2), np.float32)


def test_labels_beyond_the_classes_of_the_model_are_an_error():
    with pytest.raises(UserError, match="labels are from 0 to 2, but 2 classes have the labels 0 to 1"):
        measure(TwoClasses(), ArrayImages(Arrays(IMAGES, LABELS, NAMES)))
