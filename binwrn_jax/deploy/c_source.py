"""A packed model as C for a microcontroller: one ``.c`` and one ``.h`` file that need nothing else.

The weights stay bits in constant data, all memory is static, and convolutions sum by tables as the native
runtime does (docs/native.md): four inputs have sixteen signed sums, and each output channel adds one of them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.deploy.export import TOLERANCE, compare
from binwrn_jax.deploy.native import find_compiler
from binwrn_jax.deploy.packed import PackedModel
from binwrn_jax.errors import UserError
from binwrn_jax.system.files import replace_file

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
GROUP = 4  # inputs with one table


@dataclasses.dataclass
class Step:
    """One call of the generated program.

    Attributes:
      op: of docs/packed-format.md; a convolution may have taken over an affine before it and a sum after it.
      operation: the fields of the operation.
      inputs: names of the values it reads.
      out: name of its result.
      affine: name of the multiply-add that is applied to the input of a convolution, or of its own.
      low: minimum of that multiply-add.
      add: name of the value added to the result of a convolution.
    """

    op: str
    operation: dict[str, Any]
    inputs: list[str]
    out: str
    affine: str | None = None
    low: float | None = None
    add: str | None = None

    @property
    def reads(self) -> list[str]:
        """All values that it needs."""
        return self.inputs + ([self.add] if self.add else [])


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


def steps_of(packed: PackedModel) -> list[Step]:
    """The operations with those joined that one pass over the data can do.

    An affine becomes part of the only convolution that reads it; a convolution becomes part of the only sum
    that reads it, and runs where the sum stood.
    """
    uses: dict[str, int] = {}
    for operation in packed.operations:
        for name in operation["in"]:
            uses[name] = uses.get(name, 0) + 1
    made: dict[str, Step] = {}  # by the name of the result, in order
    for operation in packed.operations:
        step = Step(operation["op"], operation, list(operation["in"]), operation["out"])
        if step.op == "affine":
            step.affine, step.low = operation["tensor"], operation.get("min")
        before = made.get(step.inputs[0])
        if step.op == "conv" and before and before.op == "affine" and uses[before.out] == 1:
            step.affine, step.low, step.inputs = before.affine, before.low, before.inputs
            del made[before.out]
        if step.op == "add":
            for i in (0, 1):
                term = made.get(step.inputs[i])
                if term and term.op == "conv" and not term.add and uses[term.out] == 1:
                    del made[term.out]
                    step = dataclasses.replace(term, out=step.out, add=step.inputs[1 - i])
                    break
        made[step.out] = step
    return list(made.values())


def place(steps: list[Step], sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """Places all values in one array, each where nothing lies that is still needed.

    Args:
      steps: as `steps_of` gives them.
      sizes: floats of each value.

    Returns:
      ``(offsets, total)``, in floats; the result of the last step has no place.
    """
    last = {name: i for i, step in enumerate(steps) for name in step.reads}
    offsets, live, total = {}, [], 0

    def put(name: str) -> None:
        nonlocal total
        at = 0
        for other in sorted(live, key=lambda value: offsets[value]):
            if offsets[other] >= at + sizes[name]:
                break
            at = offsets[other] + sizes[other]
        offsets[name] = at
        live.append(name)
        total = max(total, at + sizes[name])

    # The first result comes before the image, which makes room for larger values beside it.
    if steps[0].op not in ("affine", "add") and len(steps) > 1:
        put(steps[0].out)
    put("image")
    for i, step in enumerate(steps[:-1]):
        # An elementwise step may write where an input of the same size lies that nobody needs afterwards.
        elementwise = step.inputs if step.op in ("affine", "add") else []
        if step.add and step.add not in step.inputs:
            elementwise = [step.add]
        over = [name for name in elementwise if last[name] == i]
        if over:
            offsets[step.out] = offsets[over[0]]
            live[live.index(over[0])] = step.out
        elif step.out not in offsets:
            put(step.out)
        live[:] = [name for name in live if last.get(name, -1) > i]
    return offsets, total


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
    weights = np.uint8([1, 2, 4, 8]).reshape(1, 1, GROUP, 1)
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


_FUNCTIONS = {
    "affine": """\
/* result = max(min, x * scale + offset) */
static void affine(float *result, const float *x, const float *scale, const float *offset, float min,
                   int pixels, int channels) {
  int p, c;
  for (p = 0; p < pixels; p++)
    for (c = 0; c < channels; c++, x++, result++) {
      const float value = *x * scale[c] + offset[c];
      *result = value < min ? min : value;
    }
}
""",
    "conv": """\
struct conv {
  const uint8_t *bits;
  const float *scale, *offset; /* of the multiply-add before, or 0 */
  float min;
  int in_height, in_width, in_channels, out_height, out_width, out_channels;
  int window_height, window_width, stride_y, stride_x, top, left;
};

/* result = convolution of max(min, x * scale + offset), plus `more` unless that is 0 */
static void conv(float *result, const float *x, const float *more, const struct conv *c) {
  int y, column, i, j, channel, k, o;
  for (y = 0; y < c->out_height; y++)
    for (column = 0; column < c->out_width; column++) {
      const uint8_t *bits = c->bits;
      for (o = 0; o < c->out_channels + 1; o++) sums[o] = 0;
      for (i = 0; i < c->window_height; i++)
        for (j = 0; j < c->window_width; j++) {
          const int in_y = y * c->stride_y - c->top + i, in_x = column * c->stride_x - c->left + j;
          const float *pixel;
          if (in_y < 0 || in_y >= c->in_height || in_x < 0 || in_x >= c->in_width) {
            bits += (size_t)((c->in_channels + 3) / 4) * (size_t)((c->out_channels + 1) / 2);
            continue;
          }
          pixel = x + ((size_t)in_y * (size_t)c->in_width + (size_t)in_x) * (size_t)c->in_channels;
          for (channel = 0; channel < c->in_channels; channel += 4) {
            float table[16], in[4] = {0, 0, 0, 0};
            for (k = 0; k < 4 && channel + k < c->in_channels; k++) {
              in[k] = pixel[channel + k];
              if (c->scale) {
                in[k] = in[k] * c->scale[channel + k] + c->offset[channel + k];
                if (in[k] < c->min) in[k] = c->min;
              }
            }
            /* The sixteen signed sums of four inputs; the lower half are the negatives of the upper. */
            for (k = 8; k < 16; k++) {
              table[k] = (k & 1 ? in[0] : -in[0]) + (k & 2 ? in[1] : -in[1]) +
                         (k & 4 ? in[2] : -in[2]) + in[3];
              table[15 - k] = -table[k];
            }
            for (o = 0; o < c->out_channels; o += 2, bits++) {
              sums[o] += table[*bits & 15];
              sums[o + 1] += table[*bits >> 4];
            }
          }
        }
      for (o = 0; o < c->out_channels; o++) *result++ = more ? sums[o] + *more++ : sums[o];
    }
}
""",
    "pool": """\
static void pool(float *result, const float *x, int average, int in_height, int in_width, int channels,
                 int out_height, int out_width, int window_height, int window_width, int stride_y,
                 int stride_x, int top, int left) {
  int y, column, c, i, j;
  for (y = 0; y < out_height; y++)
    for (column = 0; column < out_width; column++)
      for (c = 0; c < channels; c++) {
        float value = 0;
        int count = 0;
        for (i = y * stride_y - top; i < y * stride_y - top + window_height; i++)
          for (j = column * stride_x - left; j < column * stride_x - left + window_width; j++)
            if (i >= 0 && i < in_height && j >= 0 && j < in_width) {
              const float in = x[((size_t)i * (size_t)in_width + (size_t)j) * (size_t)channels + (size_t)c];
              value = count == 0 ? in : average ? value + in : in > value ? in : value;
              count++;
            }
        *result++ = average ? value / (float)count : value;
      }
}
""",
    "pad_channels": """\
static void pad_channels(float *result, const float *x, int pixels, int channels, int out_channels) {
  int p, c;
  for (p = 0; p < pixels; p++)
    for (c = 0; c < out_channels; c++) *result++ = c < channels ? *x++ : 0;
}
""",
    "add": """\
static void add(float *result, const float *x, const float *y, int count) {
  int i;
  for (i = 0; i < count; i++) result[i] = x[i] + y[i];
}
""",
    "global_average": """\
static void global_average(float *logits, const float *x, int pixels, int channels) {
  int p, c;
  for (c = 0; c < channels; c++) {
    float sum = 0;
    for (p = 0; p < pixels; p++) sum += x[(size_t)p * (size_t)channels + (size_t)c];
    logits[c] = sum / (float)pixels;
  }
}
""",
}


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
    offsets, total = place(steps, {name: math.prod(shape) for name, shape in shapes.items()})
    widest = max((shapes[step.out][-1] for step in steps if step.op == "conv"), default=0)

    tables, flash = [], 0
    for name, (scale, offset) in packed.affines.items():
        for part, values in (("scale", scale), ("offset", offset)):
            flash += values.nbytes
            tables.append(_table("float", f"{_c_name(packed, name)}_{part}", [_number(v) for v in values]))
    calls = []
    for step in steps:
        x, out = step.inputs[0], step.out
        height, width, channels = shapes[x]
        pixels = height * width
        result = f"arena + {offsets[out]}" if out in offsets else "logits"
        low = _number(step.low) if step.low is not None else "-FLT_MAX"
        affine = _c_name(packed, step.affine) if step.affine else None
        source = f"arena + {offsets[x]}"
        if step.op == "conv":
            name, operation = _c_name(packed, step.operation["tensor"]), step.operation
            bits = nibbles(packed, operation["tensor"])
            flash += bits.nbytes
            tables.append(_table("uint8_t", f"{name}_bits", [str(byte) for byte in bits]))
            (top, _), (left, _) = operation["pads"]
            numbers = [*shapes[x], *shapes[out], *operation["window"], *operation["stride"], top, left]
            pointers = [f"{affine}_scale", f"{affine}_offset"] if affine else ["0", "0"]
            fields = ", ".join([f"{name}_bits", *pointers, low, *map(str, numbers)])
            tables.append(f"static const struct conv {name} = {{{fields}}};\n")
            more = f"arena + {offsets[step.add]}" if step.add else "0"
            calls.append(f"conv({result}, {source}, {more}, &{name});")
        elif step.op == "affine":
            arguments = f"{affine}_scale, {affine}_offset, {low}, {pixels}, {channels}"
            calls.append(f"affine({result}, {source}, {arguments});")
        elif step.op in ("average_pool", "max_pool"):
            (top, _), (left, _) = step.operation["pads"]
            numbers = [
                int(step.op == "average_pool"),
                *shapes[x],
                *shapes[out][:2],
                *step.operation["window"],
                *step.operation["stride"],
                top,
                left,
            ]
            calls.append(f"pool({result}, {source}, {', '.join(map(str, numbers))});")
        elif step.op == "pad_channels":
            calls.append(f"pad_channels({result}, {source}, {pixels}, {channels}, {shapes[out][2]});")
        elif step.op == "add":
            second = f"arena + {offsets[step.inputs[1]]}"
            calls.append(f"add({result}, {source}, {second}, {pixels * channels});")
        else:
            calls.append(f"global_average({result}, {source}, {pixels}, {channels});")

    kinds = {"pool" if step.op.endswith("_pool") else step.op for step in steps}
    functions = [text for kind, text in _FUNCTIONS.items() if kind in kinds]
    image, classes = shapes["image"], packed.metadata["num_classes"]
    # `sums` has one entry more for an odd number of channels: two share a byte.
    ram = 4 * (total + (widest + 1 if widest else 0))
    license_ = _comment(" ".join(str(packed.metadata.get("license") or "not stated").split()))
    about = f"""\
/* Written by binwrn export --format c. Licence of the weights: {license_}.
 *
 * RAM    {ram} bytes, static, and about 300 bytes of stack
 * Flash  {flash} bytes of constants (the bits alone: {packed.ideal_bytes}), and the code
 */
"""
    guard = f"{prefix.upper()}_H"
    names = packed.metadata["class_names"]
    listed = "".join(f"\n *   {i} {_comment(name)}" for i, name in enumerate(names))
    header = f"""{about}
#ifndef {guard}
#define {guard}

#include <stdint.h>

#define {prefix.upper()}_HEIGHT {image[0]}
#define {prefix.upper()}_WIDTH {image[1]}
#define {prefix.upper()}_CHANNELS {image[2]}
#define {prefix.upper()}_CLASSES {classes}

/* image: HEIGHT x WIDTH x CHANNELS bytes, 0..255; logits: one for each class, the largest is the answer.
 * Not re-entrant: the memory is static.{listed}
 */
void {prefix}_predict(const uint8_t *image, float *logits);

#endif
"""
    body = "\n  ".join(calls)
    source = f"""{about}
#include "{stem}.h"

#include <float.h>
#include <stddef.h>

static float arena[{total}];
{f"static float sums[{widest + 1}];" if widest else ""}

{chr(10).join(functions)}
{"".join(tables)}
void {prefix}_predict(const uint8_t *image, float *logits) {{
  int i;
  for (i = 0; i < {math.prod(image)}; i++) arena[{offsets["image"]} + i] = image[i];
  {body}
}}
"""
    return CSource(source, header, prefix, ram, flash)


def _c_name(packed: PackedModel, tensor: str) -> str:
    """A tensor's name as C: by its number, since names may be any text."""
    for kind, names in (("affine", packed.affines), ("conv", packed.bits)):
        if tensor in names:
            return f"{kind}_{list(names).index(tensor)}"
    raise KeyError(tensor)


def _comment(text: str) -> str:
    """Text of the model as it may stand in a comment: neither the end of one nor a trigraph."""
    return re.sub(r"[^ -)+->@-~]", ".", text)[:80]


class CProgram:
    """A generated program, compiled for this machine; a function from images to logits."""

    def __init__(self, program: CSource, packed: PackedModel, stem: str) -> None:
        self._shape, self._classes = tuple(packed.metadata["input"]["shape"]), packed.metadata["num_classes"]
        compiler = find_compiler()
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "program.c", Path(folder) / "program.so"
            source.write_text(program.source)
            (Path(folder) / f"{stem}.h").write_text(program.header)
            command = [compiler, *FLAGS, "-O2", "-fPIC", "-shared", str(source), "-o", str(library)]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise UserError(f"{compiler} does not compile the generated C: {result.stderr[:200]!r}")
            self._predict = getattr(ctypes.CDLL(str(library)), f"{program.prefix}_predict")
        self._predict.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._predict.restype = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[N, H, W, C]`` to float32 logits ``[N, classes]``."""
        images = np.ascontiguousarray(images, np.uint8).reshape(-1, *self._shape)
        logits = np.empty((len(images), self._classes), np.float32)
        for image, row in zip(images, logits, strict=True):
            self._predict(image.ctypes.data, row.ctypes.data)
        return logits


def write_c(packed: PackedModel, path: Path, images: np.ndarray, reference: np.ndarray) -> list[str]:
    """Writes ``path`` and, beside it, the header, once the program compiled here agrees with the network.

    Args:
      packed: the model.
      path: of the ``.c`` file.
      images: uint8 ``[N, H, W, C]`` to compare on.
      reference: logits of the trained network, float32 ``[N, classes]``.

    Returns:
      Lines that say what came of it.

    Raises:
      UserError: the name does not end in ``.c``, no C compiler, other predictions, nothing can be written.
    """
    path = Path(path)
    if path.suffix != ".c" or not re.fullmatch(r"[\w.+-]+", path.stem, re.ASCII):
        raise UserError(f"cannot write {path}: the name of a C file ends in .c and has no spaces")
    if not path.absolute().parent.is_dir():
        raise UserError(f"cannot write {path}: there is no such folder")
    program = generate(packed, path.stem)
    error, different = compare(reference, CProgram(program, packed, path.stem)(images))
    if different or not error <= TOLERANCE:
        raise UserError(
            f"{path} is not written: {different} of {len(images)} predictions of the compiled program differ "
            f"from the trained network's and logits by {error:.1e} (tolerance {TOLERANCE:g})"
        )
    try:
        replace_file(path.with_suffix(".h"), program.header.encode())
        replace_file(path, program.source.encode())
    except OSError as problem:
        raise UserError(f"cannot write {path} ({problem.strerror})") from problem
    return [
        f"compiled here: {len(images)} predictions identical to the trained network's, logits within "
        f"{error:.1e} of the largest (tolerance {TOLERANCE:g})",
        f"RAM {program.ram:,} bytes, flash {program.flash:,} bytes of constants and the code; "
        f"{path.with_suffix('.h').name} declares {program.prefix}_predict",
    ]
