"""Prepared folders in the older format of TFDS."""

import struct

from array_record.python.array_record_data_source import ArrayRecordDataSource

from binwrn_jax.data.records import masked_crc


def to_tfrecord(folder):
    """Turns a prepared folder into the older format."""
    for path in folder.glob("*.array_record-*"):
        with ArrayRecordDataSource(str(path)) as source:
            records = source.__getitems__(list(range(len(source))))
        parts = [[struct.pack("<Q", len(record)), record] for record in records]
        content = b"".join(part + masked_crc(part) for pair in parts for part in pair)
        (folder / path.name.replace("array_record", "tfrecord")).write_bytes(content)
        path.unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
