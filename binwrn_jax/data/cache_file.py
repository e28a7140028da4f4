"""Cache files, which save time and can be made again: offsets of records, indexes of folders."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from binwrn_jax.system.files import replace_file


def read_cached(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file that `write_cached` wrote; None if there is none or it is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def write_cached(places: Sequence[Path], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to the first of the places that can be written, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    for place in places:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_file(place, buffer.getvalue())
            return
