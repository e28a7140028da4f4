"""The bytes that a compiled program moves to and from device memory, counted from its text.

XLA does not count them for GPUs; elsewhere it counts a batch that is selected from a data set as a read of
the whole set. The rule here: each instruction that runs as one kernel reads its operands (of an operand from
which it selects, only the selection) and writes its results once. Values inside a fusion stay on the chip.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from binwrn_jax.preflight.collectives import shape_bytes

_COMPUTATION = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s*(?P<root>ROOT )?%?(?P<name>\S+) = (?P<result>.+?) (?P<kind>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_OPERAND = re.compile(r"%([\w.\-]+)")
_BODY = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_PARAMETER = re.compile(r"^(\d+)\)")

# These move nothing: they rename existing values.
_FREE = {
    *("after-all", "bitcast", "constant", "get-tuple-element", "parameter"),
    *("partition-id", "replica-id", "tuple"),
}
# Of their first operand these read only as much as their result has.
_SELECTS = {"dynamic-slice", "gather", "slice"}


class _Instruction(NamedTuple):
    name: str
    kind: str
    bytes: int
    operands: tuple[str, ...]
    rest: str
    root: bool


_Computations = dict[str, dict[str, _Instruction]]


def moved_bytes(compiled_text: str, rounds: int = 1) -> int:
    """Bytes read and written in one execution of a program on one device.

    Args:
      compiled_text: ``jitted.lower(...).compile().as_text()``: the program after optimisation.
      rounds: of loops whose length the text does not tell.
    """
    computations, entry = _parse(compiled_text)

    @functools.cache
    def total(name: str) -> int:
        return sum(cost(one, computations[name]) for one in computations[name].values())

    def cost(one: _Instruction, around: dict[str, _Instruction]) -> int:
        if one.kind in _FREE or one.kind.endswith("-done"):
            return 0
        called = [match for match in _BODY.findall(one.rest) if match in computations]
        if one.kind == "while":
            trips = _TRIPS.search(one.rest)
            return (int(trips[1]) if trips else rounds) * sum(map(total, called))
        if one.kind == "conditional":
            branches = _OPERAND.findall("".join(_BRANCHES.findall(one.rest))) or called
            return max(map(total, branches), default=0)
        if one.kind in ("call", "async-start"):
            return sum(map(total, called))
        inside = computations[called[0]] if one.kind == "fusion" and called else None
        return _written(one, inside) + sum(
            _read(one, index, around[operand].bytes, inside)
            for index, operand in enumerate(one.operands)
            if operand in around
        )

    return total(entry)


def _parse(text: str) -> tuple[_Computations, str]:
    """All computations of a program with their instructions by name; and the name of the first to run."""
    found: _Computations = {}
    entry = computation = ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            computation = header[2]
            found[computation] = {}
            entry = computation if header[1] else entry
            continue
        match = _INSTRUCTION.match(line)
        if match and computation:
            operands = tuple(_OPERAND.findall(match["rest"].partition(")")[0]))
            found[computation][match["name"]] = _Instruction(
                match["name"], match["kind"], shape_bytes(match["result"]), operands, match["rest"],
                bool(match["root"]),
            )  # fmt: skip
    return found, entry


def _read(one: _Instruction, index: int, size: int, inside: dict[str, _Instruction] | None) -> int:
    """Bytes that an instruction reads of its operand number ``index``, which has ``size``."""
    if one.kind in _SELECTS and index == 0:
        return one.bytes
    if one.kind == "dynamic-update-slice" and index == 0:
        return 0  # written in place
    if inside is None:
        return size
    for parameter in inside.values():
        number = _PARAMETER.match(parameter.rest) if parameter.kind == "parameter" else None
        if number and int(number[1]) == index:
            return min(size, _used(parameter, inside))
    return size


def _used(value: _Instruction, inside: dict[str, _Instruction]) -> int:
    """Bytes of a value that the instructions of a fusion look at."""
    users = [user for user in inside.values() if value.name in user.operands]
    total = 0
    for user in users:
        first = user.operands[0] == value.name
        if user.kind in _SELECTS and first:
            total += user.bytes
        elif user.kind == "bitcast":
            total += _used(user, inside)
        elif not (user.kind == "dynamic-update-slice" and first):
            return value.bytes
    return total


def _written(one: _Instruction, inside: dict[str, _Instruction] | None) -> int:
    """Bytes that an instruction writes: of an update in place, the update alone."""
    scope, update = (inside, next((i for i in inside.values() if i.root), None)) if inside else (None, None)
    if scope and update and update.kind == "dynamic-update-slice" and update.operands[1] in scope:
        return scope[update.operands[1]].bytes
    return one.bytes
