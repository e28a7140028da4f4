"""What surrounds the work of every program of the project: streams, errors, exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable

from binwrn_jax import errors
from binwrn_jax.errors import UserError, explain, print_traceback, printable


def guarded(program: Callable[[], int], debug: bool = False) -> int:
    """Runs a program; turns any error into one line on stderr and an exit code.

    Args:
      program: returns its exit code; may leave by `SystemExit`, as argparse does.
      debug: print the traceback of an error before its line.

    Returns:
      The program's own exit code; 2 after an error of the user, 1 after one of the program, 130 after
      Ctrl-C, 141 after a closed pipe.
    """
    errors.show_tracebacks = debug
    try:
        _open_streams()
        _set_up_logging()
        try:
            code = program()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `... | head`
        return 141
    except Exception as error:
        print_traceback(error)
        failure = explain(error)
        _say(failure.message)
        return failure.code
    finally:
        _drop_what_cannot_be_written()


def take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without ``--debug``, and whether it was among them."""
    return [argument for argument in arguments if argument != "--debug"], "--debug" in arguments


def _open_streams() -> None:
    """Makes the three standard streams usable, whatever the caller has closed and whatever the locale is.

    Raises:
      UserError: standard output is closed: the first file that the program opened would become it.
    """
    closed = sys.stdout is None
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        elif mode == "w" and hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    if closed:
        raise UserError("standard output is closed: send it to a file, or to /dev/null")


def _set_up_logging() -> None:
    class OneLine(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable(super().format(record))

    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(OneLine("%(message)s"))
    logging.getLogger("binwrn_jax").setLevel(logging.INFO)
    # Orbax logs each error, with tracebacks, before it raises it; so do the event loops of its threads.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _say(message: str) -> None:
    # \n first: a live progress line may stand where the message is to go.
    with contextlib.suppress(OSError, ValueError):
        start = "\n" if sys.stdout.isatty() else ""
        print(f"{start}error: {printable(message)}", file=sys.stderr, flush=True)


def _drop_what_cannot_be_written() -> None:
    """Discards output that a full disk or a closed pipe did not take; Python would report it on exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
