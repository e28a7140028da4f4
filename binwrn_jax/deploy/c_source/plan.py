"""The order of a C program's calls, and where in its memory each value lies."""

from __future__ import annotations

import dataclasses
from typing import Any

from binwrn_jax.deploy.packed import PackedModel


@dataclasses.dataclass
class Step:
    """One call of the generated program.

    Attributes:
      op: the function that it calls, see `function_of`; a ``conv`` may have taken over an affine before it
        and a sum after it.
      operation: the fields of the operation.
      inputs: names of the values it reads.
      out: name of its result.
      affine: name of the multiply-add that is applied to the input of a convolution, or of its own.
      low: minimum of that multiply-add.
      high: its maximum.
      add: name of the value added to the result of a convolution.
    """

    op: str
    operation: dict[str, Any]
    inputs: list[str]
    out: str
    affine: str | None = None
    low: float | None = None
    high: float | None = None
    add: str | None = None

    @property
    def reads(self) -> list[str]:
        """All values that it needs."""
        return self.inputs + ([self.add] if self.add else [])


# Functions that may write each number where they read it; into any of their inputs, but for ``product``.
IN_PLACE = frozenset(
    {
        *("affine", "clip", "add", "product", "leaky_relu", "sigmoid", "silu", "hyperbolic_tangent"),
        *("hard_sigmoid", "hard_swish", "gelu", "gelu_tanh"),
    }
)


def function_of(operation: dict[str, Any]) -> str:
    """The function of the program that computes an operation of the packed file."""
    op = str(operation["op"])
    if op == "conv":
        if operation.get("weights") == "float32":
            return "float_conv"
        return "sign_conv" if {"groups", "dilation"} & set(operation) else "conv"
    if op == "affine":
        return "clip" if "max" in operation else "affine"
    if op == "elementwise":
        return {"tanh": "hyperbolic_tangent"}.get(operation["function"], operation["function"])
    if op == "resize":
        return f"resize_{operation['method']}"
    if op == "global_pool":
        return "global_average" if operation["kind"] == "average" else "global_max"
    return op


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
        step = Step(function_of(operation), operation, list(operation["in"]), operation["out"])
        if step.op in ("affine", "clip"):
            step.affine, step.low, step.high = operation["tensor"], operation.get("min"), operation.get("max")
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


def place_values(steps: list[Step], sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """Places all values in one array, each where nothing lies that is still needed.

    Args:
      steps: as `steps_of` gives them.
      sizes: floats of each value.

    Returns:
      ``(offsets, total)``, in floats; the result of the last step has no place.
    """
    last = {name: i for i, step in enumerate(steps) for name in step.reads}
    offsets: dict[str, int] = {}
    live: list[str] = []
    total = 0

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
    if steps[0].op not in IN_PLACE and len(steps) > 1:
        put(steps[0].out)
    put("image")
    for i, step in enumerate(steps[:-1]):
        # An elementwise step may write where an input of the same size lies that nobody needs afterwards.
        elementwise = step.inputs if step.op in IN_PLACE else []
        if step.op == "product":  # the second may have one pixel
            elementwise = step.inputs[:1]
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
