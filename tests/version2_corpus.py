"""Files of version 2 with float features that every reader accepts, or refuses: golden files after a change.

`PYTHONPATH=.:tests python -m version2_corpus FOLDER` writes them, into ``accepted`` and ``refused`` there.
"""

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from packed_corpus import ZEROS, Parts, assemble, write_all
from version2_models import Small, golden_model

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.packed import PackedModel, versioned

Edit = Callable[[Parts], Any]


def parts_of(packed: PackedModel) -> Parts:
    tensors = {name: tensor.copy() for name, tensor in packed.tensors.items()}
    return Parts(json.loads(json.dumps(packed.metadata)), {}, tensors, {numpy_reader.CHECKSUM: ZEROS})


def changed(feature: str, edit: Edit = lambda parts: None) -> bytes:
    """The golden file of a feature after a change of its parts, which are laid anew."""
    parts = parts_of(golden_model(feature))
    edit(parts)
    return assemble(parts, parts.lay())


def fields(feature: str, index: int = 0, /, **new: Any) -> bytes:
    """With other fields in the n-th operation that has the feature; those that are ... are left out."""

    def edit(parts: Parts) -> None:
        operation = _with(parts, feature)[index]
        operation |= new
        for key in [key for key, value in new.items() if value is ...]:
            del operation[key]

    return changed(feature, edit)


def _with(parts: Parts, feature: str) -> list[dict[str, Any]]:
    metadata = parts.metadata
    return [
        op for op in parts.operations if feature in numpy_reader.features({**metadata, "operations": [op]})
    ]


def built(build: Callable[[Small], PackedModel], **new: Any) -> bytes:
    """A model whose golden logits may be anything."""
    parts = parts_of(build(Small()))
    parts.metadata.update(new)
    return assemble(parts, parts.lay())


def ending(*operations: dict[str, Any], classes: int = 4, tensors: dict[str, Any] | None = None) -> bytes:
    """The image in 4 channels called ``x``, these operations, and the mean of the last one's result."""
    net = Small()
    parts = parts_of(net.finish(net.start(), 4))
    parts.metadata["operations"] = [
        *parts.operations[:3],
        *operations,
        {"op": "global_average", "in": [operations[-1]["out"]], "out": "logits"},
    ]
    parts.operations[2]["out"] = "x"
    for name in ("conv1", "golden.logits"):
        del parts.tensors[name]
    parts.tensors |= {name: np.asarray(x) for name, x in (tensors or {}).items()}
    parts.tensors["golden.logits"] = np.zeros(classes, np.float32)
    parts.metadata = versioned({**parts.metadata, "num_classes": classes})
    content = assemble(parts, parts.lay())
    try:
        image = parts.tensors["golden.image"][None]
        logits = numpy_reader.Model(parts.metadata, parts.tensors)(image)[0]
    except numpy_reader.PackedFileError:
        return content
    parts.tensors["golden.logits"] = logits
    return assemble(parts, parts.lay())


def _op(op: str, *inputs: str, out: str = "y", **more: Any) -> dict[str, Any]:
    return {"op": op, "in": list(inputs or ("x",)), "out": out, **more}


def _large(size: float, *operations: dict[str, Any], **tensors: Any) -> bytes:
    """Operations on 4 channels called ``s``, all of whose values are `size`."""
    tensors |= {"k.scale": np.zeros(4, np.float32), "k.offset": np.full(4, size, np.float32)}
    return ending(_op("affine", out="s", tensor="k"), *operations, tensors=tensors)


def _pixel(*operations: dict[str, Any]) -> list[dict[str, Any]]:
    """The operations on a single pixel ``s``, of which the mean at the end is no sum."""
    return [_op("global_pool", "s", out="p", kind="max"), *operations]


def _sum_of_channels(**more: Any) -> dict[str, Any]:
    pads = [[0, 0], [0, 0]]
    return _op("conv", "p", tensor="c", window=[1, 1], stride=[1, 1], pads=pads, channels=[4, 4], **more)


def _concatenated(count: int) -> bytes:
    """The image's first channel so many times."""
    return ending(_op("concat", *["x"] * count), classes=4 * count)


def _float_kernel(**new: Any) -> bytes:
    return fields("float_kernels", **new)


def _kernel(edit: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """With another tensor in the place of the first float kernel."""

    def change(parts: Parts) -> None:
        parts.tensors["conv1"] = edit(parts.tensors["conv1"])

    return changed("float_kernels", change)


def _first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(kernel: np.ndarray) -> np.ndarray:
        kernel = kernel.copy()
        kernel.flat[0] = value
        return kernel

    return edit


def _version1(parts: Parts) -> None:
    parts.metadata["version"] = 1
    del parts.metadata["requires"]


def _requires(*names: str) -> Edit:
    return lambda parts: parts.metadata.update(requires=list(names))


def _rows_without_groups(parts: Parts) -> None:
    """Rows as long as they would be without groups."""
    name = _with(parts, "groups")[0]["tensor"]
    parts.tensors[name] = np.zeros((8, -(-9 * 4 // 8)), np.uint8)


def _padding_bit(parts: Parts) -> None:
    parts.tensors[_with(parts, "groups")[0]["tensor"]][0, -1] |= 0x80


def _coding_of_floats(parts: Parts) -> None:
    _with(parts, "float_kernels")[0]["coding"] = "rans"
    parts.metadata["requires"] = ["entropy", "float_kernels"]


def _without_kernel(parts: Parts) -> None:
    del parts.tensors["conv1"]


MOST = 2.0**126
ACCEPTED: dict[str, Callable[[], bytes]] = {
    "clip to one value": lambda: fields("clip", min=0.5, max=0.5),
    "clip to a whole number": lambda: fields("clip", max=1),
    "clip from above only": lambda: fields("clip", min=...),
    "clip between numbers that float32 does not tell apart": lambda: fields("clip", min=0.1 + 1e-12, max=0.1),
    "clip to a large number": lambda: fields("clip", max=8e37),
    "concat of 256 values": lambda: _concatenated(256),
    "dilation of one pixel": lambda: ending(
        _op("conv", tensor="c", window=[1, 1], stride=[1, 1], pads=[[0, 0], [0, 0]], channels=[4, 4],
            dilation=[64, 64]),
        tensors={"c": np.full((4, 1), 5, np.uint8)},
    ),
    "dilation of 64 by padding": lambda: ending(
        _op("conv", tensor="c", window=[2, 1], stride=[1, 1], pads=[[64, 64], [0, 0]], channels=[4, 4],
            dilation=[64, 1]),
        tensors={"c": np.full((4, 1), 0x5A, np.uint8)},
    ),
    "dilation of 1 along one axis": lambda: fields("dilation", 1, dilation=[1, 2], pads=[[1, 1], [0, 0]]),
    "leaky ReLU with a slope of 0": lambda: fields("elementwise", 7, alpha=0),
    "leaky ReLU with a slope of -1000": lambda: fields("elementwise", 7, alpha=-1000),
    "float kernels of huge and tiny numbers": lambda: _kernel(_first(1e34)),
    "float kernel of zeros": lambda: _kernel(np.zeros_like),
    "padding to 4096 pixels": lambda: ending(_op("pad", pads=[[0, 4091], [0, 0]], value=0)),
    "padding with a large number": lambda: fields("pad", value=1e30),
    "product of a value with itself": lambda: ending(_op("product", "x", "x")),
    "product of two pixels": lambda: ending(
        _op("global_pool", out="p", kind="max"), _op("product", "p", "p")
    ),
    "resize by 64": lambda: ending(_op("resize", factor=[64, 1], method="bilinear")),
    "resize to 4096": lambda: ending(
        _op("max_pool", out="p", window=[5, 6], stride=[1, 1], pads=[[0, 0], [0, 0]]),
        _op("resize", "p", out="q", factor=[64, 1], method="nearest"),
        _op("resize", "q", factor=[64, 1], method="nearest"),
    ),
    "a temperature": lambda: changed(
        "clip", lambda parts: parts.metadata.update(requires=["clip", "temperature"], temperature=0.5)
    ),
    "an unknown key": lambda: changed("pad", lambda parts: parts.metadata.update(groups=2)),
    "values as large as can be, and their tanh": lambda: _large(
        MOST, _op("elementwise", "s", function="tanh")
    ),
    "values as large as can be, and their GELU": lambda: _large(
        MOST, *_pixel(_op("elementwise", "p", function="gelu_tanh"))
    ),
    "values as large as can be, and a small slope": lambda: _large(
        -MOST, *_pixel(_op("elementwise", "p", function="leaky_relu", alpha=0.5))
    ),
    "values as large as can be, enlarged": lambda: _large(
        MOST, *_pixel(_op("resize", "p", out="q", factor=[2, 1], method="bilinear"),
                      _op("global_pool", "q", kind="max"))
    ),
    "the mean of large values": lambda: _large(MOST / 32, _op("global_pool", "s", kind="average")),
    "large values in groups": lambda: _large(
        MOST / 2, *_pixel(_sum_of_channels(groups=2)), c=np.full((4, 1), 3, np.uint8)
    ),
    "large values and small float weights": lambda: _large(
        MOST, *_pixel(_sum_of_channels(weights="float32")), c=np.full((4, 1, 1, 4), -0.25, np.float32)
    ),
    "a large product": lambda: _large(2.0**63, *_pixel(_op("product", "p", "p"))),
}  # fmt: skip

REFUSED: dict[str, Callable[[], bytes]] = {
    # features
    "requires too little": lambda: changed("groups", _requires("clip")),
    "requires too much": lambda: changed("groups", _requires("groups", "pad")),
    "an operation in version 1": lambda: changed("pad", _version1),
    "a field in version 1": lambda: changed("groups", _version1),
    "a limit in version 1": lambda: changed("clip", _version1),
    "float kernels in version 1": lambda: changed("float_kernels", _version1),
    "an operation that is none": lambda: fields("pad", op="reshape"),
    "a temperature that it does not require": lambda: changed(
        "clip", lambda parts: parts.metadata.update(temperature=0.5)
    ),
    "int8 kernels": lambda: _float_kernel(weights="int8"),
    "integers that it requires and does not have": lambda: changed("clip", _requires("clip", "int8")),
    "no checksum of the file": lambda: changed("clip", lambda parts: parts.outer.clear()),
    "a type": lambda: fields("pad", type="i8"),
    # clip
    "max null": lambda: fields("clip", max=None),
    "max as text": lambda: fields("clip", max="6"),
    "max true": lambda: fields("clip", max=True),
    "max beyond float32": lambda: fields("clip", max=3.1e38),
    "max below min": lambda: fields("clip", min=0.5, max=0.25),
    "max of a convolution": lambda: fields("dilation", max=6),
    # concat
    "concat of one value": lambda: ending(_op("concat", "x")),
    "concat of 257 values": lambda: _concatenated(257),
    "concat of two sizes": lambda: ending(
        _op("global_pool", out="p", kind="max"), _op("concat", "x", "p"), classes=8
    ),
    "concat of 65,540 channels": lambda: ending(
        _op("global_pool", out="p", kind="max"),
        _op("pad_channels", "p", out="q", channels=32770),
        _op("concat", "q", "q"),
        classes=65540,
    ),
    "concat of a value that is not there": lambda: ending(_op("concat", "x", "z"), classes=8),
    "concat along another axis": lambda: fields("concat", axis=1),
    # dilation
    "dilation of 1": lambda: fields("dilation", dilation=[1, 1]),
    "dilation of 0": lambda: fields("dilation", dilation=[0, 2]),
    "dilation of 65": lambda: fields("dilation", 1, dilation=[1, 65], window=[2, 1]),
    "dilation as a number": lambda: fields("dilation", dilation=2),
    "dilation with a real number": lambda: fields("dilation", dilation=[2.0, 3]),
    "dilation null": lambda: fields("dilation", dilation=None),
    "dilation that does not fit": lambda: fields("dilation", dilation=[2, 9]),
    "padding as large as the window with its gaps": lambda: fields("dilation", pads=[[5, 1], [0, 2]]),
    "dilation of a pool": lambda: ending(
        _op("max_pool", window=[2, 1], stride=[1, 1], pads=[[0, 0], [0, 0]], dilation=[2, 1])
    ),
    # elementwise
    "function unknown": lambda: fields("elementwise", function="relu"),
    "function left out": lambda: fields("elementwise", function=...),
    "function null": lambda: fields("elementwise", function=None),
    "function as a list": lambda: fields("elementwise", function=["tanh"]),
    "alpha left out": lambda: fields("elementwise", 7, alpha=...),
    "alpha of tanh": lambda: fields("elementwise", 2, alpha=0.5),
    "alpha of 1001": lambda: fields("elementwise", 7, alpha=1001),
    "alpha null": lambda: fields("elementwise", 7, alpha=None),
    "alpha as text": lambda: fields("elementwise", 7, alpha="0.1"),
    # float kernels
    "weights null": lambda: _float_kernel(weights=None),
    "weights of float64": lambda: _float_kernel(weights="float64"),
    "weights and coding": lambda: changed("float_kernels", _coding_of_floats),
    "float kernel in rows": lambda: _kernel(lambda kernel: kernel.reshape(len(kernel), -1)),
    "float kernel the other way round": lambda: _kernel(lambda kernel: kernel.transpose(1, 2, 3, 0)),
    "float kernel as bits": lambda: _kernel(lambda kernel: np.zeros((5, 3), np.uint8)),
    "bits as a float kernel": lambda: _float_kernel(weights=...),
    "float kernel with NaN": lambda: _kernel(_first(math.nan)),
    "float kernel with infinity": lambda: _kernel(_first(-math.inf)),
    "float kernel missing": lambda: changed("float_kernels", _without_kernel),
    "float kernel in five dimensions": lambda: _kernel(lambda kernel: kernel[None]),
    "float kernel of numbers too large": lambda: _kernel(_first(1e37)),
    # global_pool
    "kind of pool unknown": lambda: fields("global_pool", kind="min"),
    "kind of pool left out": lambda: fields("global_pool", kind=...),
    "kind of pool as a list": lambda: fields("global_pool", kind=["max"]),
    "a window of a global pool": lambda: fields("global_pool", window=[5, 6]),
    # groups
    "one group": lambda: fields("groups", groups=1),
    "no group": lambda: fields("groups", groups=0),
    "groups true": lambda: fields("groups", groups=True),
    "groups as a real number": lambda: fields("groups", groups=4.0),
    "groups null": lambda: fields("groups", groups=None),
    "groups that cut the inputs": lambda: fields("groups", groups=8),
    "groups that cut the outputs": lambda: fields("groups", 1, groups=4),
    "rows without groups": lambda: changed("groups", _rows_without_groups),
    "a padding bit of a group": lambda: changed("groups", _padding_bit),
    # pad
    "padding of nothing": lambda: fields("pad", pads=[[0, 0], [0, 0]]),
    "padding below zero": lambda: fields("pad", pads=[[-1, 0], [0, 3]]),
    "padding of 4097": lambda: ending(_op("pad", pads=[[0, 4097], [0, 0]], value=0)),
    "padding to 4097 pixels": lambda: ending(_op("pad", pads=[[0, 4092], [0, 0]], value=0)),
    "padding of one axis": lambda: fields("pad", pads=[[1, 0]]),
    "padding with null": lambda: fields("pad", value=None),
    "padding with nothing said": lambda: fields("pad", value=...),
    "padding with true": lambda: fields("pad", value=True),
    "padding with a number beyond float32": lambda: fields("pad", value=-3.1e38),
    "padding with a number too large": lambda: fields("pad", value=1e38),
    # product
    "product of a pixel and an image": lambda: ending(
        _op("global_pool", out="p", kind="max"), _op("product", "p", "x")
    ),
    "product of three": lambda: ending(_op("product", "x", "x", "x")),
    "product of other channels": lambda: ending(
        _op("pad_channels", out="p", channels=5), _op("product", "x", "p")
    ),
    "product of rows": lambda: ending(
        _op("max_pool", out="p", window=[1, 6], stride=[1, 1], pads=[[0, 0], [0, 0]]),
        _op("product", "x", "p"),
    ),
    # resize
    "resize by 1": lambda: fields("resize", factor=[1, 1]),
    "resize by 0": lambda: fields("resize", factor=[0, 2]),
    "resize by 65": lambda: fields("resize", factor=[65, 1]),
    "resize by a real number": lambda: fields("resize", factor=[2.0, 1]),
    "resize by one number": lambda: fields("resize", factor=2),
    "resize by another method": lambda: fields("resize", method="cubic"),
    "resize by no method": lambda: fields("resize", method=...),
    "resize beyond 4096": lambda: ending(
        _op("resize", out="p", factor=[64, 1], method="nearest"),
        _op("resize", "p", factor=[13, 1], method="nearest"),
    ),
    "a product of values too large": lambda: _large(2.0**64, *_pixel(_op("product", "p", "p"))),
}  # fmt: skip
# One more step than in some of those accepted, and the values have no known bound: 2^64 is the limit then.
REFUSED_WHEN_RUN: dict[str, Callable[[], bytes]] = {
    "values as large as can be, and a slope": lambda: _large(
        -MOST, *_pixel(_op("elementwise", "p", function="leaky_relu", alpha=-1.5))
    ),
    "the mean of values too large for their sum": lambda: _large(
        MOST / 16, _op("global_pool", "s", kind="average")
    ),
    "large values of all channels": lambda: _large(
        MOST / 2, *_pixel(_sum_of_channels()), c=np.full((4, 1), 3, np.uint8)
    ),
    "large values and float weights": lambda: _large(
        MOST, *_pixel(_sum_of_channels(weights="float32")), c=np.full((4, 1, 1, 4), -0.375, np.float32)
    ),
    "padding with a number that no sum can hold": lambda: fields("pad", value=8e37),
    "the SiLU of large values": lambda: _large(MOST, _op("elementwise", "s", function="silu")),
    "large values side by side": lambda: _large(
        MOST / 32, _op("concat", "s", "s", out="t"),
        _op("conv", "t", tensor="c", window=[1, 1], stride=[1, 1], pads=[[0, 0], [0, 0]], channels=[8, 4]),
        c=np.zeros((4, 1), np.uint8),
    ),
}  # fmt: skip

if __name__ == "__main__":
    write_all(sys.argv[1], {**ACCEPTED, **REFUSED_WHEN_RUN}, REFUSED)
