"""Augmentations, undone by a NumPy oracle that knows only the images and what came out.

The source images make each pixel say where it was (row, column and whose image), so that the offsets can
be read off the result without looking at how they were drawn.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from binwrn_jax import UserError, augment, make_mesh
from binwrn_jax.parallel import sharding
from binwrn_jax.training.augment import AUGMENTATIONS, cutout, flip, random_crop

N, SIZE, PAD, PATCH = 1504, 32, 4, 18


def marked_images(n=N, size=SIZE) -> np.ndarray:
    """Channels: row + 1, column + 1, image number mod 256. No two pixels of an image are equal."""
    rows, cols = np.mgrid[1 : size + 1, 1 : size + 1]
    images = np.empty((n, size, size, 3), np.uint8)
    images[..., 0], images[..., 1] = rows, cols
    images[..., 2] = np.arange(n)[:, None, None] % 256
    return images


IMAGES = marked_images()


@functools.cache
def jitted(function, **options):
    return jax.jit(functools.partial(function, **options))


def ours(function, seed=0, images=IMAGES, **options):
    out = np.asarray(jitted(function, **options)(jax.random.key(seed), images))
    assert out.dtype == np.uint8 and out.shape == images.shape
    return out


def shifted(image: np.ndarray, down: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """The image on a canvas padded by enough, cropped at (down, right); and which pixels are the image's."""
    pad = 40
    canvas = np.zeros((image.shape[0] + 2 * pad, image.shape[1] + 2 * pad, image.shape[2]), np.uint8)
    known = np.zeros(canvas.shape[:2], bool)
    canvas[pad:-pad, pad:-pad], known[pad:-pad, pad:-pad] = image, True
    window = np.s_[pad + down : pad + down + image.shape[0], pad + right : pad + right + image.shape[1]]
    return canvas[window], known[window]


def find_shift(out: np.ndarray, index: int) -> tuple[int, int]:
    """By the middle pixels, which no shift of 4 can push out: most common (row, column) displacement."""
    middle = out[12:20, 12:20]
    rows, cols = np.mgrid[13:21, 13:21]
    good = middle[..., 2] == index % 256
    down = np.bincount((middle[..., 0].astype(int) - rows)[good] + 40).argmax() - 40
    right = np.bincount((middle[..., 1].astype(int) - cols)[good] + 40).argmax() - 40
    return down, right


def is_uniform(counts, p=1e-4) -> bool:
    return scipy.stats.chisquare(counts).pvalue > p


# --- flip -------------------------------------------------------------------------------------------------


def test_flip():
    out = ours(flip)
    mirrored = np.array([np.array_equal(o, i[:, ::-1]) for o, i in zip(out, IMAGES, strict=True)])
    kept = np.array([np.array_equal(o, i) for o, i in zip(out, IMAGES, strict=True)])
    assert (mirrored ^ kept).all()
    assert is_uniform([mirrored.sum(), kept.sum()])


# --- crop -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cropped():
    out = ours(random_crop, 1)
    return out, np.array([find_shift(o, i) for i, o in enumerate(out)])


def test_crop_is_the_padded_image_at_an_offset(cropped):
    out, shifts = cropped
    for result, image, (down, right) in zip(out, IMAGES, shifts, strict=True):
        expected, known = shifted(image, down, right)
        np.testing.assert_array_equal(result[known], expected[known])


def test_crop_offsets_are_uniform_and_independent(cropped):
    _, shifts = cropped
    offsets = shifts + PAD
    assert offsets.min() == 0 and offsets.max() == 2 * PAD
    counts = np.bincount(offsets[:, 0] * 9 + offsets[:, 1], minlength=81)
    assert is_uniform(counts)


def test_crop_fills_with_fresh_uniform_integers(cropped):
    out, shifts = cropped
    masks = np.array([~shifted(image, *shift)[1] for image, shift in zip(IMAGES, shifts, strict=True)])
    noise = out[masks]  # [pixels, 3]
    assert noise.shape[0] > 100_000
    for channel in range(3):
        assert is_uniform(np.bincount(noise[:, channel], minlength=256))
    assert np.abs(np.corrcoef(noise.T.astype(float)) - np.eye(3)).max() < 0.02
    # Fresh for each image: two images' fillings agree no more often than chance, 1 in 256.
    both = masks[:-1] & masks[1:]
    equal = (out[:-1] == out[1:]).all(-1)[both]
    assert equal.mean() < 1e-4
    # And for each row and column of one image.
    assert (out[:, 0, 1:] == out[:, 0, :-1]).all(-1)[masks[:, 0, 1:] & masks[:, 0, :-1]].mean() < 1e-4


# --- cutout -----------------------------------------------------------------------------------------------


def noise_box(out: np.ndarray, image: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box (top, bottom, left, right), ends exclusive, around what differs from the image."""
    different = (out != image).any(-1)
    rows, cols = np.flatnonzero(different.any(1)), np.flatnonzero(different.any(0))
    return rows[0], rows[-1] + 1, cols[0], cols[-1] + 1


def patch(start: int, size: int = PATCH, length: int = SIZE) -> tuple[int, int]:
    return max(start, 0), min(start + size, length)


def test_cutout_patch_is_18_wide_cut_at_the_borders_and_uniform():
    """Each (top, left) gives another visible interval pair, so the box tells them, but for 3 pixels' luck.

    Intervals of the starts -16..31: at the left border [0, start + 18), inside [start, start + 18), at the
    right border [start, 32).
    """
    starts = {patch(start): start for start in range(-16, 32)}
    assert len(starts) == 48
    out = ours(cutout, 2)
    tops, lefts = [], []
    for result, image in zip(out, IMAGES, strict=True):
        different = (result != image).any(-1)
        # A noise pixel equals the image's with probability 2^-24 only.
        top, bottom, left, right = noise_box(result, image)
        tops.append(starts[top, bottom])
        lefts.append(starts[left, right])
        assert different[top:bottom, left:right].all()
        assert different.sum() == (bottom - top) * (right - left)
    for where in (tops, lefts):
        counts = np.bincount(np.array(where) + 16, minlength=48)
        assert counts.shape == (48,) and is_uniform(counts)
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.1
    values = out[(out != IMAGES).any(-1)]
    for channel in range(3):
        assert is_uniform(np.bincount(values[:, channel], minlength=256))


# --- together ---------------------------------------------------------------------------------------------


def test_flip_crop_cutout_together():
    """++ in Table 1: every pixel is the moved, perhaps mirrored source's, or noise of the border or patch."""
    out = ours(augment, 3, name="flip_crop_cutout")
    flips = 0
    for index in range(0, N, 10):
        best = None
        for mirrored in (False, True):
            source = IMAGES[index][:, ::-1] if mirrored else IMAGES[index]
            for down in range(-4, 5):
                for right in range(-4, 5):
                    expected, known = shifted(source, down, right)
                    wrong = known & (out[index] != expected).any(-1)
                    if best is None or wrong.sum() < best[0].sum():
                        best = wrong, mirrored
        wrong, mirrored = best
        flips += mirrored
        # What is left over is inside one box of at most 18x18.
        rows, cols = np.flatnonzero(wrong.any(1)), np.flatnonzero(wrong.any(0))
        assert rows.size <= PATCH and cols.size <= PATCH and wrong.any() == bool(rows.size)
        assert wrong.sum() == rows.size * cols.size
        assert not rows.size or (np.ptp(rows) + 1 == rows.size and np.ptp(cols) + 1 == cols.size)
    assert is_uniform([flips, N // 10 - flips])


def test_names():
    assert [f.__name__ for f in AUGMENTATIONS["flip_crop"]] == ["flip", "random_crop"]
    assert [f.__name__ for f in AUGMENTATIONS["crop"]] == ["random_crop"]
    np.testing.assert_array_equal(ours(augment, name="none"), IMAGES)
    with pytest.raises(UserError, match="unknown augmentation 'mixup': choose one of none, crop"):
        augment(jax.random.key(0), jnp.asarray(IMAGES[:1]), "mixup")


def test_augmentation_depends_on_the_key():
    first, again, other = (ours(augment, seed, name="flip_crop_cutout") for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


@pytest.mark.parametrize("size", [9, 28])
def test_other_sizes_keep_the_proportions(size):
    """Pad and patch are those of 32x32 in proportion to the height; one channel and odd sizes work."""
    images = np.full((400, size, size, 1), 77, np.uint8)
    out = ours(cutout, 7, images)
    widest = max(
        noise_box(o, i)[1] - noise_box(o, i)[0] for o, i in zip(out, images, strict=True) if (o != i).any()
    )
    assert widest == round(PATCH * size / SIZE)
    marks = np.broadcast_to(np.arange(1, size + 1, dtype=np.uint8)[None, :, None, None], images.shape)
    out = ours(random_crop, 8, marks)
    middle = out[:, size // 2, size // 2, 0].astype(int) - (size // 2 + 1)
    assert set(middle) == set(range(-round(PAD * size / SIZE), round(PAD * size / SIZE) + 1))


def test_eight_devices_draw_the_same(eight_devices):
    alone = ours(augment, 9, name="flip_crop_cutout")
    mesh = make_mesh(8)
    divided = sharding.split(mesh)
    together = jax.jit(lambda key, x: augment(key, x, "flip_crop_cutout"), out_shardings=divided)(
        jax.random.key(9), sharding.put(IMAGES, divided)
    )
    assert len(together.sharding.device_set) == 8
    np.testing.assert_array_equal(np.asarray(together), alone)
