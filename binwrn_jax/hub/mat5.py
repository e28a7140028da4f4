"""MATLAB 5 files in bounded memory: sizes are counted and claims are checked before SciPy reads.

SciPy alone allocates what a file claims: a file of 2 MB may inflate to gigabytes, and an empty cell array may
claim billions of cells. Of the format (MathWorks, "MAT-File Format", level 5) only the structure is read
here: elements, their sizes, and the dimensions of arrays.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from binwrn_jax.errors import UserError, require

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_INT32, _UINT32, _INT8 = 5, 6, 1
_CELL, _STRUCT, _CHAR, _DOUBLE, _UINT64 = 1, 2, 4, 6, 15  # classes of arrays; numbers are 6 to 15
# Bytes of a value, by data type.
_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 2,
    5: 4,
    6: 4,
    7: 4,
    9: 8,
    12: 8,
    13: 8,
    16: 1,
    17: 2,
    18: 4,
}
_DEEPEST = 8
_STEP = 1 << 20

# One-bit weights inflate to at most 64 times their size in the file (a bit becomes a float64); so do zeros
# to more than 1000 times.
_HONEST_RATIO, _ALWAYS = 64, 1 << 26


def load_mat(path: Path, wanted: Callable[[str], bool], max_memory: int | None = None) -> dict[str, Any]:
    """Reads variables of a MATLAB 5 file.

    Args:
      path: of the file.
      wanted: by name, which variables to read.
      max_memory: bytes that they may have together, inflated; None for 64 times the size of the file and
        64 MiB on top, more than one-bit weights and the moments of a network can need.

    Returns:
      SciPy's values by name; None for those that are not wanted.

    Raises:
      UserError: there is no such file, it is no MATLAB 5 file, it is damaged, or too large.
    """
    reader = require("scipy.io", "reading MATLAB files")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    size = path.stat().st_size
    limit = _ALWAYS + _HONEST_RATIO * size if max_memory is None else max_memory
    if size > limit:
        raise _too_large(path, limit)
    data = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if data[:10] == b"MATLAB 7.3":
        raise UserError(f"{path} is a MATLAB 7.3 file: save it with the option -v7 and try again")
    try:
        if order is None or struct.unpack(order + "H", data[124:126]) != (0x0100,):
            raise ValueError("its header is another")
        content: dict[str, Any] = {}
        for name, element in _variables(data, order, wanted, limit):
            content[name] = None if element is None else _read(reader, data[:_HEADER], element)
        return content
    except _TooLarge:
        raise _too_large(path, limit) from None
    except Exception as error:  # ValueError, TypeError, zlib.error, struct.error ...: it depends on the place
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        what = "a damaged or truncated MATLAB file" if data[:6] == b"MATLAB" else "no MATLAB 5 file"
        raise UserError(f"{path} is {what} ({reason}): fetch it again") from error


class _TooLarge(Exception):
    pass


def _too_large(path: Path, limit: int) -> UserError:
    return UserError(
        f"{path} has more than {limit / 1e6:,.0f} MB of data where it is inflated, more than its network can "
        "need: fetch it again, or give --max-memory if it is right"
    )


def _read(reader: Any, header: bytes, element: bytes) -> Any:
    """One variable by SciPy, from a file that has it alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # SciPy warns of what it cannot read, and goes on without it
        content = reader.loadmat(io.BytesIO(header + element))
    (value,) = (value for name, value in content.items() if not name.startswith("__"))
    return value


def _variables(
    data: bytes, order: str, wanted: Callable[[str], bool], limit: int
) -> Iterator[tuple[str, bytes | None]]:
    """Name and inflated element of each variable, checked; None for the element of one that is not wanted."""
    position, taken = _HEADER, 0
    while position < len(data):
        kind, size = struct.unpack_from(order + "II", data, position)
        body = memoryview(data)[position + 8 : position + 8 + size]
        if len(body) < size:
            raise ValueError("it ends within a variable")
        position += 8 + size
        if kind == _MATRIX:
            start, length = data[position - size - 8 : position - size + 1000], 8 + size
        elif kind == _COMPRESSED:
            start, length = zlib.decompressobj().decompress(body, 1008), -1
        else:
            raise ValueError(f"an element of type {kind}")
        name = _name_of(start, order)
        if not wanted(name):
            yield name, None
            continue
        if length < 0:
            length = _inflated_size(body, limit - taken)
        taken += length
        if taken > limit:
            raise _TooLarge
        element = (
            zlib.decompress(body) if kind == _COMPRESSED else bytes(data[position - size - 8 : position])
        )
        matrix = _Element(element, 0, len(element), order)
        if matrix.kind != _MATRIX:
            raise ValueError("a variable that is no array")
        _check(matrix, order, depth=0)
        yield name, element


def _inflated_size(body: memoryview, limit: int) -> int:
    """Bytes that compressed data inflate to, without keeping them; `_TooLarge` beyond the limit."""
    inflater, total = zlib.decompressobj(), 0
    rest: Any = body
    while not inflater.eof:
        piece = inflater.decompress(rest, _STEP)
        rest = inflater.unconsumed_tail
        total += len(piece)
        if total > limit:
            raise _TooLarge
        if not piece and not rest and not inflater.eof:
            raise ValueError("compressed data end too early")
    return total


class _Element:
    """One element of a file: its type, where its data are, and where the next element begins."""

    def __init__(self, data: bytes, position: int, end: int, order: str) -> None:
        first, size = struct.unpack_from(order + "II", data, position)
        if first >> 16:  # small: type and size in four bytes, data in the other four
            self.kind, size, self.start = first & 0xFFFF, first >> 16, position + 4
            self.next = position + 8
        else:
            self.kind, self.start = first, position + 8
            self.next = self.start + size + (-size % 8)
        self.data, self.end = data, self.start + size
        if self.end > end or (first >> 16 and size > 4):
            raise ValueError("an element is longer than what it is in")

    def values(self, order: str, code: str, kind: int) -> tuple[int, ...]:
        if self.kind != kind or (self.end - self.start) % struct.calcsize(code):
            raise ValueError(f"an element of type {self.kind} where {kind} belongs")
        count = (self.end - self.start) // struct.calcsize(code)
        return struct.unpack_from(f"{order}{count}{code}", self.data, self.start)


def _name_of(start: bytes, order: str) -> str:
    """The name of a variable from the first bytes of its element."""
    position = 8
    for _ in range(2):  # flags and dimensions
        position = _Element(start, position, len(start), order).next
    name = _Element(start, position, len(start), order)
    return start[name.start : name.end].decode("latin-1")


def _check(matrix: _Element, order: str, depth: int) -> None:
    """Compares what an array claims with the bytes that it has."""
    data, end = matrix.data, matrix.end
    if matrix.start == end:  # an empty cell
        return
    if depth > _DEEPEST:
        raise ValueError("arrays are nested too deep")
    flags = _Element(data, matrix.start, end, order)
    kind = flags.values(order, "I", _UINT32)[0] & 0xFF
    dimensions = _Element(data, flags.next, end, order)
    shape = dimensions.values(order, "i", _INT32)
    name = _Element(data, dimensions.next, end, order)
    if any(side < 0 for side in shape) or len(shape) < 2:
        raise ValueError(f"an array of shape {shape[:8]}")
    count, position = math.prod(shape), name.next
    if kind in (_CELL, _STRUCT):
        if kind == _STRUCT:
            length = _Element(data, position, end, order)
            names = _Element(data, length.next, end, order)
            (width,) = length.values(order, "i", _INT32)
            if width < 1:
                raise ValueError("names of fields without a length")
            count, position = max(count, count * ((names.end - names.start) // width)), names.next
        if count > (end - position) // 8:
            raise ValueError(f"an array of {count} parts in {end - position} bytes")
        while position < end:
            part = _Element(data, position, end, order)
            if part.kind != _MATRIX:
                raise ValueError("a part that is no array")
            _check(part, order, depth + 1)
            position = part.next
    elif kind == _CHAR or _DOUBLE <= kind <= _UINT64:
        values = _Element(data, position, end, order)
        if values.kind not in _BYTES or count * _BYTES[values.kind] > values.end - values.start:
            raise ValueError(f"an array of {count} values in {values.end - values.start} bytes")
    else:
        raise ValueError(f"an array of class {kind}")
