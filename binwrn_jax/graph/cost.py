"""What a step costs: operations counted from the network, bytes sent between devices from its program."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from binwrn_jax.nn.wide_resnet import architecture
from binwrn_jax.parallel.hardware import peak


def multiply_adds(depth: int, width: float, num_classes: int, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of all convolutions in one forward pass of one image.

    The border counts as if it were computed, zeros included, as is usual. What is not a convolution
    (batch norm, ReLU, pools, sums) is not counted: matrix units do none of it.

    Args:
      depth: of the network, see `binwrn_jax.nn.wide_resnet.architecture`.
      width: of the network.
      num_classes: N.
      image_shape: ``(H, W, C)``.

    >>> multiply_adds(20, 10, 10, (32, 32, 3))
    4015636480
    """
    net = architecture(depth, width)

    def halved(height: int, width: int) -> tuple[int, int]:
        return -(-height // 2), -(-width // 2)

    height, columns, channels = image_shape
    if net.stride == 2:
        height, columns = halved(height, columns)
    total = height * columns * net.window**2 * channels * net.channels
    if net.pool:
        height, columns = halved(height, columns)
    channels = net.channels
    for scale, blocks in enumerate(net.blocks):
        features = net.channels * 2**scale
        if scale > 0:
            height, columns = halved(height, columns)
        total += height * columns * 9 * (channels + (2 * blocks - 1) * features) * features
        channels = features
    return total + height * columns * channels * num_classes


def training_flops(depth: int, width: float, num_classes: int, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of the convolutions to train on one image once.

    Two for a multiply-add, and three passes: forward, gradient of the input, gradient of the weights. The
    first convolution needs the gradient of its input too, for the batch norm before it.
    """
    return 6 * multiply_adds(depth, width, num_classes, image_shape)


def mfu_of_image(
    model: Mapping[str, Any],
    num_classes: int,
    image_shape: tuple[int, int, int],
    devices: Sequence[jax.Device],
) -> float | None:
    """Share of the peak of all devices that training on one image per second uses; None if a peak is unknown.

    Times images/s it is the model FLOP/s utilisation (MFU): `training_flops` over the published rate of the
    matrix units, see `binwrn_jax.parallel.hardware.peak`.

    Args:
      model: fields of the config, of which ``depth``, ``width`` and ``dtype`` count.
      num_classes: N.
      image_shape: ``(H, W, C)``.
      devices: those that share the batch.
    """
    peaks = [peak(device.device_kind) for device in devices]
    total = sum(known.flops(model["dtype"]) for known in peaks if known)
    if None in peaks:
        return None
    return training_flops(model["depth"], model["width"], num_classes, image_shape) / total


class Collective(NamedTuple):
    """One communication of a compiled program.

    Attributes:
      kind: ``'all-reduce'``, ``'all-gather'``, ``'reduce-scatter'``, ``'all-to-all'``,
        ``'collective-permute'`` or another of `KINDS`.
      shapes: of its result, one or more, such as ``'f32[3,3,16,16]'``.
      bytes: of its result on one device.
      source: the operation of the Python program that it comes from, as XLA notes it; '' where it does not.
      times: how often it runs in one execution of the program: more than once in the body of a loop.
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    source: str
    times: int = 1


KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_INSTRUCTION = re.compile(
    rf"^\s*(?:ROOT )?%?\S+ = (?P<result>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?"
    r"\((?P<operands>[^)]*)\)"
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
_CALL = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16|c\d+|f8\w+)\[([\d,]*)\]")


def collectives(compiled_text: str, rounds: int = 1) -> list[Collective]:
    """The communications that XLA put into a program.

    Args:
      compiled_text: ``jitted.lower(...).compile().as_text()``: the program after optimisation.
      rounds: of loops whose length the text does not tell, as that of a TPU's program.

    Returns:
      One entry for each instruction, in the order of the text. What stands in the body of a loop is
      there once, with its ``times``.
    """
    found = []
    computation = ""
    times = _executions(compiled_text, rounds)
    for line in compiled_text.splitlines():
        header = _COMPUTATION.match(line)
        computation = header[2] if header else computation
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        shapes = _SHAPE.findall(match["result"])
        if match["start"] and match["kind"] in ("all-gather", "collective-permute"):
            # The first half of these carries its operands along: (operands, results, contexts).
            count = match["operands"].count("%")
            shapes = shapes[count : 2 * count]
        names = tuple(f"{dtype}[{sizes}]" for dtype, sizes in shapes)
        total = sum(_bytes(dtype, sizes) for dtype, sizes in shapes)
        source = re.search(r'op_name="([^"]*)"', line)
        found.append(Collective(match["kind"], names, total, source[1] if source else "", times(computation)))
    return found


def _executions(compiled_text: str, rounds: int) -> Callable[[str], int]:
    """How often each computation of a program runs in one execution of it, by name."""
    entry = computation = ""
    callers: dict[str, list[tuple[str, int]]] = {}
    for line in compiled_text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            computation = header[2]
            entry = computation if header[1] else entry
        trips = _TRIPS.search(line)
        for kind, names in _CALL.findall(line):
            factor = (int(trips[1]) if trips else rounds) if kind == "body" else 1
            for name in re.findall(r"[\w.\-]+", names):
                callers.setdefault(name, []).append((computation, factor))

    @functools.cache
    def times(name: str) -> int:
        if name == entry:
            return 1
        return sum(times(caller) * factor for caller, factor in callers.get(name, ()))

    return times


def _bytes(dtype: str, sizes: str) -> int:
    bits = re.search(r"\d+", dtype)
    return (max(int(bits[0]) // 8, 1) if bits else 1) * math.prod(map(int, filter(None, sizes.split(","))))
