"""A packed model as C for a microcontroller: one ``.c`` and one ``.h`` file that need nothing else.

The weights stay bits in constant data, all memory is static, and convolutions sum by tables as the native
runtime does (docs/native.md): four inputs have sixteen signed sums, and each output channel adds one of them.
Convolutions with groups or gaps add the inputs one by one, as float kernels do.
The C text lies in the files beside this one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

import numpy as np

from binwrn_jax.deploy.c_source.plan import Step, place_values, steps_of
from binwrn_jax.deploy.packed import PackedModel

GROUP = 4  # inputs with one table
TEXTS = Path(__file__).parent
SCISSORS = "/* 8< */\n"  # above it stands what only a compiler needs
# The functions that a program may need, in the order in which they stand in it.
FUNCTIONS = (
    *("affine", "clip", "conv", "window", "sign_conv", "float_conv", "pool", "pad_channels", "add", "concat"),
    *("product", "pad", "resize_nearest", "resize_bilinear", "global_max", "leaky_relu", "sigmoid", "silu"),
    *("hyperbolic_tangent", "hard_sigmoid", "hard_swish", "gelu", "gelu_tanh", "global_average"),
)
WINDOWS = frozenset({"sign_conv", "float_conv"})  # functions that take a description called `window`
MATHS = frozenset({"sigmoid", "silu", "hyperbolic_tangent", "gelu", "gelu_tanh"})  # those of libm

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class CSource:
    """A generated program.

    Attributes:
      source: text of the ``.c`` file.
      header: text of the ``.h`` file.
      prefix: of its function and macros.
      ram: bytes of static memory, the stack not counted.
      flash: bytes of constant data, the code not counted.
    """

    source: str
    header: str
    prefix: str
    ram: int
    flash: int


def nibbles(packed: PackedModel, name: str) -> np.ndarray:
    """The bits of a convolution in the order in which the program reads them.

    Returns:
      uint8 ``[F_h F_w ceil(C_in / 4) ceil(C_out / 2)]``: for each place of the window and each group of four
      input channels (bit i: channel i is added), a half byte for each output channel, low half first.
    """
    positive = packed.signs(name) > 0
    *window, c_in, c_out = positive.shape
    groups = -(-c_in // GROUP)
    padded = np.zeros((math.prod(window), groups * GROUP, c_out + c_out % 2), np.uint8)
    padded[:, :c_in, :c_out] = positive.reshape(-1, c_in, c_out)
    weights = np.array([1, 2, 4, 8], np.uint8).reshape(1, 1, GROUP, 1)
    codes = (padded.reshape(len(padded), groups, GROUP, -1) * weights).sum(2, dtype=np.uint8)
    return (codes[..., 0::2] | codes[..., 1::2] << 4).ravel()


def _number(value: float) -> str:
    text = f"{value:.9g}"
    return text + ("f" if set(text) & set(".e") else ".0f")


def _table(kind: str, name: str, values: list[str]) -> str:
    lines, line = [], "   "
    for value in values:
        if len(line) + len(value) > 110:
            lines.append(line)
            line = "   "
        line += f" {value},"
    return f"static const {kind} {name}[{len(values)}] = {{\n" + "\n".join([*lines, line]) + "\n};\n"


def generate(packed: PackedModel, stem: str) -> CSource:
    """The program of a packed model.

    Args:
      packed: the model.
      stem: of the files' names; its letters and digits make the prefix of the function and macros.
    """
    prefix = re.sub(r"[^A-Za-z0-9]", "_", stem)
    if not prefix[:1].isalpha():
        prefix = "model_" + prefix
    shapes = packed.value_shapes
    steps = steps_of(packed)
    offsets, arena = place_values(steps, {name: math.prod(shape) for name, shape in shapes.items()})
    widest = max((shapes[step.out][-1] for step in steps if step.op == "conv"), default=0)
    # `sums` has one entry more for an odd number of channels: two share a byte.
    sums = widest + 1 if widest else 0
    tables = [
        *_affine_tables(packed),
        *(table for step in steps for table in _conv_tables(packed, step, shapes)),
    ]
    kinds = {"pool" if step.op.endswith("_pool") else step.op for step in steps}
    kinds |= {"window"} if kinds & WINDOWS else set()
    image = shapes["image"]
    flash = sum(part.nbytes for affine in packed.affines.values() for part in affine)
    flash += sum(_stored(packed, step).nbytes for step in steps if step.operation["op"] == "conv")
    ram = 4 * (arena + sums)
    about = _fill(
        "about.in",
        license=_comment(" ".join(str(packed.metadata.get("license") or "not stated").split())),
        ram=ram,
        flash=flash,
        bits=packed.ideal_bytes,
    )
    names = enumerate(packed.metadata["class_names"])
    header = _fill(
        "program.h.in",
        about=about,
        macro=prefix.upper(),
        prefix=prefix,
        height=image[0],
        width=image[1],
        channels=image[2],
        classes=packed.metadata["num_classes"],
        class_names="".join(f"\n *   {i} {_comment(name)}" for i, name in names),
    )
    source = _fill(
        "program.c.in",
        about=about,
        stem=stem,
        math="#include <math.h> /* link with -lm */\n" if kinds & MATHS else "",
        arena=arena,
        sums=f"static float sums[{sums}];" if sums else "",
        functions="\n".join(_function(kind) for kind in FUNCTIONS if kind in kinds),
        tables="".join(tables),
        prefix=prefix,
        pixels=math.prod(image),
        image=offsets["image"],
        calls="\n  ".join(_call(packed, step, shapes, offsets) for step in steps),
    )
    return CSource(source, header, prefix, ram, flash)


def _fill(name: str, **values: object) -> str:
    return Template((TEXTS / name).read_text(encoding="utf-8")).substitute(values)


def _function(name: str) -> str:
    return (TEXTS / f"{name}.c").read_text(encoding="utf-8").partition(SCISSORS)[2]


def _affine_tables(packed: PackedModel) -> list[str]:
    """The multiply-adds as constant arrays."""
    return [
        _table("float", f"{_c_name(packed, name)}_{part}", [_number(value) for value in values])
        for name, affine in packed.affines.items()
        for part, values in zip(("scale", "offset"), affine, strict=True)
    ]


def _stored(packed: PackedModel, step: Step) -> np.ndarray:
    """The weights of a convolution as the program has them: uint8 or float32, flat."""
    name = step.operation["tensor"]
    if step.op == "float_conv":
        return packed.kernels[name].ravel()
    return packed.bits[name].ravel() if step.op == "sign_conv" else nibbles(packed, name)


def _conv_tables(packed: PackedModel, step: Step, shapes: Shapes) -> list[str]:
    """The weights of a convolution and its description as constants; nothing for other steps."""
    operation = step.operation
    if operation["op"] != "conv":
        return []
    name, stored = _c_name(packed, operation["tensor"]), _stored(packed, step)
    (top, _), (left, _) = operation["pads"]
    sizes = [
        *shapes[step.inputs[0]],
        *shapes[step.out],
        *operation["window"],
        *operation["stride"],
        top,
        left,
    ]
    if step.op == "float_conv":
        weights = _table("float", f"{name}_weights", [_number(value) for value in stored])
    else:
        weights = _table("uint8_t", f"{name}_bits", [str(byte) for byte in stored])
    if step.op in WINDOWS:
        numbers = [*sizes, operation.get("groups", 1), *operation.get("dilation", (1, 1))]
        return [weights, f"static const struct window {name} = {{{', '.join(map(str, numbers))}}};\n"]
    affine = _c_name(packed, step.affine) if step.affine else None
    pointers = [f"{affine}_scale", f"{affine}_offset"] if affine else ["0", "0"]
    fields = ", ".join([f"{name}_bits", *pointers, _minimum(step), *map(str, sizes)])
    return [weights, f"static const struct conv {name} = {{{fields}}};\n"]


def _call(packed: PackedModel, step: Step, shapes: Shapes, offsets: Mapping[str, int]) -> str:
    """The call of one step; several of a concatenation."""
    result = f"arena + {offsets[step.out]}" if step.out in offsets else "logits"
    if step.op == "concat":
        return _concat(step, shapes, offsets, result)
    function = "pool" if step.op.endswith("_pool") else step.op
    return f"{function}({', '.join([result, *_arguments(packed, step, shapes, offsets)])});"


def _concat(step: Step, shapes: Shapes, offsets: Mapping[str, int], result: str) -> str:
    height, width, channels = shapes[step.out]
    calls, first = [], 0
    for name in step.inputs:
        count = shapes[name][2]
        numbers = f"{height * width}, {count}, {first}, {channels}"
        calls.append(f"concat({result}, arena + {offsets[name]}, {numbers});")
        first += count
    return "\n  ".join(calls)


def _arguments(packed: PackedModel, step: Step, shapes: Shapes, offsets: Mapping[str, int]) -> list[str]:
    """Of the function that a step calls, after the result."""
    operation = step.operation
    x, *others = (f"arena + {offsets[name]}" for name in step.inputs)
    height, width, channels = shapes[step.inputs[0]]
    pixels = height * width
    if step.op == "conv":
        more = f"arena + {offsets[step.add]}" if step.add else "0"
        return [x, more, f"&{_c_name(packed, operation['tensor'])}"]
    if step.op in WINDOWS:
        name = _c_name(packed, operation["tensor"])
        return [x, f"{name}_{'weights' if step.op == 'float_conv' else 'bits'}", f"&{name}"]
    if step.op in ("affine", "clip"):
        affine = _c_name(packed, str(step.affine))
        limits = (
            [_minimum(step)] if step.high is None else [_minimum(step), _number(float(np.float32(step.high)))]
        )
        return [x, f"{affine}_scale", f"{affine}_offset", *limits, str(pixels), str(channels)]
    if step.op in ("average_pool", "max_pool"):
        (top, _), (left, _) = operation["pads"]
        sizes = [*shapes[step.inputs[0]], *shapes[step.out][:2], *operation["window"], *operation["stride"]]
        return [x, *map(str, [int(step.op == "average_pool"), *sizes, top, left])]
    if step.op == "pad":
        (top, bottom), (left, right) = operation["pads"]
        numbers = [height, width, channels, top, bottom, left, right]
        return [x, _number(float(np.float32(operation["value"]))), *map(str, numbers)]
    if step.op in ("resize_nearest", "resize_bilinear"):
        return [x, *map(str, [height, width, channels, *operation["factor"]])]
    if step.op == "product":
        second = shapes[step.inputs[1]]
        return [x, *others, str(pixels), str(second[0] * second[1]), str(channels)]
    if step.op == "pad_channels":
        return [x, str(pixels), str(channels), str(shapes[step.out][2])]
    if step.op in ("global_average", "global_max"):
        return [x, str(pixels), str(channels)]
    alpha = [_number(float(np.float32(operation["alpha"])))] if step.op == "leaky_relu" else []
    return [x, *others, *alpha, str(pixels * channels)]  # add and the functions of single numbers


def _minimum(step: Step) -> str:
    return _number(step.low) if step.low is not None else "-FLT_MAX"


def _c_name(packed: PackedModel, tensor: str) -> str:
    """A tensor's name as C: by its number, since names may be any text."""
    for kind, names in (("affine", packed.affines), ("conv", packed.bits), ("kernel", packed.kernels)):
        if tensor in names:
            return f"{kind}_{list(names).index(tensor)}"
    raise KeyError(tensor)


def _comment(text: str) -> str:
    """Text of the model as it may stand in a comment: neither the end of one nor a trigraph."""
    return re.sub(r"[^ -)+->@-~]", ".", text)[:80]
