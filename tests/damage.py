"""Damage to files: flipped bits."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np


def flips(folder: Path, count: int, seed: int) -> Iterator[Path]:
    """Flips one random bit of all files below a folder, yields its file, flips it back; and so on."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = np.array([path.stat().st_size for path in files])
    rng = np.random.default_rng(seed)
    for position in rng.integers(0, sizes.sum(), count):
        index = int(np.searchsorted(sizes.cumsum(), position, side="right"))
        path, bit = files[index], int(rng.integers(8))
        whole = path.read_bytes()
        content = bytearray(whole)
        content[position - (sizes.cumsum()[index] - sizes[index])] ^= 1 << bit
        path.write_bytes(content)
        yield path
        path.write_bytes(whole)
