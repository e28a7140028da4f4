"""Why data cannot be read, in one line with a remedy; only proven damage is called damage."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from binwrn_jax.errors import UserError


class DamagedError(ValueError):
    """A checksum or a decoder proves that stored bytes are damaged."""


class MismatchError(ValueError):
    """Whole files that disagree with what is known about the data set."""


_ANOTHER = "set TFDS_DATA_DIR or --config.data.dir to another folder"

# Messages of system calls and their remedies. Readers of other libraries keep the words, not the number.
_REMEDIES: tuple[tuple[tuple[int, ...], str], ...] = (
    (
        (errno.EACCES, errno.EPERM),
        "this user may not read the files: have their permissions changed (ls -ln shows them)",
    ),
    (
        (errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
        "a file is not there: see whether the disk is mounted and whether copying has ended",
    ),
    (
        (
            errno.EIO,
            errno.ESTALE,
            errno.ENOTCONN,
            errno.ETIMEDOUT,
            errno.ENODEV,
            errno.ENXIO,
            errno.EHOSTDOWN,
        ),
        "the file system does not deliver the files: see to the disk or its mount",
    ),
    (
        (errno.EMFILE, errno.ENFILE),
        "too many files are open: raise the limit (ulimit -n), or use fewer --config.data.workers",
    ),
    ((errno.ENOMEM,), "memory is short: use fewer --config.data.workers, or give a limit"),
)
# Messages of ArrayRecord (Riegeli) about wrong checksums.
_CHECKSUM = re.compile(r"hash mismatch|Corrupted|DATA_LOSS|checksum", re.IGNORECASE)


def is_remote(folder: object) -> bool:
    """Whether a path is one of a bucket, which is not ours to delete or to write."""
    return "://" in os.fspath(folder)  # type: ignore[call-overload]


def one_line(error: BaseException) -> str:
    """The error in one line of at most 200 characters; of a longer text the middle is left out."""
    inner = error.args[0] if error.args else None
    error = getattr(inner, "reason", None) or error  # requests wraps urllib3's error, which is shorter
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-95:]}"


def remedy(error: BaseException, folder: object) -> str:
    """The remedy for data that could not be read.

    "Delete that folder" is the advice only where a checksum or a decoder has proven damage.

    Args:
      error: what a reader or a decoder has raised.
      folder: of the prepared data set.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError):
            return f"{_REMEDIES[-1][1]}"
        for numbers, what in _REMEDIES:
            if (isinstance(seen, OSError) and seen.errno in numbers) or any(
                os.strerror(number) in str(seen) for number in numbers
            ):
                return f"{what}; or {_ANOTHER}"
        if isinstance(seen, DamagedError) or _CHECKSUM.search(str(seen)):
            if is_remote(folder):
                return f"damaged files; copy them there again, or {_ANOTHER}"
            return f"damaged files; delete that folder and prepare it again, or {_ANOTHER}"
        if isinstance(seen, MismatchError):
            return f"files of another data set or version; {_ANOTHER}"
        if isinstance(seen, EOFError):
            return (
                "a file is too short: see whether copying it has ended, copy or prepare the data set again, "
                f"or {_ANOTHER}"
            )
        seen = seen.__cause__ or seen.__context__
    cause = "no connection, or files of another kind" if is_remote(folder) else "see what the reason says"
    return f"{cause}, or {_ANOTHER}"


@contextlib.contextmanager
def naming(what: str, folder: object) -> Iterator[None]:
    """Turns any error of reading into one line.

    Args:
      what: the object of reading, in words that follow "cannot read".
      folder: of the prepared data set.

    Raises:
      UserError: for any other exception.
    """
    try:
        yield
    except (UserError, ImportError):  # a missing extra is named by its own line
        raise
    except Exception as error:  # readers and decoders raise a dozen types
        raise UserError(f"cannot read {what} ({one_line(error)}): {remedy(error, folder)}") from error
