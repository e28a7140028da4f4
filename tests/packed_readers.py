"""The readers of packed files, and how each says that it refuses one."""

from pathlib import Path

from binwrn_jax.deploy import native
from binwrn_jax.deploy.jax_runtime import load_packed
from binwrn_jax.deploy.numpy_runtime import open_numpy
from binwrn_jax.errors import UserError

READERS = {"NumPy": open_numpy, "JAX": load_packed, "C": lambda path: native.load(path, threads=1)}


def refused(read, *arguments) -> str | None:
    """The line with which a reader refuses, or None; anything but one line fails the test."""
    try:
        read(*arguments)
    except UserError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 500 and message.isprintable(), message
        return message
    return None


def verdicts(path: Path) -> dict[str, str | None]:
    """By reader, the line with which it refuses a file, or None."""
    return {reader: refused(read, path) for reader, read in READERS.items()}
