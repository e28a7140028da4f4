"""The type checkers that conftest.py installs on the package: shapes and dtypes at each call."""

import typing

import jaxtyping
from beartype import BeartypeConf, beartype

# The tower: where `float` is asked for an int will do, as for every other type checker.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_arrays(function):
    """Checks the arrays that a function takes and returns, and nothing else."""
    hints = {name: _resolved(hint, function) for name, hint in function.__annotations__.items()}
    arrays = {name: hint for name, hint in hints.items() if _is_array(hint)}
    if not arrays:
        return function
    function.__annotations__ = arrays
    return check(function)


def _resolved(hint, function):
    try:
        return eval(hint, function.__globals__) if isinstance(hint, str) else hint
    except NameError:  # imported for type checkers alone, or defined further down: no array
        return None


def _is_array(hint) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_is_array, typing.get_args(hint)))
