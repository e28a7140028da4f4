"""Entry points: ``train.py`` and ``binwrn VERB``."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from binwrn_jax.errors import UserError


def guarded(program: Callable[[], int]) -> int:
    """Runs a program; mistakes of the user become one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("binwrn_jax").setLevel(logging.INFO)
    try:
        return program()
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        full = disk_full(error)
        if not full:
            raise
        message = full
    # \n first: a live progress line may stand where the message is to go.
    print(("\n" if sys.stdout.isatty() else "") + f"error: {message}", file=sys.stderr)
    return 2


def disk_full(error: BaseException) -> str | None:
    """One line about a full disk if that is what an exception, or one that it came from, says."""
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        text = str(seen)
        if (
            number in (errno.ENOSPC, errno.EDQUOT)
            or "No space left" in text
            or "quota exceeded" in text.lower()
        ):
            where = f" ({seen.filename})" if isinstance(seen, OSError) and seen.filename else ""
            return f"disk full{where}: free some space and run the same command to go on"
        seen = seen.__cause__ or seen.__context__
    return None


def train_main(argv: list[str], default_config: Path) -> int:
    """The program behind train.py; returns the exit code."""

    def program() -> int:
        from binwrn_jax.config import to_json
        from binwrn_jax.flags import USAGE, parse_flags

        config, workdir, help_wanted = parse_flags(argv, default_config)
        if help_wanted:
            print(USAGE + "\nThe configuration as resolved:\n" + to_json(config), end="")
            return 0
        from binwrn_jax.loop import train
        from binwrn_jax.signals import Stopped

        try:
            train(config, workdir)
        except Stopped as stopped:
            return stopped.exit_code
        return 0

    return guarded(program)
