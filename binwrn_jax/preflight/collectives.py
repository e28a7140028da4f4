"""The communications between devices in a compiled program, read from its text."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple


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


def shape_bytes(text: str) -> int:
    """Bytes of the arrays whose shapes stand in a text, such as ``'(f32[3,3]{1,0}, s32[])'``.

    >>> shape_bytes("(f32[3,3]{1,0}, s32[])")
    40
    """
    return sum(_bytes(dtype, sizes) for dtype, sizes in _SHAPE.findall(text))


def _bytes(dtype: str, sizes: str) -> int:
    bits = re.search(r"\d+", dtype)
    return (max(int(bits[0]) // 8, 1) if bits else 1) * math.prod(map(int, filter(None, sizes.split(","))))
