"""The records of an offline run of Weights & Biases, decoded by wandb's own messages.

Newer versions of wandb read the file in their compiled core only. Its frame is LevelDB's log: after a header
of 7 bytes come blocks of 32 KiB with pieces of records, each with checksum, length and kind.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
FULL, LAST = 1, 4


def records(workdir: Path) -> Iterator[Any]:
    """The messages ``Record`` of all processes of the run in a work directory, in their order."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted((workdir / "wandb").glob("offline-run-*/run-*.wandb")):
        data = path.read_bytes()
        assert data[:4] == b":W&B"
        position, whole = HEADER, b""
        while position + HEADER <= len(data):
            if BLOCK - position % BLOCK < HEADER:  # a rest that is too short for a piece
                position += BLOCK - position % BLOCK
                continue
            _, length, kind = struct.unpack_from("<IHB", data, position)
            whole += data[position + HEADER : position + HEADER + length]
            position += HEADER + length
            if kind in (FULL, LAST):
                yield wandb_internal_pb2.Record.FromString(whole)
                whole = b""


def history(record: Any) -> dict[str, str]:
    """The values of a record's step, as JSON; empty for another kind of record."""
    if not record.HasField("history"):
        return {}
    return {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
