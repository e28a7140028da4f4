"""Files that the native runtime refuses: the same ones as the definition of the format."""

import json
import struct

import numpy as np
import packed_corpus
import pytest

from binwrn_jax.deploy import native, numpy_reader
from binwrn_jax.deploy.packed import serialise
from binwrn_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("library")


def header_of(content):
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return packed_corpus.seal(packed_corpus.container(text, data))


def edited(content, edit):
    """The file after `edit(metadata, header)`."""
    header, data = header_of(content)
    metadata = json.loads(header["__metadata__"]["binwrn"])
    edit(metadata, header)
    header["__metadata__"]["binwrn"] = json.dumps(metadata)
    return with_header(header, data)


def conv(metadata, index=0):
    return [op for op in metadata["operations"] if op["op"] == "conv"][index]


EDITS = {
    "format": lambda m, h: m.update(format="other"),
    "no operations": lambda m, h: m.update(operations=[]),
    "operations of another type": lambda m, h: m.update(operations={"0": {}}),
    "unknown op": lambda m, h: m["operations"][0].update(op="softmax"),
    "unknown field": lambda m, h: m["operations"][0].update(bias=1),
    "field of another op": lambda m, h: m["operations"][0].update(window=[1, 1]),
    "image of 2^12 sides": lambda m, h: m["input"].update(shape=[4096, 4096, 4096]),
    "image side 0": lambda m, h: m["input"].update(shape=[0, 10, 3]),
    "image side 2^63": lambda m, h: m["input"].update(shape=[2**63, 10, 3]),
    "float input": lambda m, h: m["input"].update(dtype="float32"),
    "range": lambda m, h: m["input"].update(range=[0, 1]),
    "window 0": lambda m, h: conv(m).update(window=[0, 3]),
    "window too large": lambda m, h: conv(m).update(window=[65, 3]),
    "window of 3": lambda m, h: conv(m).update(window=[3, 3, 1]),
    "stride 0": lambda m, h: conv(m).update(stride=[0, 1]),
    "stride negative": lambda m, h: conv(m).update(stride=[1, -1]),
    "stride a float": lambda m, h: conv(m).update(stride=[1.0, 1]),
    "stride true": lambda m, h: conv(m).update(stride=[True, 1]),
    "pads of the window": lambda m, h: conv(m).update(pads=[[3, 0], [1, 1]]),
    "pads that make the terms of a sum differ": lambda m, h: conv(m, 1).update(pads=[[2, 1], [1, 1]]),
    "channels in": lambda m, h: conv(m)["channels"].__setitem__(0, 4),
    "channels out": lambda m, h: conv(m)["channels"].__setitem__(1, 17),
    "channels 2^31": lambda m, h: conv(m)["channels"].__setitem__(1, 2**31),
    "input of later": lambda m, h: conv(m).update({"in": ["v9"]}),
    "input missing": lambda m, h: conv(m).update({"in": []}),
    "output twice": lambda m, h: m["operations"][1].update(out="v0"),
    "output called image": lambda m, h: m["operations"][0].update(out="image"),
    "output without name": lambda m, h: m["operations"][0].update(out=""),
    "tensor absent": lambda m, h: conv(m).update(tensor="conv99"),
    "tensor of another": lambda m, h: conv(m).update(tensor="conv1"),
    "tensor a number": lambda m, h: conv(m).update(tensor=7),
    "min a string": lambda m, h: m["operations"][0].update(min="0"),
    "min huge": lambda m, h: m["operations"][0].update(min=1e39),
    "no global average": lambda m, h: m["operations"].pop(),
    "global average twice": lambda m, h: m["operations"].insert(
        1, {"op": "global_average", "in": ["v0"], "out": "w"}
    ),
    "classes": lambda m, h: m.update(num_classes=6),
    "class names": lambda m, h: m.update(class_names=["a"]),
    "class names of numbers": lambda m, h: m.update(class_names=[1, 2, 3, 4, 5]),
    "checksum": lambda m, h: m.update(sha256="0" * 64),
    "no checksum": lambda m, h: m.pop("sha256"),
    "dtype": lambda m, h: h["conv0"].update(dtype="I8"),
    "shape": lambda m, h: h["conv0"].update(shape=[4, 4]),
    "offsets swapped": lambda m, h: h["conv0"].update(data_offsets=h["conv0"]["data_offsets"][::-1]),
    "offsets beyond": lambda m, h: h["conv0"].update(data_offsets=[10**6, 10**6 + 64]),
    "offsets overlap": lambda m, h: h["conv1"].update(data_offsets=h["conv0"]["data_offsets"]),
    "unused tensor": lambda m, h: h.update({"x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}),
    "missing tensor": lambda m, h: h.pop("golden.logits"),
}


def verdicts(content, path):
    """Whether the definition of the format and the native runtime accept a file."""
    path.write_bytes(content)
    result = []
    for read in (numpy_reader.read, lambda p: native.load(p, threads=1)):
        try:
            read(path)
            result.append(True)
        except (numpy_reader.PackedFileError, UserError) as error:
            assert "\n" not in str(error)
            result.append(False)
    return result


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_refuses_what_the_format_forbids(packed, tmp_path, edit):
    assert verdicts(edited(serialise(packed), edit), tmp_path / "m") == [False, False]


@pytest.mark.parametrize(
    "edit",
    [
        lambda m, h: m["operations"][0].update(min=-3),
        lambda m, h: m["operations"][0].pop("min"),
        lambda m, h: m.update(class_names=[]),
        lambda m, h: m.update(extra={"a": [1.5e3, -0, True, None, "\ud83d\ude00\\\n"]}),
        lambda m, h: m.update(nested=[[[[[[[[[[]]]]]]]]]]),
    ],
)
def test_accepts_what_the_format_allows(packed, tmp_path, edit):
    assert verdicts(edited(serialise(packed), edit), tmp_path / "m") == [True, True]


def test_versions(packed, tmp_path):
    path = tmp_path / "m"
    path.write_bytes(edited(serialise(packed), lambda m, h: m.update(version=3)))
    with pytest.raises(UserError, match="version 3, but this program reads versions 1 and 2: update it"):
        native.load(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"{}",
        b"[]",
        b'{"__metadata__":{"binwrn":"{}"}}',
        b'{"__metadata__":{"binwrn":"' + b"[" * 5000 + b'"}}',
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"a":1,"a":2}',
        b'{"__metadata__":{"binwrn":"{\\"a\\":1,\\"a\\":2}"}}',
        b'{"a":NaN}',
        b'{"a":01}',
        b'{"a":1.}',
        b'{"a":"\\x"}',
        b'{"a":"\\u12"}',
        b'{"a":"\xff"}',
        b'{"a":"\xc0\x80"}',
        b'{"a":"\n"}',
        b'{"a":1}x',
        b'{"a":' + b"9" * 4000 + b"e" + b"9" * 4000 + b"}",
    ],
)
def test_headers_that_are_no_packed_model(header, tmp_path):
    assert verdicts(with_header(header, b""), tmp_path / "m") == [False, False]


def test_truncated_and_longer_files(packed, tmp_path):
    content = serialise(packed)
    for end in [*range(0, 64, 3), *range(64, len(content), len(content) // 60), len(content) - 1]:
        assert verdicts(content[:end], tmp_path / "m") == [False, False], end
    assert verdicts(content + b"\0", tmp_path / "m") == [False, False]
    assert verdicts(content, tmp_path / "m") == [True, True]


def test_numbers_that_are_not_finite(packed, tmp_path):
    content = serialise(packed)
    header, data = header_of(content)
    for name in ("affine0.scale", "golden.logits"):
        for value in (np.nan, np.inf, -np.inf):
            begin = header[name]["data_offsets"][0]
            bad = data[:begin] + np.float32(value).tobytes() + data[begin + 4 :]
            assert verdicts(with_header(header, bad), tmp_path / "m") == [False, False]


def test_damaged_bytes_get_the_verdict_of_the_definition(packed, tmp_path):
    """In an older file, without a checksum that finds all damage."""
    header, data = header_of(serialise(packed))
    del header["__metadata__"]["file_sha256"]
    content, rng = with_header(header, data), np.random.default_rng(0)
    (length,) = struct.unpack("<Q", content[:8])
    accepted = 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at = (
                int(rng.integers(0, length + 8)) if rng.random() < 0.8 else int(rng.integers(0, len(content)))
            )
            damaged[at] = rng.choice(list(b'0123456789"[]{},:-.eE\\u truefalsn\x00\xff'))
        definition, found = verdicts(bytes(damaged), tmp_path / "m")
        assert definition == found, bytes(damaged[: length + 8])
        accepted += found
    assert 0 < accepted < 400
