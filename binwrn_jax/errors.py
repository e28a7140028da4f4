"""Errors of the user, errors of the program, and the one line that each becomes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import traceback
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# The extra of pyproject.toml that installs an optional module.
EXTRAS = {
    "array_record": "data",
    "cv2": "imagenet",
    "datasets": "hf",
    "flatbuffers": "deploy",
    "gcsfs": "gcs",
    "google_crc32c": "data",
    "grain": "data",
    "huggingface_hub": "hub",
    "libtpu": "tpu",
    "matplotlib": "plot",
    "mlflow": "loggers",
    "onnx": "deploy",
    "onnxruntime": "deploy",
    "scipy": "released",
    "simplejpeg": "imagenet",
    "sklearn": "data",
    "tensorboardX": "loggers",
    "wandb": "loggers",
    "wasmtime": "web",
    "ziglang": "web",
}

_LONGEST = 1500  # characters of a message

# An unusable path is a user error.
_PATH_ERRORS = (
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

show_tracebacks = False  # set by --debug


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong and what to do.

    The command-line programs print it without a traceback and exit with code 2.
    """


class CannotExport(UserError):
    """A network has an operation that no file format here can express.

    The message names the primitive, the module, and the file and line of the user's code.
    """


class JobFailure(Exception):
    """Another process of the job, or its machine, failed: the message is one line; the exit code is 1."""


class Failure(NamedTuple):
    """The message and the exit code of a program after an exception.

    Attributes:
      message: one line.
      code: exit code: 2 where the user can mend it, 1 where the program is at fault.
    """

    message: str
    code: int


def require(module: str, purpose: str) -> Any:
    """Imports a module of an optional package.

    Args:
      module: name, one of whose first parts is in `EXTRAS`.
      purpose: what needs it, as the beginning of a sentence: 'writing ONNX files'.

    Raises:
      UserError: the package is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        hint = _install_hint(error)
        if hint is None:
            raise
        raise UserError(f"{purpose} needs {hint}") from error


def _install_hint(error: ModuleNotFoundError) -> str | None:
    """How to install the optional package that an exception is about; None for another module."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return f"the package {package}: pip install 'binwrn-jax[{EXTRAS[package]}]'"


def printable(text: str) -> str:
    r"""Text from a file, a name or a message made safe for a terminal, on one line.

    Control characters, line ends, bidirectional marks and undecodable bytes of file names become escapes.

    >>> printable("cat\x1b[2J\n")
    'cat\\x1b[2J\\n'
    """
    return "".join(
        c.encode("unicode_escape", "surrogatepass").decode("ascii")
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else c
        for c in text
    )


def print_traceback(error: BaseException) -> None:
    """Prints the traceback of an error where ``--debug`` asks for it."""
    if show_tracebacks:
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)


def explain(error: BaseException) -> Failure:
    """The line and the exit code of an exception that ends a program.

    Full disks, unusable paths, missing extras and settings that JAX refuses are errors of the user, wherever
    they appear; all others are faults of the program, which should be reported. The middle of a very long
    message, which repeats what the user gave, is left out.
    """
    message, code = _explain(error)
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST - 400]} ... {message[-395:]}"
    return Failure(message, code)


def _explain(error: BaseException) -> Failure:
    if isinstance(error, UserError):
        return Failure(str(error), 2)
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted", 130)
    if isinstance(error, JobFailure):
        return Failure(str(error), 1)
    message = _disk_full(error) or _path_error(error) or _missing_extra(error) or _refused_setting(error)
    if message:
        return Failure(message, 2)
    kind, text = type(error).__name__, " ".join(str(error).split())
    where = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(where[-1].filename).name}:{where[-1].lineno}" if where else ""
    return Failure(
        f"the program failed ({kind}: {text[:200]}{place}): please report it, with what the same command and "
        "--debug prints",
        1,
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _disk_full(error: BaseException) -> str | None:
    for one in _chain(error):
        text = str(one)
        number = one.errno if isinstance(one, OSError) else None
        if number in _DISK_FULL or "No space left" in text or "quota exceeded" in text.lower():
            where = f" ({one.filename})" if isinstance(one, OSError) and one.filename else ""
            return f"disk full{where}: free some space and run the same command to go on"
    return None


def _path_error(error: BaseException) -> str | None:
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "a path has a character of value 0: choose another path"
    if isinstance(error, OSError) and error.errno in _PATH_ERRORS and error.filename:
        return f"cannot use {error.filename} ({error.strerror}): choose another path"
    return None


def _missing_extra(error: BaseException) -> str | None:
    if isinstance(error, ModuleNotFoundError) and (hint := _install_hint(error)):
        return f"this needs {hint}"
    return None


def _refused_setting(error: BaseException) -> str | None:
    """JAX's message about its choice of platform or another of its environment variables."""
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and "Unable to initialize backend" in text:
        return (
            f"JAX does not start ({text[:200]}): set JAX_PLATFORMS to a platform of this machine, such as cpu"
        )
    frames = [Path(frame.filename).parts[-3:] for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, ValueError) and ("jax", "_src", "config.py") in frames:
        return f"JAX refuses one of its settings ({text[:200]}): correct the environment variable JAX_..."
    if (
        isinstance(error, AssertionError)
        and frames[-1][:2] == ("jax", "_src")
        and "JAX_PLATFORMS" in os.environ
    ):
        return (
            "JAX finds no device of the platform in JAX_PLATFORMS: set it to one of this machine, such as cpu"
        )
    return None
