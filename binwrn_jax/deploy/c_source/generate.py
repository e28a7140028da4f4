"""A packed model as C for a microcontroller: one ``.c`` and one ``.h`` file that need nothing else.

The weights stay bits in constant data, all memory is static, and convolutions sum by tables as the native
runtime does (docs/native.md): four inputs have sixteen signed sums, and each output channel adds one of them.
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
FUNCTIONS = ("affine", "conv", "pool", "pad_channels", "add", "global_average")

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
    image = shapes["image"]
    numbers = [part for affine in packed.affines.values() for part in affine]
    flash = sum(part.nbytes for part in [*numbers, *(nibbles(packed, name) for name in packed.bits)])
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


def _conv_tables(packed: PackedModel, step: Step, shapes: Shapes) -> list[str]:
    """The bits of a convolution and its description as constants; nothing for other steps."""
    if step.op != "conv":
        return []
    operation, name = step.operation, _c_name(packed, step.operation["tensor"])
    (top, _), (left, _) = operation["pads"]
    numbers = [
        *shapes[step.inputs[0]],
        *shapes[step.out],
        *operation["window"],
        *operation["stride"],
        top,
        left,
    ]
    affine = _c_name(packed, step.affine) if step.affine else None
    pointers = [f"{affine}_scale", f"{affine}_offset"] if affine else ["0", "0"]
    fields = ", ".join([f"{name}_bits", *pointers, _minimum(step), *map(str, numbers)])
    return [
        _table("uint8_t", f"{name}_bits", [str(byte) for byte in nibbles(packed, operation["tensor"])]),
        f"static const struct conv {name} = {{{fields}}};\n",
    ]


def _call(packed: PackedModel, step: Step, shapes: Shapes, offsets: Mapping[str, int]) -> str:
    """The call of one step."""
    places = [f"arena + {offsets[name]}" for name in step.inputs]
    result = f"arena + {offsets[step.out]}" if step.out in offsets else "logits"
    height, width, channels = shapes[step.inputs[0]]
    pixels = height * width
    if step.op == "conv":
        more = f"arena + {offsets[step.add]}" if step.add else "0"
        return f"conv({result}, {places[0]}, {more}, &{_c_name(packed, step.operation['tensor'])});"
    if step.op == "affine":
        affine = _c_name(packed, str(step.affine))
        arguments = f"{affine}_scale, {affine}_offset, {_minimum(step)}, {pixels}, {channels}"
        return f"affine({result}, {places[0]}, {arguments});"
    if step.op in ("average_pool", "max_pool"):
        operation = step.operation
        (top, _), (left, _) = operation["pads"]
        sizes = [*shapes[step.inputs[0]], *shapes[step.out][:2], *operation["window"], *operation["stride"]]
        numbers = [int(step.op == "average_pool"), *sizes, top, left]
        return f"pool({result}, {places[0]}, {', '.join(map(str, numbers))});"
    if step.op == "pad_channels":
        return f"pad_channels({result}, {places[0]}, {pixels}, {channels}, {shapes[step.out][2]});"
    if step.op == "add":
        return f"add({result}, {places[0]}, {places[1]}, {pixels * channels});"
    return f"global_average({result}, {places[0]}, {pixels}, {channels});"


def _minimum(step: Step) -> str:
    return _number(step.low) if step.low is not None else "-FLT_MAX"


def _c_name(packed: PackedModel, tensor: str) -> str:
    """A tensor's name as C: by its number, since names may be any text."""
    for kind, names in (("affine", packed.affines), ("conv", packed.bits)):
        if tensor in names:
            return f"{kind}_{list(names).index(tensor)}"
    raise KeyError(tensor)


def _comment(text: str) -> str:
    """Text of the model as it may stand in a comment: neither the end of one nor a trigraph."""
    return re.sub(r"[^ -)+->@-~]", ".", text)[:80]
