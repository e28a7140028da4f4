"""Random access to the serialized examples of a prepared data set: ArrayRecord and TFRecord files.

    records = open_records(builder, "train[:1000]")
    image, label = parse(records.read([17, 4])[0])

Files are opened when they are first read, so that an object can be sent to other processes. Paths are
local or, for what `etils.epath` and array_record know, remote (``gs://``).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import resource
import struct
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from binwrn_jax.data.cache_file import read_cached, write_cached
from binwrn_jax.data.failures import DamagedError, MismatchError, is_remote
from binwrn_jax.errors import UserError, require
from binwrn_jax.system.cache import user_cache


class Shard(NamedTuple):
    """The part of one file to read, as array_record takes it: records ``skip`` to ``skip + take - 1``."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class SerializedRecords(Protocol):
    """Serialized tf.train.Examples, by their index in the split."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The records at these indices, in this order; raises the errors of the files' readers."""
        ...


def open_records(builder: Any, split: str, cache_offsets: bool = False) -> SerializedRecords:
    """The records of a split of a prepared TFDS builder, in the order in which TFDS reads them.

    Args:
      builder: of `tensorflow_datasets`, prepared as ArrayRecord or TFRecord.
      split: an existing split, a slice or a sum of them.
      cache_offsets: keep the offsets of TFRecords on disk, see `TFRecords`.

    Raises:
      UserError: the files are of another format.
    """
    info = builder.info.splits[split]
    shards = [
        Shard(os.fspath(s.filename), s.skip, s.take, s.examples_in_shard) for s in info.file_instructions
    ]
    file_format = builder.info.file_format.value
    if file_format == "array_record":
        return ArrayRecords(shards)
    if file_format == "tfrecord":
        return TFRecords(shards, cache_offsets)
    raise UserError(f"{builder.data_dir} holds {file_format} files: only array_record and tfrecord are read")


def check_counts(builder: Any, split: str) -> None:
    """Compares the number of records in each file of a split with what ``dataset_info.json`` says.

    Raises:
      EOFError: a file has fewer records, or ends within one.
      MismatchError: a file has more.
    """
    from etils import epath

    for shard in builder.info.splits[split].file_instructions:
        name, wanted = os.fspath(shard.filename), shard.examples_in_shard
        if builder.info.file_format.value == "tfrecord":
            path = epath.Path(name)
            found = len(_scan(path, _file_size(path))) - 1
        else:
            found = _array_record_count(name)
        if found != wanted:
            kind = EOFError if found < wanted else MismatchError
            raise kind(f"{name} has {found} records, but dataset_info.json says {wanted}")


def _array_record_count(name: str) -> int:
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(name)
        count = int(reader.num_records())
        reader.close()
    except RuntimeError as error:
        if "should be at least" in str(error):
            raise EOFError(f"{name} holds no records ({error})") from error
        raise RuntimeError(f"{os.path.basename(name)}: {error}") from error
    return count


def parse(record: bytes, image: str = "image", label: str = "label") -> tuple[bytes, int]:
    """The encoded image and the label of a serialized tf.train.Example, by the names of their features.

    Raises:
      DamagedError: the bytes are no such message, or one of other features.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        feature = tf_example_pb2.Example.FromString(record).features.feature
        (encoded,) = feature[image].bytes_list.value
        (number,) = feature[label].int64_list.value
    except (DecodeError, ValueError) as error:
        raise DamagedError(f"no tf.train.Example with one {image} and one {label} ({error})") from error
    return encoded, number


def allow_open_files() -> None:
    """Raises the limit of open files for this process and its children to the system's maximum."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class ArrayRecords:
    """`SerializedRecords` of ArrayRecord files, which have an index of their own and check their bytes."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        allow_open_files()  # each file that was read stays open, and ImageNet has 1024
        self._source = ArrayRecordDataSource(list(shards))

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """See `SerializedRecords`."""
        try:
            return list(self._source.__getitems__(indices))
        except RuntimeError as error:
            if "out of bound" in str(error) or "should be at least" in str(error):
                raise EOFError(f"fewer records in a file than dataset_info.json says ({error})") from error
            raise


def masked_crc(data: bytes) -> bytes:
    """The CRC-32C of bytes as TFRecord files have it: rotated by 15 bits, plus a constant; 4 bytes.

    >>> masked_crc(b"123456789").hex()
    'e5b08ac7'

    Raises:
      UserError: the package google-crc32c is not installed.
    """
    crc = require("google_crc32c", "reading TFRecord files").value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


class TFRecords:
    """`SerializedRecords` of TFRecord files, which have no index: it is built from the records' lengths.

    A record is its length (uint64), a CRC of the length, the bytes, and a CRC of the bytes (4 bytes each).
    Both CRCs are checked, that of the length where the index is built.

    Args:
      shards: the files.
      cache: read the offsets from a file ``.binwrn-offsets-*.npz`` beside the records or in
        ``~/.cache/binwrn_jax/offsets`` (below XDG_CACHE_HOME), or leave one there, where it can be written;
        it belongs to these names and sizes of files.
    """

    def __init__(self, shards: Sequence[Shard], cache: bool = False) -> None:
        self._shards = list(shards)
        self._starts = [0, *itertools.accumulate(s.take for s in shards)]
        self._offsets = _offsets([s.filename for s in shards], cache)
        for shard, offsets in zip(self._shards, self._offsets, strict=True):
            if len(offsets) - 1 < shard.skip + shard.take:
                raise EOFError(
                    f"{shard.filename} has {len(offsets) - 1} records, not {shard.skip + shard.take}"
                )

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """See `SerializedRecords`."""
        from etils import epath

        found = []
        # Files are open during one call only: a thousand at once are more than many systems allow.
        with contextlib.ExitStack() as stack:
            files: dict[str, Any] = {}
            for index in indices:
                number = bisect_right(self._starts, index) - 1
                shard = self._shards[number]
                place = shard.skip + index - self._starts[number]
                begin, end = (int(x) for x in self._offsets[number][place : place + 2])
                if shard.filename not in files:
                    files[shard.filename] = stack.enter_context(epath.Path(shard.filename).open("rb"))
                file = files[shard.filename]
                file.seek(begin + 12)
                content = file.read(end - begin - 12)
                if len(content) < end - begin - 12:
                    raise EOFError(f"{shard.filename} ends within a record")
                record = content[:-4]
                if masked_crc(record) != content[-4:]:
                    raise DamagedError(f"{shard.filename}: record {place} has another checksum than stated")
                found.append(record)
        return found


def _offsets(filenames: Sequence[str], cache: bool) -> list[np.ndarray]:
    """Where the records of TFRecord files begin, and a last entry where the file ends: int64 ``[n + 1]``."""
    from etils import epath

    if not filenames:
        return []
    paths = [epath.Path(name) for name in filenames]
    sizes = [_file_size(path) for path in paths]
    key = hashlib.sha256(repr([(p.name, s) for p, s in zip(paths, sizes, strict=True)]).encode()).hexdigest()
    places = [user_cache("offsets") / f"{key[:32]}.npz"]
    if not is_remote(paths[0]):
        places.insert(0, Path(paths[0].parent) / f".binwrn-offsets-{key[:16]}.npz")
    for place in places if cache else ():
        found = read_cached(place)
        if found and all(
            str(i) in found and found[str(i)][-1:].tolist() == [size] for i, size in enumerate(sizes)
        ):
            return [found[str(i)] for i in range(len(paths))]
    with ThreadPoolExecutor(16) as pool:  # where files are remote, waiting is most of it
        offsets = list(pool.map(_scan, paths, sizes))
    if cache:
        write_cached(places, {str(i): array for i, array in enumerate(offsets)})
    return offsets


def _file_size(path: Any) -> int:
    """Bytes of a file, local or remote."""
    if is_remote(path):
        return int(path.stat().length)
    return os.stat(path).st_size  # etils also looks up the owner's name, and not every owner has one


def _scan(path: Any, size: int) -> np.ndarray:
    offsets = [0]
    with path.open("rb") as file:
        while offsets[-1] < size:
            file.seek(offsets[-1])
            header = file.read(12)
            if len(header) == 12:
                if masked_crc(header[:8]) != header[8:]:
                    raise DamagedError(
                        f"{path}: the length of record {len(offsets) - 1} has another checksum than stated"
                    )
                offsets.append(offsets[-1] + struct.unpack("<Q4x", header)[0] + 16)
            if len(header) < 12 or offsets[-1] > size:
                raise EOFError(f"{path} ends within a record")
    return np.array(offsets, np.int64)
