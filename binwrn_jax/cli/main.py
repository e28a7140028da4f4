"""The program ``binwrn VERB``; ``train.py`` is its verb ``train``."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from typing import NoReturn

from binwrn_jax.cli.handler import guarded, take_debug
from binwrn_jax.errors import UserError

# Each verb is a module of binwrn_jax.cli, imported only when it runs: `binwrn --help` is instant.
VERBS = {
    "train": ("train", "train a network and evaluate it; the same command again resumes"),
    "predict": ("predict", "name what is on images"),
    "evaluate": ("evaluate", "measure the error of a model on a data set"),
    "compare": ("compare", "put runs beside each other: errors, times, settings, curves"),
    "export": ("export", "write a model as a packed, ONNX, StableHLO or C file or a web page, proven equal"),
    "verify": ("verify", "prove that a packed file is what it says"),
    "card": ("card", "write a README for the Hugging Face hub from what a run has recorded"),
    "inspect": ("inspect", "list the layers of a model with their bits"),
    "benchmark": ("benchmark", "time the runtimes that are installed here on a model"),
    "import": ("import_released", "turn a file released by the paper's author into a model"),
    "data": ("data", "prepare a data set, or say what is there and what has to be downloaded"),
    "preflight": (
        "preflight",
        "compile a training step for machines elsewhere: does it fit, how fast",
    ),
}


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line, as all commands do."""

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError`."""
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv: list[str] | None = None) -> int:
    """The program ``binwrn``; returns the exit code."""
    arguments, debug = take_debug(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(arguments), debug)


def _run(arguments: list[str]) -> int:
    """Finds the verb, reads its options and runs it."""
    if not arguments or arguments[0].startswith("-"):
        _top_parser().parse_args(arguments[:1])  # prints and exits, or complains
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"unknown verb {verb!r}{hint}: the verbs are {', '.join(VERBS)}")
    module_name, description = VERBS[verb]
    module = importlib.import_module(f"binwrn_jax.cli.{module_name}")
    if hasattr(module, "run_flags"):  # its options are those of a configuration
        return int(module.run_flags(rest))
    parser = Parser(prog=f"binwrn {verb}", description=description, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    module.add_arguments(parser)
    if getattr(module, "TAKES_CONFIG", False):
        return int(module.run(*parser.parse_known_args(rest)))
    return int(module.run(parser.parse_args(rest)))


def _top_parser() -> Parser:
    from binwrn_jax import __version__

    parser = Parser(
        prog="binwrn",
        description="Networks with one bit per weight: train, evaluate and deploy them.",
        epilog="verbs:\n" + "".join(f"  {name:12} {help_}\n" for name, (_, help_) in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"binwrn-jax {__version__}")
    parser.add_argument("verb", metavar="VERB", help="see below; `binwrn VERB --help` has more")
    return parser
