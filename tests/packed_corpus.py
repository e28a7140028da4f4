"""Files that every reader of the packed format accepts, and files that every reader refuses.

Each is described by what it changes in the golden file; the checksum of the whole file is right again
afterwards, unless the change is about that checksum. `FILES` has them by name.
"""

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from packed_models import golden_model

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.packed import serialise

ZEROS = "0" * 64
Edit = Callable[["Parts"], Any]


@dataclasses.dataclass
class Parts:
    """A packed file in parts that can be changed.

    Attributes:
      metadata: the JSON object ``binwrn``.
      header: the entries of the tensors.
      tensors: their arrays, in the order of the file.
      outer: further entries of ``__metadata__``.
    """

    metadata: dict[str, Any]
    header: dict[str, Any]
    tensors: dict[str, np.ndarray]
    outer: dict[str, Any]

    @property
    def operations(self) -> list[dict[str, Any]]:
        return self.metadata["operations"]

    def set(self, name: str, array: Any) -> None:
        """Replaces a tensor, or adds one at the end."""
        self.tensors[name] = np.ascontiguousarray(array)

    def lay(self) -> bytes:
        """Places the tensors anew, one after the other: float32 first. Returns their bytes."""
        names = sorted(self.tensors, key=lambda name: -self.tensors[name].itemsize)
        self.tensors = {name: self.tensors[name] for name in names}
        self.header, position = {}, 0
        for name, array in self.tensors.items():
            code = next(code for code, dtype in numpy_reader.ALL_DTYPES.items() if dtype == array.dtype)
            offsets = [position, position + array.nbytes]
            self.header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": offsets}
            position += array.nbytes
        convs = {k: v for k, v in self.tensors.items() if not k.startswith("golden.")}
        with contextlib.suppress(KeyError):  # a tensor that is missing: the file is refused for that
            self.metadata["sha256"] = numpy_reader.checksum(self.metadata, convs)
        return self.data()

    def data(self) -> bytes:
        return b"".join(array.tobytes() for array in self.tensors.values())


def golden_parts() -> Parts:
    """Of the golden file, with its checksum."""
    packed = golden_model()
    content = serialise(packed)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    outer = header.pop("__metadata__")
    tensors = {name: tensor.copy() for name, tensor in packed.tensors.items()}
    return Parts(json.loads(outer.pop("binwrn")), header, tensors, {numpy_reader.CHECKSUM: ZEROS})


def container(header: bytes, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file; `header` is padded."""
    header += b" " * (-len(header) % 8)
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def seal(content: bytes) -> bytes:
    """Makes the checksum of the whole file right, where the header has a place for it."""
    start = 8 + int.from_bytes(content[:8], "little")
    marker = f'"{numpy_reader.CHECKSUM}":"'.encode()
    at = content.find(marker, 0, start) + len(marker)
    stated = content[at : at + 64].decode("latin-1")
    if at < len(marker) or numpy_reader._checksum_at(content[8:start], stated) < 0:
        return content
    found = numpy_reader.file_checksum(content[:start], stated, content[start:])
    return content[:at] + found.encode() + content[at + 64 :]


def assemble(parts: Parts, data: bytes, metadata: str | None = None) -> bytes:
    """The file of parts; `metadata` is the text of the object ``binwrn``, if it is no JSON of the parts."""
    compact = {"separators": (",", ":")}
    inner = json.dumps(parts.metadata, **compact) if metadata is None else metadata
    header = {"__metadata__": {"binwrn": inner, **parts.outer}, **parts.header}
    return seal(container(json.dumps(header, **compact).encode(), data))


def edited(edit: Edit) -> bytes:
    """The golden file after a change of its parts; an edit that returns text replaces the metadata by it."""
    parts = golden_parts()
    data = parts.data()
    result = edit(parts)
    return assemble(parts, data, result if isinstance(result, str) else None)


def rebuilt(edit: Edit) -> bytes:
    """The golden file after a change of its operations and tensors, which are laid anew."""
    parts = golden_parts()
    edit(parts)
    return assemble(parts, parts.lay())


def rewritten(change: Callable[[bytes], bytes]) -> bytes:
    """The golden file after a change of the bytes of its header, padded and sealed again."""
    content = edited(lambda parts: None)
    start = 8 + int.from_bytes(content[:8], "little")
    at = content.index(b'"file_sha256":"') + 15
    header = content[8:at] + ZEROS.encode() + content[at + 64 : start]
    return seal(container(change(header.rstrip()), content[start:]))


def network(
    shape: tuple[int, int, int], operations: list[dict[str, Any]], tensors: dict[str, Any], classes: int
) -> bytes:
    """A file of another network than the golden one; its golden logits are those that NumPy computes."""
    parts = golden_parts()
    parts.metadata.update(operations=operations, num_classes=classes, class_names=[])
    parts.metadata["input"]["shape"] = list(shape)
    image = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    parts.tensors = {name: np.asarray(x) for name, x in tensors.items()}
    parts.set("golden.image", image)
    parts.set("golden.logits", np.zeros(classes, np.float32))
    parts.lay()
    try:
        logits = numpy_reader.Model(parts.metadata, parts.tensors)(image[None])[0]
    except numpy_reader.PackedFileError:
        logits = np.zeros(classes, np.float32)
    parts.set("golden.logits", logits)
    return assemble(parts, parts.lay())


def chain(depth: int, gain: float, channels: int = 8) -> bytes:
    """`depth` convolutions of 3 x 3, each after a multiply-add; values grow about `gain` times."""
    rng = np.random.default_rng(depth)
    operations, tensors, x, c_in = [], {}, "image", 1
    for i in range(depth):
        scale = np.full(c_in, gain / (255 if i == 0 else math.sqrt(9 * c_in / 2)))
        tensors[f"a{i}.scale"], tensors[f"a{i}.offset"] = np.float32(scale), np.zeros(c_in, np.float32)
        operations.append({"op": "affine", "in": [x], "out": f"r{i}", "tensor": f"a{i}", "min": 0})
        bits = rng.integers(0, 2, (channels, 9 * c_in), np.uint8)
        tensors[f"c{i}"] = np.packbits(bits, axis=1, bitorder="little")
        operations.append(
            {"op": "conv", "in": [f"r{i}"], "out": f"x{i}", "tensor": f"c{i}", "window": [3, 3],
             "stride": [1, 1], "pads": [[1, 1], [1, 1]], "channels": [c_in, channels]}
        )  # fmt: skip
        x, c_in = f"x{i}", channels
    operations.append({"op": "global_average", "in": [x], "out": "logits"})
    return network((5, 5, 1), operations, tensors, channels)


def _metadata(**fields: Any) -> bytes:
    return edited(lambda parts: parts.metadata.update(fields))


def _input(**fields: Any) -> bytes:
    return edited(lambda parts: parts.metadata["input"].update(fields))


def _operation(index: int, **fields: Any) -> bytes:
    return edited(lambda parts: parts.operations[index].update(fields))


def _nested(depth: int) -> bytes:
    """Metadata whose innermost list is inside so many objects and lists, itself counted."""
    return edited(
        lambda parts: json.dumps(parts.metadata)[:-1] + ',"x":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"
    )


def _ignored(text: str) -> bytes:
    """Metadata with an unknown key whose value has this text."""
    return edited(lambda parts: json.dumps(parts.metadata)[:-1] + f',"x":{text}}}')


def _marks(count: int) -> bytes:
    """Metadata with so many characters , : [ { outside of strings."""
    parts = golden_parts()
    text = json.dumps(parts.metadata, separators=(",", ":"))[:-1] + ',"x":['
    outside = "".join(text.split('"')[::2])
    missing = count - sum(outside.count(mark) for mark in ",:[{")
    return edited(lambda parts: text + "1," * missing + "1]}")


def _renamed(index: int, name: str) -> Edit:
    """Gives the tensor of a convolution or multiply-add another name."""

    def edit(parts: Parts) -> None:
        operation = parts.operations[index]
        old = operation["tensor"]
        for suffix in ("",) if operation["op"] == "conv" else (".scale", ".offset"):
            parts.tensors = {name + suffix if k == old + suffix else k: v for k, v in parts.tensors.items()}
        operation["tensor"] = name

    return edit


def _old(edit: Edit = lambda parts: None, **fields: Any) -> bytes:
    """As files were before they had a checksum of all their bytes."""

    def both(parts: Parts) -> Any:
        parts.outer.clear()
        parts.metadata.update(fields)
        return edit(parts)

    return edited(both)


def _named_output(name: str) -> Edit:
    def edit(parts: Parts) -> None:
        parts.operations[0]["out"] = name
        parts.operations[1]["in"] = [name]

    return edit


def _floats(name: str, *values: float) -> bytes:
    """The first numbers of a tensor are these."""

    def edit(parts: Parts) -> None:
        parts.tensors[name][: len(values)] = values

    return rebuilt(edit)


def pooled(op: str, side: int, window: int, channels: int, stride: int = 1) -> bytes:
    """1 channel padded to many, one large window over an image that is mostly padding."""
    operations = [
        {"op": "pad_channels", "in": ["image"], "out": "a", "channels": channels},
        {"op": op, "in": ["a"], "out": "b", "window": [window] * 2, "stride": [stride] * 2,
         "pads": [[window - 1] * 2] * 2},
        {"op": "global_average", "in": ["b"], "out": "logits"},
    ]  # fmt: skip
    return network((side, side, 1), operations, {}, channels)


def convolved(side: int, window: int, inputs: int, outputs: int) -> bytes:
    """1 channel padded to many, one convolution whose windows do not overlap and are mostly padding."""
    operations = [
        {"op": "pad_channels", "in": ["image"], "out": "a", "channels": inputs},
        {"op": "conv", "in": ["a"], "out": "b", "tensor": "kernel", "window": [window] * 2,
         "stride": [window] * 2, "pads": [[window - 1] * 2] * 2, "channels": [inputs, outputs]},
        {"op": "global_average", "in": ["b"], "out": "logits"},
    ]  # fmt: skip
    bits = np.full((outputs, -(-window * window * inputs // 8)), 0x55, np.uint8)
    return network((side, side, 1), operations, {"kernel": bits}, outputs)


def _without_convolution() -> bytes:
    return network((3, 2, 4), [{"op": "global_average", "in": ["image"], "out": "x"}], {}, 4)


def _many_operations(count: int) -> bytes:
    operations = [{"op": "add", "in": ["image", "image"], "out": "v0"}]
    operations += [{"op": "max_pool", "in": [f"v{i}"], "out": f"v{i + 1}", "window": [1, 1], "stride": [1, 1],
                    "pads": [[0, 0], [0, 0]]} for i in range(count - 2)]  # fmt: skip
    operations += [{"op": "global_average", "in": [f"v{count - 2}"], "out": "logits"}]
    return network((1, 1, 2), operations, {}, 2)


def _unused_values(parts: Parts) -> None:
    parts.operations.insert(5, {"op": "add", "in": ["c", "c"], "out": "nobody reads this"})


ACCEPTED = {
    "as it is": lambda: edited(lambda parts: None),
    "older, without a checksum": lambda: _old(),
    "older, with spaces in its JSON": lambda: _old(lambda parts: json.dumps(parts.metadata, indent=1)),
    "minimum of another kind": lambda: _operation(2, min=-3),
    "minimum with an exponent": lambda: edited(
        lambda parts: json.dumps(parts.metadata).replace('"min": -0.5', '"min": -5.0E-1')
    ),
    "minimum left out": lambda: edited(lambda parts: parts.operations[2].pop("min")),
    "no class names": lambda: _metadata(class_names=[]),
    "class names of any language": lambda: _metadata(class_names=["ü", "犬", "\U0001f600"]),
    "every descriptive field": lambda: _metadata(
        dataset="digits",
        network={"type": "x"},
        test={"error": 1.0},
        config_sha256="ab",
        license="MIT",
        source={"layout": "keras"},
    ),
    "every descriptive field null": lambda: _metadata(
        dataset=None, network=None, test=None, config_sha256=None, license=None, source=None
    ),
    "source as text": lambda: _metadata(source="https://example.org"),
    "resize for ImageNet": lambda: _input(resize="center_crop", channels="RGB"),
    "resize left out": lambda: edited(lambda parts: parts.metadata["input"].pop("resize") and None),
    "unknown keys": lambda: _metadata(extra={"a": [1.5e3, -0.0, True, None, "\U0001f600\\\n"]}, x=-7),
    "nested 64 deep": lambda: _nested(64),
    "a number of 4300 characters": lambda: _ignored("9" * 4300),
    "a real number of 4300 characters": lambda: _ignored("1." + "3" * 4298),
    "a number beyond double": lambda: _ignored("-1e99999"),
    "a pair of surrogates": lambda: _ignored('"\\ud83d\\ude00 \\u0000 \\u00e9"'),
    "white space around the header": lambda: rewritten(lambda header: header[:1] + b" \t\r\n" + header[1:]),
    "control character in a text of no meaning": lambda: _metadata(note="\x1b[31m"),
    "value name of 64 characters": lambda: rebuilt(_named_output("ü" * 64)),
    "value called like a tensor": lambda: rebuilt(_named_output("golden.logits")),
    "tensor names that are odd": lambda: rebuilt(_renamed(1, 'a "file_sha256\\": ü')),
    "tensor with an empty name": lambda: rebuilt(_renamed(1, "")),
    "tensor called golden": lambda: rebuilt(_renamed(1, "golden.bits")),
    "multiply-add called golden": lambda: rebuilt(_renamed(2, "golden")),
    "multiply-add called like a convolution": lambda: rebuilt(_renamed(2, "conv0")),
    "value that nobody reads": lambda: rebuilt(_unused_values),
    "no convolution": _without_convolution,
    "one large window over padding": lambda: pooled("max_pool", 16, 64, 64, 8),
    "1424 bytes that pool 64 x 64": lambda: pooled("max_pool", 16, 64, 64),
    "4096 operations": lambda: _many_operations(4096),
    "2^20 marks": lambda: _marks(1 << 20),
    "large scale and small ones": lambda: _floats("affine2.scale", 1e30, 1e-30, 0),
    "deep, with values of no known bound": lambda: chain(60, 1.0),
}
REFUSED_WHEN_RUN = {
    "deep, with values that explode": lambda: chain(60, 30.0),
}
REFUSED = {
    "UTF-16": lambda: _encoded("utf-16-le"),
    "UTF-32": lambda: _encoded("utf-32-le"),
    "byte order mark": lambda: rewritten(lambda header: b"\xef\xbb\xbf" + header),
    "byte order mark in the metadata": lambda: edited(lambda parts: "\ufeff" + json.dumps(parts.metadata)),
    "Latin-1": lambda: rewritten(lambda header: header.replace(b"CC0", b"CC\xe9")),
    "a raw surrogate": lambda: rewritten(lambda header: header.replace(b"CC0", b"\xed\xa0\x80")),
    "too long a form in UTF-8": lambda: rewritten(lambda header: header.replace(b"CC0", b"\xc1\x81")),
    "half of a surrogate pair": lambda: _ignored('"\\ud83d"'),
    "second half of a surrogate pair": lambda: _ignored('"\\ude00"'),
    "surrogates in the wrong order": lambda: _ignored('"\\ude00\\ud83d"'),
    "two first halves": lambda: _ignored('"\\ud83d\\ud83d"'),
    "half of a pair as a key": lambda: edited(lambda parts: json.dumps({**parts.metadata, "\ud83d": 1})),
    "half of a pair in the header": lambda: rewritten(
        lambda header: header.replace(b'"conv1"', b'"conv1\\ud83d"')
    ),
    "licence with half of a pair": lambda: edited(
        lambda parts: json.dumps(parts.metadata).replace("CC0", "\\ud800")
    ),
    "nested 65 deep": lambda: _nested(65),
    "nested 5000 deep": lambda: _nested(5000),
    "header nested 65 deep": lambda: rewritten(
        lambda header: header[:-1] + b',"x":' + b"[" * 64 + b"]" * 64 + b"}"
    ),
    "one mark more than 2^20": lambda: _marks((1 << 20) + 1),
    "a number of 4301 characters": lambda: _ignored("9" * 4301),
    "a negative number of 4301 characters": lambda: _ignored("-" + "9" * 4300),
    "a real number of 4301 characters": lambda: _ignored("1." + "3" * 4299),
    "an exponent of 4301 characters": lambda: _ignored("1e" + "0" * 4299),
    "NaN": lambda: _ignored("NaN"),
    "Infinity": lambda: _ignored("-Infinity"),
    "a leading zero": lambda: _ignored("01"),
    "a plus sign": lambda: _ignored("+1"),
    "a trailing comma": lambda: _ignored("[1,]"),
    "a comment": lambda: _ignored("1/**/"),
    "a raw control character": lambda: _ignored('"\n"'),
    "range with a real number": lambda: _input(range=[0, 255.0]),
    "range with false": lambda: _input(range=[False, 255]),
    "range as text": lambda: _input(range="0..255"),
    "shape with a real number": lambda: _input(shape=[6.0, 7, 3]),
    "input as a list": lambda: _metadata(input=[]),
    "network as text": lambda: _metadata(network="wide_resnet"),
    "network as a list": lambda: _metadata(network=[]),
    "dataset as a list": lambda: _metadata(dataset=["digits"]),
    "dataset with a control character": lambda: _metadata(dataset="digits\n"),
    "resize null": lambda: _input(resize=None),
    "channels null": lambda: _input(channels=None),
    "resize as a list": lambda: _input(resize=["bilinear"]),
    "resize unknown": lambda: _input(resize="nearest"),
    "channels unknown": lambda: _input(channels="CMYK"),
    "channels as a number": lambda: _input(channels=3),
    "licence as an object": lambda: _metadata(license={"name": "MIT"}),
    "licence with an escape sequence": lambda: _metadata(license="\x1b]0;x\x07"),
    "config_sha256 as a number": lambda: _metadata(config_sha256=7),
    "test as a number": lambda: _metadata(test=0.5),
    "source as a list": lambda: _metadata(source=[1]),
    "class name with an escape sequence": lambda: _metadata(class_names=["a", "\x1b[2J", "c"]),
    "class name with a line break": lambda: _metadata(class_names=["a", "b\n", "c"]),
    "class name with DEL": lambda: _metadata(class_names=["a", "\x7f", "c"]),
    "class name with a C1 character": lambda: _metadata(class_names=["a", "\x9b2J", "c"]),
    "class name with a zero": lambda: _metadata(class_names=["a", "b\0", "c"]),
    "class names as text": lambda: _metadata(class_names="abc"),
    "class names left out": lambda: edited(lambda parts: parts.metadata.pop("class_names")),
    "a number as a class name": lambda: _metadata(class_names=["a", 1, "c"]),
    "classes as a real number": lambda: _metadata(num_classes=3.0),
    "classes true": lambda: _metadata(num_classes=True),
    "bits called golden.logits": lambda: rebuilt(_renamed(1, "golden.logits")),
    "bits called golden.image": lambda: _golden_image_as_bits(),
    "bits called as a scale": lambda: rebuilt(_renamed(1, "affine0.scale")),
    "value name of 65 characters": lambda: rebuilt(_named_output("ü" * 65)),
    "minimum true": lambda: _operation(2, min=True),
    "minimum beyond float32": lambda: _operation(2, min=3.1e38),
    "4097 operations": lambda: _many_operations(4097),
    "scale of 1e38": lambda: _floats("affine0.scale", 1e38),
    "offset near the end of float32": lambda: _floats("affine1.offset", 3e38),
    "minimum near the end of float32": lambda: _operation(2, min=-3e38),
    "scale not finite": lambda: _floats("affine0.scale", math.inf),
    "scale NaN": lambda: _floats("affine0.scale", math.nan),
    "unknown entry beside the metadata": lambda: edited(lambda parts: parts.outer.update(format="pt")),
    "checksum null": lambda: edited(lambda parts: parts.outer.update(file_sha256=None)),
    "checksum of zeros": lambda: edited(lambda parts: None).replace(_stated(), ZEROS.encode()),
    "checksum too short": lambda: edited(lambda parts: parts.outer.update(file_sha256="0" * 63)),
    "checksum too long": lambda: edited(lambda parts: parts.outer.update(file_sha256="0" * 65)),
    "checksum in capitals": lambda: edited(lambda parts: None).replace(_stated(), _stated().upper()),
    "checksum after a space": lambda: rewritten(lambda header: header.replace(b'256":"0', b'256": "0')),
    "checksum with an escape": lambda: rewritten(lambda header: header.replace(b'"file_', b'"\\u0066ile_')),
    "checksum twice": lambda: rewritten(
        lambda header: header.replace(b'"file_', b'"file_sha256":"' + ZEROS.encode() + b'","file_')
    ),
    "metadata called otherwise": lambda: rewritten(lambda header: header.replace(b'"binwrn":', b'"binwrm":')),
}


def _stated() -> bytes:
    """The checksum of the golden file."""
    content = edited(lambda parts: None)
    at = content.index(b'"file_sha256":"') + 15
    return content[at : at + 64]


def _encoded(encoding: str) -> bytes:
    content = edited(lambda parts: None)
    start = 8 + int.from_bytes(content[:8], "little")
    return container(content[8:start].decode().encode(encoding), content[start:])


def _golden_image_as_bits() -> bytes:
    """A convolution whose bits are the golden image: both have two dimensions if the image has height 1."""

    def edit(parts: Parts) -> None:
        parts.operations[1]["tensor"] = "golden.image"
        del parts.tensors["conv0"]

    return rebuilt(edit)


def _change(index: int, **fields: Any) -> Callable[[Any, Any], None]:
    return lambda h, m: m["operations"][index].update(fields)


# Changes of the tensors' entries h and of the metadata m, and what NumPy's reader then says.
HOSTILE = {
    "other format": (lambda h, m: m.update(format="x"), "format 'x'"),
    "newer version": (lambda h, m: m.update(version=3), "version 3, but this program reads versions 1 and 2"),
    "no version": (lambda h, m: m.update(version="1"), "no version number"),
    "true as a number": (lambda h, m: m.update(version=True), "no version number"),
    "wrong checksum": (lambda h, m: m.update(sha256="0" * 64), "checksum"),
    "no operations": (lambda h, m: m.update(operations=[]), "operations"),
    "a million operations": (lambda h, m: m.update(operations=[{}] * 10**6), "more than 1048576 values"),
    "operation of another type": (lambda h, m: m.update(operations=[3]), "not an object"),
    "unknown op": (_change(0, op="exec"), "unknown op"),
    "op of another type": (_change(0, op=["conv"]), "unknown op"),
    "unknown field": (_change(1, bias=[2, 2]), "unknown field"),
    "a field of version 2": (_change(1, dilation=[2, 2]), "dilation, which version 1 does not have"),
    "value from nowhere": (_change(0, **{"in": ["z"]}), "not made"),
    "value of the future": (_change(0, **{"in": ["b"]}), "not made"),
    "too many inputs": (_change(0, **{"in": ["image", "image"]}), "not made"),
    "inputs of another type": (_change(0, **{"in": [[]]}), "not made"),
    "value made twice": (_change(1, out="a"), "made twice"),
    "image made again": (_change(0, out="image"), "made twice"),
    "zero stride": (_change(1, stride=[0, 1]), "stride"),
    "huge window": (_change(1, window=[10**9, 1]), "window"),
    "window of floats": (_change(1, window=[3.0, 5.0]), "window"),
    "window of bools": (_change(1, window=[True, True]), "window"),
    "negative padding": (_change(1, pads=[[-1, 1], [2, 1]]), "pads"),
    "padding beyond the window": (_change(3, pads=[[2, 0], [0, 2]]), "pads"),
    "window beyond the image": (_change(3, window=[9, 3], pads=[[0, 0], [0, 2]]), "does not fit"),
    "absurd channels": (_change(1, channels=[3, 10**12]), "channels"),
    "other channels": (_change(1, channels=[4, 5]), "channels"),
    "fewer channels": (_change(7, channels=1), "channels"),
    "absurd padded channels": (_change(7, channels=10**9), "channels"),
    "sum of unequal values": (_change(5, **{"in": ["c", "e"]}), "shapes"),
    "min of another type": (_change(2, min="0"), "min"),
    "infinite min": (_change(2, min=10**400), "min"),
    "tensor used twice": (_change(2, tensor="affine0"), "used twice"),
    "missing tensor": (_change(2, tensor="affine9"), "missing"),
    "tensor name of another type": (_change(2, tensor=None), "tensor None"),
    "affine last": (lambda h, m: m["operations"].pop(), "global_average"),
    "average in the middle": (_change(8, op="global_average", tensor=None), "unknown field"),
    "classes": (lambda h, m: m.update(num_classes=4, class_names=[]), "4 classes"),
    "class names": (lambda h, m: m.update(class_names=["a"]), "class_names"),
    "no input": (lambda h, m: m.pop("input"), "input None is not an object"),
    "huge image": (lambda h, m: m["input"].update(shape=[10**6, 10**6, 3]), "input shape"),
    "large image": (lambda h, m: m["input"].update(shape=[4096, 4096, 3]), "activations"),
    "other image": (lambda h, m: m["input"].update(shape=[7, 7, 3]), "golden.image"),
    "float image": (lambda h, m: m["input"].update(dtype="float32"), "dtype"),
    "other range": (lambda h, m: m["input"].update(range=[0, 1]), "range"),
    "float weights": (lambda h, m: h["conv1"].update(dtype="F32", shape=[1, 1, 1]), "does not fit"),
    "unknown dtype": (lambda h, m: h["conv1"].update(dtype="F8"), "dtype"),
    "dtype of another type": (lambda h, m: h["conv1"].update(dtype=[]), "dtype"),
    "shape of another size": (lambda h, m: h["conv1"].update(shape=[3, 1]), "does not fit"),
    "overflowing shape": (lambda h, m: h["conv1"].update(shape=[2**31, 2**31, 4]), "shape"),
    "negative shape": (lambda h, m: h["conv1"].update(shape=[-1, -2]), "shape"),
    "overlap": (lambda h, m: h["conv1"].update(data_offsets=[0, 2]), "gap or overlap"),
    "beyond the end": (lambda h, m: h["conv1"].update(data_offsets=[10**6, 10**6 + 2]), "gap or overlap"),
    "negative offset": (lambda h, m: h["conv1"].update(data_offsets=[-2, 0]), "offsets"),
    "unaligned": (lambda h, m: h["affine0.scale"].update(data_offsets=[1, 13]), "not aligned"),
    "missing entry": (lambda h, m: h.pop("conv1"), "truncated or damaged|gap or overlap"),
    "entry of another type": (lambda h, m: h.update(conv1=7), "bad tensor entry"),
    "no JSON inside": (lambda h, m: "{", "not valid JSON"),
    "deep JSON": (lambda h, m: '{"a":' + "[" * 200_000 + "]" * 200_000 + "}", "more than 64 deep"),
    "NaN": (lambda h, m: '{"a":NaN}', "value NaN"),
    "a key twice": (lambda h, m: '{"a":1,"a":2}', "key twice"),
    "no object inside": (lambda h, m: "[]", "not a JSON object"),
}
REFUSED |= {
    name: lambda edit=edit: edited(lambda parts: edit(parts.header, parts.metadata))
    for name, (edit, _) in HOSTILE.items()
}


def write_all(folder: str, accepted: dict[str, Any], refused: dict[str, Any]) -> None:
    """Writes all files into the folders ``accepted`` and ``refused``, for other readers of the format."""
    for verdict, files in (("accepted", accepted), ("refused", refused)):
        place = Path(folder, verdict)
        place.mkdir(parents=True, exist_ok=True)
        for name, make in files.items():
            (place / f"{name.replace(' ', '-').replace('^', '')}.safetensors").write_bytes(make())


if __name__ == "__main__":
    write_all(sys.argv[1], {**ACCEPTED, **REFUSED_WHEN_RUN}, REFUSED)
