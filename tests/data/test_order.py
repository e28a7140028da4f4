"""The order of the images: a permutation per epoch, positions, padding; the same on any number of devices."""

import jax
import numpy as np
import pytest
import scipy.stats

from binwrn_jax import Arrays, DeviceData, UserError, epoch_order, make_mesh


def arrays(n: int) -> Arrays:
    """Image i is filled with i, and its label is i mod 7."""
    numbers = np.arange(n)
    images = np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (n, 8, 8, 1)).copy()
    return Arrays(images, (numbers % 7).astype(np.int32), tuple("abcdefg"))


def indices(data: DeviceData, position: int) -> np.ndarray:
    return np.asarray(data.batch(position)["indices"])


def test_each_epoch_is_another_permutation():
    orders = [epoch_order(seed, epoch, 101) for seed in (0, 1) for epoch in range(5)]
    for order in orders:
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(101))
    assert len({order.tobytes() for order in orders}) == 10
    np.testing.assert_array_equal(epoch_order(1, 3, 101), orders[8])


def test_the_order_never_changes():
    """A resumed run reads what the first process would have read, under any later version too."""
    assert epoch_order(0, 0, 10).tolist() == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]
    assert epoch_order(7, 253, 10).tolist() == [0, 8, 9, 1, 3, 5, 7, 2, 4, 6]


def test_permutations_are_uniform():
    """Where the first image goes, over 2,000 epochs."""
    places = [int(np.flatnonzero(epoch_order(3, epoch, 8) == 0)[0]) for epoch in range(2000)]
    assert scipy.stats.chisquare(np.bincount(places, minlength=8)).pvalue > 1e-4


def test_batches_by_position():
    data = DeviceData(arrays(50), make_mesh(1), 16, seed=4)
    assert (data.size, data.steps_per_epoch) == (50, 3)
    for epoch in (0, 1, 5):
        seen = np.concatenate([indices(data, 3 * epoch + place) for place in range(3)])
        np.testing.assert_array_equal(seen, epoch_order(4, epoch, 50)[:48])
    # Any position, in any order, as after a resume.
    fresh = DeviceData(arrays(50), make_mesh(1), 16, seed=4)
    for position in (17, 2, 16, 3):
        np.testing.assert_array_equal(indices(fresh, position), indices(data, position))
    left_out = {tuple(set(range(50)) - set(epoch_order(4, epoch, 50)[:48].tolist())) for epoch in range(9)}
    assert len(left_out) > 5


def test_the_devices_change_nothing(eight_devices):
    one, eight = (DeviceData(arrays(50), make_mesh(n), 16, seed=4) for n in (1, 8))
    for position in (0, 4, 11):
        batch = eight.batch(position)
        np.testing.assert_array_equal(np.asarray(batch["indices"]), indices(one, position))
        # Each device gets all indices; the step divides the batch.
        shards = batch["indices"].addressable_shards
        assert [shard.data.shape for shard in shards] == [(16,)] * 8
        assert len({shard.device for shard in shards}) == 8


def test_the_data_are_on_the_device_unchanged():
    source = arrays(50)
    batch = DeviceData(source, make_mesh(1), 16).batch(0)
    rows = batch["images"].rows
    assert isinstance(rows, jax.Array) and rows.dtype == np.uint8 and rows.ndim == 2
    taken = batch["images"][jax.numpy.arange(50).reshape(5, 10)]
    np.testing.assert_array_equal(np.asarray(taken).reshape(source.images.shape), source.images)
    np.testing.assert_array_equal(np.asarray(batch["labels"]), source.labels)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 25, 50, 64])
def test_in_order_has_each_image_once(batch_size):
    data = DeviceData(arrays(50), make_mesh(1), batch_size)
    seen = []
    batches = list(data.in_order())
    assert len(batches) == -(-50 // batch_size)
    for batch in batches:
        index, mask = np.asarray(batch["indices"]), np.asarray(batch["mask"])
        assert index.shape == mask.shape == (batch_size,) and mask.dtype == bool
        assert ((index >= 0) & (index < 50)).all()
        seen += index[mask].tolist()
    assert seen == list(range(50))


def test_a_set_smaller_than_a_batch():
    data = DeviceData(arrays(5), make_mesh(1), 8)
    with pytest.raises(UserError, match="5 training images are fewer than one batch of 8"):
        data.check_trains()
    assert sum(int(np.asarray(batch["mask"]).sum()) for batch in data.in_order()) == 5
