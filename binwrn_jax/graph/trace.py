"""From a function of parameters and images to its graph, by the equations that JAX traces.

Equations that depend on parameters only are evaluated, whichever rule or layer they come from. Every other
equation has a rule by the name of its primitive, in `elementwise`, `layout` or `windows`. An equation without
a rule is an error that names the user's file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from binwrn_jax.errors import CannotExport, UserError
from binwrn_jax.graph import elementwise, layout, windows
from binwrn_jax.graph.axes import Axes, Inexpressible, axes_of
from binwrn_jax.graph.builder import Builder, Known, Operand, Rule, Value
from binwrn_jax.graph.equations import Equation, Program, evaluate, known_variables, program_of
from binwrn_jax.graph.functions import recognise
from binwrn_jax.graph.operations import INPUT, Graph
from binwrn_jax.nn.binarize import path_of
from binwrn_jax.nn.operations import portable

Apply = Callable[[Any, Any], Any]

RULES: dict[str, Rule] = {**elementwise.RULES, **layout.RULES, **windows.RULES}

BATCH = 2  # images in the trace: more than one, so that their axis is none of length 1
EXPORTABLE = (
    "exportable are convolution, dense, batch norm at inference, ReLU and clip, leaky ReLU, sigmoid, SiLU, "
    "tanh, hard sigmoid and swish, GELU, sums and products, concatenation of channels, max, average and "
    "global pools, constant padding, resizing by whole factors, changes of layout"
)


def trace(apply: Apply, variables: Any, image_shape: tuple[int, int, int]) -> Graph:
    """The graph of a network at inference.

    Args:
      apply: ``apply(variables, images)``, any traceable function from uint8 ``[N, H, W, C]`` to logits
        ``[N, classes]``.
      variables: any tree; what is no array in it stays as it is.
      image_shape: ``(H, W, C)``.

    Raises:
      CannotExport: an operation has no counterpart in a graph; the message names it, and the file and line.
      UserError: a kernel has NaN weights.
    """
    leaves, names, function = split(apply, variables)
    _check_weights(leaves, names)
    with portable():
        program = program_of(function, leaves, _images(image_shape))
    builder = Builder(BATCH, image_shape)
    result = _run(builder, program, _constants(program, leaves, names), image_shape)
    if not isinstance(result, Value):
        raise CannotExport("the logits do not depend on the images: there is nothing to export")
    shape = builder.shapes[result.name]
    if result.axes != axes_of("NC", {"N": BATCH, "C": shape[2]}):
        raise CannotExport(
            f"the result of the network is no [N, classes] array of logits, but has the axes {result.axes}"
        )
    operations = recognise(builder.operations, builder.shapes, result.name)
    graph = Graph(tuple(operations), builder.shapes, result.name)
    for operation in graph.operations:
        if operation.kind == "primitive":
            equation = builder.equations[operation.output]
            raise refusal(equation)
    return graph


def _check_weights(leaves: Sequence[Any], names: Sequence[str]) -> None:
    """NaN has a sign too, so its bits would hide that the training diverged."""
    for name, leaf in zip(names, leaves, strict=True):
        if len(leaf.shape) > 1 and jnp.issubdtype(leaf.dtype, jnp.floating) and np.isnan(leaf).any():
            raise UserError(f"{name} has NaN weights: the training diverged, there is nothing to export")


def _images(image_shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((BATCH, *image_shape), jnp.uint8)


def activation_dtypes(apply: Apply, variables: Any, image_shape: tuple[int, int, int]) -> set[str]:
    """The names of all dtypes in which a network computes what depends on the images."""
    leaves, _, function = split(apply, variables)
    with portable():
        program = program_of(function, leaves, _images(image_shape))
    known = known_variables(program)
    return {equation.dtype.name for equation in program.equations if not set(equation.outputs) <= known}


def refusal(equation: Equation, reason: object = EXPORTABLE) -> CannotExport:
    """The error that names an equation, and the user's file and line."""
    if norm := equation.norm():
        reason = f"{norm} normalises by the statistics of each image, which cannot be folded: use batch norm"
    return CannotExport(f"{equation.location()} cannot be exported: {reason}")


def split(apply: Apply, variables: Any) -> tuple[list[Any], list[str], Callable[[list[Any], Any], Any]]:
    """The arrays of a tree, their paths, and ``apply`` as a function of them.

    Other leaves, such as the activation functions in an Equinox module, stay what they are.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(variables)
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for _, leaf in flat]
    fixed = [leaf for _, leaf in flat]

    def function(arrays: list[Any], images: Any) -> Any:
        given = iter(arrays)
        leaves = [next(given) if a else leaf for a, leaf in zip(is_array, fixed, strict=True)]
        return apply(jax.tree_util.tree_unflatten(structure, leaves), images)

    arrays = [(path, leaf) for (path, leaf), a in zip(flat, is_array, strict=True) if a]
    return [leaf for _, leaf in arrays], [path_of(path) for path, _ in arrays], function


def _constants(program: Program, leaves: Sequence[Any], names: Sequence[str]) -> dict[int, Known]:
    """The values that equations of the images take from the parameters, by variable."""
    known = known_variables(program)
    makers = {v: equation for equation in program.equations for v in equation.outputs}
    sources: dict[int, tuple[str, ...]] = {
        variable: (name,) for variable, name in zip(program.parameters, names, strict=True)
    }
    wanted = {r for r in program.results if isinstance(r, int) and r in known}
    for equation in program.equations:
        inputs = [r for r in equation.inputs if isinstance(r, int)]
        if set(equation.outputs) <= known:
            found = tuple(dict.fromkeys(name for r in inputs for name in sources.get(r, ())))
            sources.update(dict.fromkeys(equation.outputs, found))
        else:
            wanted.update(r for r in inputs if r in known)

    def broadcast(variable: int) -> tuple[int, Equation] | None:
        # A vector that is broadcast to a batch of images is not written out.
        equation = makers.get(variable)
        if equation is None or equation.name != "broadcast_in_dim":
            return None
        operand = equation.inputs[0]
        return (operand, equation) if isinstance(operand, int) else None

    def root(variable: int) -> int:
        found = broadcast(variable)
        return variable if found is None else root(found[0])

    values = evaluate(program, leaves, {root(variable) for variable in wanted})

    def value(variable: int) -> np.ndarray:
        found = broadcast(variable)
        if found is None:
            return values[variable]
        operand, equation = value(found[0]), found[1]
        shape = [1] * len(equation.shape)
        for length, place in zip(operand.shape, equation.params["broadcast_dimensions"], strict=True):
            shape[place] = length
        return np.broadcast_to(operand.reshape(shape), equation.shape)

    return {variable: Known(value(variable), sources.get(variable, ())) for variable in wanted}


def _run(
    builder: Builder, program: Program, constants: dict[int, Known], image_shape: tuple[int, int, int]
) -> Operand:
    height, width, depth = image_shape
    axes: Axes = axes_of("NHWC", {"N": BATCH, "H": height, "W": width, "C": depth})
    environment: dict[int, Operand] = {**constants, program.images: Value(INPUT, axes)}

    def read(reference: Any) -> Operand:
        return environment[reference] if isinstance(reference, int) else Known(reference)

    for equation in program.equations:
        if not any(isinstance(r, int) and isinstance(environment.get(r), Value) for r in equation.inputs):
            continue  # evaluated already
        rule = RULES.get(equation.name)
        if rule is None:
            raise refusal(equation)
        builder.equation = equation
        try:
            environment[equation.outputs[0]] = rule(builder, *map(read, equation.inputs))
        except Inexpressible as error:
            raise refusal(equation, error) from error
    if len(program.results) != 1:
        raise CannotExport(f"the network gives {len(program.results)} arrays instead of its logits alone")
    return read(program.results[0])
