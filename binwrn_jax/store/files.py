"""Files that are whole or absent, whenever the program is killed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from binwrn_jax.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that a reader sees the old content or the new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def readable(path: Path, remedy: str) -> Any:
    """Turns whatever goes wrong in reading a checkpoint or model into one line with a remedy."""
    try:
        yield
    except Exception as error:
        # Orbax wraps what it met in a page about how it was stored.
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise UserError(f"checkpoint {path} cannot be read ({reason}): {remedy}") from error
