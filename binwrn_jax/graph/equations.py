"""The equations of a traced function in one list, nested functions written out; parameters evaluated."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

NESTED = (
    *(
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
    ),
    *("checkpoint", "remat", "remat2"),
)
LIBRARIES = ("jax", "jaxlib", "flax", "equinox", "numpy", "jaxtyping", "beartype", "binwrn_jax")

_NORMS = re.compile(r"(?:Layer|Group|Instance|RMS)Norm")

Constant = np.ndarray
Reference = int | Constant  # a variable by its number, or a literal


@dataclasses.dataclass(frozen=True)
class Equation:
    """One equation of a jaxpr, with variables that are numbers.

    Attributes:
      primitive: of JAX.
      inputs: variables and literals.
      outputs: variables.
      params: of the primitive.
      avals: shape and dtype of each input, then of each output.
      trail: the equation of the jaxpr, after those of the nested functions that it stands in.
    """

    primitive: Any
    inputs: tuple[Reference, ...]
    outputs: tuple[int, ...]
    params: dict[str, Any]
    avals: tuple[Any, ...]
    trail: tuple[JaxprEqn, ...]

    @property
    def name(self) -> str:
        """Of the primitive."""
        return str(self.primitive.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first output."""
        return tuple(self.avals[len(self.inputs)].shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the first output."""
        dtype: np.dtype[Any] = np.dtype(self.avals[len(self.inputs)].dtype)
        return dtype

    def location(self) -> str:
        """The place in the user's code: ``'tanh of mish in Head.f (net.py:12), module Head_0'``."""
        frame = _user_frame(self.trail)
        nested = next((_function_of(e) for e in self.trail[:-1] if _is_library(_function_of(e)[1])), None)
        of = f" of {nested[0]}" if nested else ""
        where = f" in {frame[0]} ({frame[1]}:{frame[2]})" if frame else ""
        module = str(self.trail[0].source_info.name_stack)
        return f"{self.name}{of}{where}" + (f", module {module}" if module else "")

    def norm(self) -> str:
        """The name of the norm by each image's own statistics that the equation is part of, or ''."""
        traceback = self.trail[0].source_info.traceback
        names: list[str] = [frame.function_name for frame in traceback.frames] if traceback else []
        found = _NORMS.search(" ".join([str(self.trail[0].source_info.name_stack), *names]))
        return found[0] if found else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of parameters and images as equations.

    Attributes:
      equations: in order, those that the result needs.
      parameters: the variable of each leaf of the parameters.
      constants: arrays that the function has closed over, by variable.
      images: the variable of the images.
      results: variables or literals.
    """

    equations: tuple[Equation, ...]
    parameters: tuple[int, ...]
    constants: dict[int, Any]
    images: int
    results: tuple[Reference, ...]


def program_of(function: Callable[..., Any], leaves: Sequence[Any], images: jax.ShapeDtypeStruct) -> Program:
    """Traces ``function(leaves, images)``; see `Program`."""
    closed = jax.make_jaxpr(function)(list(leaves), images)
    writer = _Inliner()
    inputs = tuple(writer.variable() for _ in closed.jaxpr.invars)
    results = writer.inline(closed, inputs, ())
    equations, needed = [], {r for r in results if isinstance(r, int)}
    for equation in reversed(writer.equations):
        if needed.intersection(equation.outputs):
            needed.update(r for r in equation.inputs if isinstance(r, int))
            equations.append(equation)
    return Program(tuple(reversed(equations)), inputs[:-1], writer.constants, inputs[-1], results)


class _Inliner:
    def __init__(self) -> None:
        self.equations: list[Equation] = []
        self.constants: dict[int, Any] = {}
        self._variables = 0

    def variable(self) -> int:
        self._variables += 1
        return self._variables - 1

    def inline(
        self, closed: Any, arguments: Iterable[Reference], trail: tuple[JaxprEqn, ...]
    ) -> tuple[Reference, ...]:
        jaxpr: Jaxpr = getattr(closed, "jaxpr", closed)
        environment: dict[Any, Reference] = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, value in zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True):
            environment[variable] = number = self.variable()
            self.constants[number] = value

        def read(atom: Any) -> Reference:
            literal = isinstance(atom, Literal)
            return np.asarray(atom.val, atom.aval.dtype) if literal else environment[atom]

        for eqn in jaxpr.eqns:
            inputs = tuple(read(atom) for atom in eqn.invars)
            if eqn.primitive.name in NESTED:
                inner = next(eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params)
                results = self.inline(inner, inputs, (*trail, eqn))
                environment.update(zip(eqn.outvars, results, strict=True))
            else:
                outputs = tuple(self.variable() for _ in eqn.outvars)
                avals = tuple(atom.aval for atom in (*eqn.invars, *eqn.outvars))
                self.equations.append(
                    Equation(eqn.primitive, inputs, outputs, dict(eqn.params), avals, (*trail, eqn))
                )
                environment.update(zip(eqn.outvars, outputs, strict=True))
        return tuple(read(atom) for atom in jaxpr.outvars)


# --- the source of an equation ------------------------------------------------------------------------------


def _library_folders() -> tuple[str, ...]:
    loaded = [sys.modules[name] for name in LIBRARIES if name in sys.modules]
    files = [module.__file__ for module in loaded if getattr(module, "__file__", None)]
    return (*{f"{Path(file).parent}/" for file in files if file}, sysconfig.get_paths()["stdlib"] + "/")


def _is_library(file: str) -> bool:
    if "/site-packages/" in file:
        return any(f"/site-packages/{name}/" in file for name in LIBRARIES)
    return file.startswith("<") or file.startswith(_library_folders())


def _user_frame(trail: Sequence[JaxprEqn]) -> tuple[str, str, int] | None:
    """Function, file and line of the user's code that an equation comes from.

    JAX traces a jitted function once and keeps the lines of that one call. So an equation in a jitted
    function of a library is reported at the user's call, and an equation in a function of the user at its own
    line.
    """
    for depth in range(len(trail), 0, -1):
        if any(_is_library(_function_of(eqn)[1]) for eqn in trail[: depth - 1]):
            continue
        traceback = trail[depth - 1].source_info.traceback
        frames: list[Any] = traceback.frames if traceback else []
        for frame in frames:
            if not _is_library(frame.file_name):
                function: str = frame.function_name.replace(".<locals>", "")
                return function, Path(frame.file_name).name, frame.line_num
    return None


def _function_of(eqn: JaxprEqn) -> tuple[str, str]:
    """Name and file of the function that an equation calls; '' where JAX does not say."""
    inner = next(eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params)
    info = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
    name, _, place = (getattr(info, "func_src_info", None) or "").partition(" at ")
    return name, place.rpartition(":")[0]


# --- values that depend on parameters only ------------------------------------------------------------------

# Numbers by channel are computed in float64 and rounded once; all others as the network computes them.
_ARITHMETIC = frozenset(("add", "sub", "mul", "div", "sqrt", "rsqrt", "neg", "integer_pow", "square"))
_ANY_DTYPE = frozenset(("reshape", "broadcast_in_dim", "squeeze", "transpose", "expand_dims", "copy"))


def known_variables(program: Program) -> set[int]:
    """The variables that do not depend on the images."""
    known = {*program.parameters, *program.constants}
    for equation in program.equations:
        if all(not isinstance(r, int) or r in known for r in equation.inputs):
            known.update(equation.outputs)
    return known


def evaluate(program: Program, leaves: Sequence[Any], wanted: Iterable[int]) -> dict[int, np.ndarray]:
    """The values of variables that do not depend on the images, by one jitted call.

    Multiply-adds by channel, such as those of batch norm, are computed in float64.

    Args:
      program: with such variables.
      leaves: of the parameters, in order.
      wanted: variables.
    """
    wanted = list(wanted)
    needed, equations = set(wanted), []
    for equation in reversed(program.equations):
        if needed.intersection(equation.outputs):
            needed.update(r for r in equation.inputs if isinstance(r, int))
            equations.append(equation)
    given = {**program.constants, **dict(zip(program.parameters, leaves, strict=True))}
    given = {variable: _on_host(value) for variable, value in given.items() if variable in needed}

    def run(values: dict[int, Any]) -> list[Any]:
        environment = dict(values)
        for equation in reversed(equations):
            inputs = [r if isinstance(r, np.ndarray) else environment[r] for r in equation.inputs]
            environment.update(zip(equation.outputs, _bind(equation, inputs), strict=True))
        return [environment[variable] for variable in wanted]

    with jax.enable_x64(True), _on_cpu():
        return dict(zip(wanted, map(np.asarray, jax.jit(run)(given)), strict=True))


def _on_cpu() -> Any:
    """JAX on the CPU, which alone computes in float64 at any time."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves out the CPU
        return contextlib.nullcontext()


def _on_host(value: Any) -> Any:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value
    return np.asarray(value)


def _bind(equation: Equation, inputs: list[Any]) -> Sequence[Any]:
    """Computes one equation inside of a jitted function."""
    arithmetic = equation.name in _ARITHMETIC and equation.dtype == np.float32
    if arithmetic and sum(length > 1 for length in equation.shape) <= 1:
        values = [_precisely(value) for value in inputs]
    elif equation.name in _ANY_DTYPE:
        values = inputs
    elif equation.name == "convert_element_type" and equation.avals[0].dtype == equation.dtype:
        return inputs
    else:
        avals = equation.avals[: len(inputs)]
        values = [v if v.dtype == a.dtype else v.astype(a.dtype) for v, a in zip(inputs, avals, strict=True)]
    outputs = equation.primitive.bind(*values, **equation.params)
    return outputs if equation.primitive.multiple_results else [outputs]


def _precisely(value: Any) -> Any:
    # A float32 literal stands for the decimal number that somebody wrote: 1e-5, and not the float32 nearest
    # to it.
    if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype == np.float32:
        return jnp.asarray(float(str(value)), jnp.float64)
    return jnp.asarray(value, jnp.float64)
