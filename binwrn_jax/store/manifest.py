"""Proof of files: the size and SHA-256 of each, in a JSON file that proves itself.

A *sealed* JSON file has a key ``sha256``: the SHA-256 of the file's own bytes with the 64 digits of that
value replaced by zeros. A *manifest* is a sealed file with the key ``files``: for each file of a folder, by
its path in the folder, ``bytes`` and ``sha256``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from binwrn_jax.errors import UserError

_ZEROS = "0" * 64


class Damaged(UserError):
    """A file or folder has changed since it was written: its proof fails."""


def seal(content: Mapping[str, Any]) -> str:
    """The text of a sealed JSON file with this content; a key ``sha256`` of it is replaced.

    >>> open_sealed(seal({"a": 1}).encode())["a"]
    1
    """
    text = json.dumps({**content, "sha256": _ZEROS}, indent=2, sort_keys=True) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    # Two spaces: the key of the outermost object, and no other.
    return text.replace(f'\n  "sha256": "{_ZEROS}"', f'\n  "sha256": "{digest}"')


def open_sealed(data: bytes) -> dict[str, Any]:
    """The content of a sealed JSON file, without its ``sha256``.

    A file without the keys ``sha256`` and ``files`` is of an earlier version, which sealed nothing; its
    content is returned as it is.

    Raises:
      Damaged: it is no JSON object, or another one than was sealed.
    """
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise Damaged("it is no JSON") from None
    if not isinstance(content, dict):
        raise Damaged("it is no JSON object")
    if not {"sha256", "files"} & content.keys():
        return content
    stated = content.pop("sha256", None)
    if not isinstance(stated, str) or len(stated) != 64 or data.count(stated.encode()) != 1:
        raise Damaged("its own SHA-256 is missing")
    if hashlib.sha256(data.replace(stated.encode(), _ZEROS.encode())).hexdigest() != stated:
        raise Damaged("its own SHA-256 is another")
    return content


def describe_files(folder: Path, without: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """What a manifest says of a folder: ``bytes`` and ``sha256`` of each file, by its path in the folder.

    Args:
      folder: with all below it.
      without: names of files to leave out, wherever they are.
    """
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(paths)
        if path.name not in without
    }


def check_files(folder: Path, files: Any) -> None:
    """Proves the files of a folder; others in it are ignored.

    Args:
      folder: that the manifest is of.
      files: the value of its key ``files``.

    Raises:
      Damaged: a file is absent or another than was written; the message says which.
      OSError: a file cannot be read.
    """
    if not isinstance(files, dict):
        raise Damaged("its list of files is none")
    for name, proof in files.items():
        path = folder / name
        if not isinstance(proof, dict) or not {"bytes", "sha256"} <= proof.keys():
            raise Damaged(f"it has no proof of {name}")
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        if size != proof["bytes"]:
            raise Damaged(f"{name} has {size} bytes, {proof['bytes']} were written")
        if _digest(path) != proof["sha256"]:
            raise Damaged(f"{name} is not what was written, its SHA-256 is another")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def readable(what: str, remedy: str) -> Iterator[None]:
    """Turns any error of reading a checkpoint or model into one line.

    Args:
      what: the object of reading, such as ``model runs/1/model``.
      remedy: what to do if its content is damaged.
    """
    try:
        yield
    except Damaged as error:
        raise Damaged(f"{what} is damaged ({error}): {remedy}") from None
    except UserError as error:
        raise UserError(f"{what}: {error}") from error.__cause__
    except Exception as error:
        # Orbax wraps the error in a page about its storage.
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.strerror:
            raise UserError(f"{what} cannot be read ({cause.strerror}: {cause.filename})") from error
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise UserError(f"{what} cannot be read ({reason}): {remedy}") from error
