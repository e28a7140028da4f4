"""A batch and ghost groups that suit a number of devices."""

from __future__ import annotations

# The paper's batch of 125 images is what its batch norm sees; the nearest power of two is 128. Groups below
# 32 images have poor statistics, and batches above 8192 have poor records elsewhere.
MOST_IMAGES_OF_A_GROUP = 128
FEWEST_IMAGES_OF_A_GROUP = 32
LEAST_BATCH, MOST_BATCH = 1024, 8192


def nearest_batch(devices: int, batch: int = 0, ghost: int = MOST_IMAGES_OF_A_GROUP) -> tuple[int, int]:
    """The nearest batch in whole ghost groups, as many on each device, so that no activation travels.

    The groups have ``ghost`` images or, where that would make the batch more than half as large again, half
    as many, and so on down to `FEWEST_IMAGES_OF_A_GROUP`.

    Args:
      devices: that share a batch.
      batch: images wanted; 0: `MOST_IMAGES_OF_A_GROUP` for each device, between `LEAST_BATCH` and
        `MOST_BATCH`.
      ghost: images of a group that are wanted.

    Returns:
      The batch and the size of its groups.

    >>> nearest_batch(16), nearest_batch(256)
    ((2048, 128), (8192, 32))
    >>> nearest_batch(16, batch=1024)
    (1024, 64)
    """
    wanted = batch or min(max(MOST_IMAGES_OF_A_GROUP * devices, LEAST_BATCH), MOST_BATCH)
    while ghost > FEWEST_IMAGES_OF_A_GROUP and 2 * devices * ghost > 3 * wanted:
        ghost = max(ghost // 2, FEWEST_IMAGES_OF_A_GROUP)
    unit = devices * ghost
    return max((2 * wanted + unit) // (2 * unit), 1) * unit, ghost
