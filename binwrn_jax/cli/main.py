"""Entry points: ``train.py`` and ``binwrn VERB``."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import absl.logging

from binwrn_jax.errors import UserError

# A path that cannot be used is the user's to mend, whoever comes upon it.
PATH_ERRORS = (
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

# Each verb is a module of binwrn_jax.cli, imported only when it runs: `binwrn --help` is instant.
VERBS = {
    "import": ("import_released", "turn a file released by the paper's author into a model"),
    "evaluate": ("evaluate", "measure the error of a model on a data set"),
    "inspect": ("inspect", "list the layers of a model with their bits"),
    "export": ("export", "write a model as a packed, ONNX or StableHLO file, proven equal"),
    "verify": ("verify", "prove that a packed file is what it says"),
    "preflight": (
        "preflight",
        "compile a training step for machines elsewhere: does it fit, how fast",
    ),
    "predict": ("predict", "name what is on images"),
    "data": ("data", "prepare a data set, or say what is there and what has to be downloaded"),
}


def guarded(program: Callable[[], int]) -> int:
    """Runs a program; mistakes of the user become one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("binwrn_jax").setLevel(logging.INFO)
    # Orbax logs each error, with tracebacks, before it raises it; so do the event loops of its threads.
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
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
        line = disk_full(error) or path_error(error)
        if not line:
            raise
        message = line
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


def path_error(error: Exception) -> str | None:
    """One line about a file or folder that cannot be used, if that is what an exception says."""
    if isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename:
        return f"cannot use {error.filename} ({error.strerror}): choose another path"
    return None


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError`."""
        raise UserError(f"{message}; see {self.prog} --help")


def train_main(argv: list[str], default_config: Path) -> int:
    """The program behind train.py; returns the exit code."""

    def program() -> int:
        from binwrn_jax.cli.flags import USAGE, parse_flags, take_processes
        from binwrn_jax.training.config import to_json

        processes, rest = take_processes(argv)
        config, workdir, help_wanted = parse_flags(rest, default_config)
        if help_wanted:
            print(USAGE + "\nThe configuration as resolved:\n" + to_json(config), end="")
            return 0
        from binwrn_jax.parallel.processes import job
        from binwrn_jax.parallel.signals import Stopped
        from binwrn_jax.training.loop import train

        try:
            with job(processes):
                train(config, workdir)
        except Stopped as stopped:
            return stopped.exit_code
        return 0

    return guarded(program)


def main(argv: list[str] | None = None) -> int:
    """The program ``binwrn``; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv

    def program() -> int:
        verb = next((argument for argument in arguments if not argument.startswith("-")), None)
        if not arguments or arguments[0] != verb:
            from binwrn_jax import __version__

            parser = Parser(
                prog="binwrn",
                description="Networks with one bit per weight: evaluate and deploy what train.py trained.",
                epilog="verbs:\n" + "".join(f"  {name:12} {help_}\n" for name, (_, help_) in VERBS.items()),
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            parser.add_argument("--version", action="version", version=f"binwrn-jax {__version__}")
            parser.add_argument("verb", metavar="VERB", help="see below; `binwrn VERB --help` has more")
            parser.parse_args(arguments[:1])  # prints and exits, or complains
        if verb not in VERBS:
            near = difflib.get_close_matches(str(verb), VERBS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"unknown verb {verb!r}{hint}: the verbs are {', '.join(VERBS)}")
        module_name, description = VERBS[verb]
        module = importlib.import_module(f"binwrn_jax.cli.{module_name}")
        verb_parser = Parser(prog=f"binwrn {verb}", description=description)
        module.add_arguments(verb_parser)
        if not getattr(module, "TAKES_CONFIG", False):
            return module.run(verb_parser.parse_args(arguments[1:]))
        options, config_flags = verb_parser.parse_known_args(arguments[1:])
        return module.run(options, config_flags)

    return guarded(program)
