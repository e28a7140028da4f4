"""The command line of train.py: ``--config=FILE:SPEC``, ``--config.FIELD=VALUE``, ``--workdir``."""

from __future__ import annotations

import argparse
import re
import types
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from binwrn_jax.errors import UserError
from binwrn_jax.parallel.identity import TIMEOUT_SECONDS, Processes
from binwrn_jax.training.config import flatten, nearest_field
from binwrn_jax.training.workdir import local_folder

USAGE = """usage: binwrn train [--config=NAME[:SPEC]] [--workdir=DIR] [--config.FIELD=VALUE ...]

Trains one network and evaluates it; the same command again resumes. `python train.py` is the same.

  --config       a file such as configs/cifar10.py, or the name of one of the package: cifar10; by default
                 digits; after a colon words separated by commas, such as cifar10:20-4,1bit,cutout
  --workdir      folder for everything that the run writes (default: runs/ and the name and spec)
  --config.seed=1, --config.epochs=6, --config.data.dir=DIR, ...: any field of the configuration
  --coordinator=HOST:PORT, --process_count=N, --process_index=I: several processes as one job, where JAX
                 cannot find them itself (it does on TPU pods, SLURM and Open MPI): docs/distributed.md
  --process_timeout=SECONDS  wait so long for the others (default: 300)
  --debug        print the traceback of an error
  --help         this text and all fields with their values
"""

HELP = ("--help", "-h", "-?")
PACKAGE = Path(__file__).parents[1]


class CommandLine(NamedTuple):
    """The flags of a run.

    Attributes:
      config: all fields.
      workdir: folder of the run.
      help_wanted: whether the user asked for help.
      source: the config file that was read, with the words after the colon.
    """

    config: ConfigDict
    workdir: Path
    help_wanted: bool
    source: str


def shipped_configs() -> Path:
    """The folder of the package's config files: inside the package in a wheel, beside it in a checkout."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def find_config(name: str) -> Path:
    """The config file that ``cifar10``, ``cifar10.py`` or ``configs/cifar10.py`` stands for.

    A file of that path wins, then one of this name in ``configs/`` here, then the package's own.

    Raises:
      UserError: there is none.
    """
    given = Path(name)
    if given.is_file():
        return given
    short = given.parent in (Path(), Path("configs"))
    if short and name:
        file = given.with_suffix(".py").name
        for folder in (Path("configs"), shipped_configs()):
            if (folder / file).is_file():
                return folder / file
    known = ", ".join(sorted(file.stem for file in shipped_configs().glob("*.py")))
    raise UserError(f"no config file {name}: give a path, or one of {known}")


def take_processes(argv: list[str]) -> tuple[Processes, list[str]]:
    """Reads ``--coordinator``, ``--process_count`` and ``--process_index``; the rest is for `parse_flags`.

    Raises:
      UserError: a number is none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--coordinator")
    parser.add_argument("--process_count", type=int)
    parser.add_argument("--process_index", type=int)
    parser.add_argument("--process_timeout", type=float, default=TIMEOUT_SECONDS)
    try:
        found, rest = parser.parse_known_args(argv[1:])
    except argparse.ArgumentError as error:
        raise UserError(_one_line(error)) from None
    place = Processes(found.coordinator, found.process_count, found.process_index, found.process_timeout)
    return place, [argv[0], *rest]


def parse_flags(argv: list[str], default_config: Path | str) -> CommandLine:
    """Reads the command line.

    Args:
      argv: with the program's name first.
      default_config: file or name taken where no ``--config`` is given.

    Raises:
      UserError: an unknown flag, field, file or word, or a value of the wrong type.
    """
    argv = [re.sub(r"^-(?=[a-z]{2})", "--", argument) for argument in argv]
    help_wanted = any(argument in HELP for argument in argv[1:])
    argv = [argument for argument in argv if argument not in HELP]
    if "--config" in argv[1:-1]:
        place = argv.index("--config")
        argv[place : place + 2] = [f"--config={argv[place + 1]}"]
    files = [argument for argument in argv if argument.startswith("--config=")]
    rest = [argument for argument in argv[1:] if argument not in files]
    name, _, spec = (files[-1].partition("=")[2] if files else str(default_config)).partition(":")
    path = find_config(name)
    config, given = _override(load_config(path, spec), [argv[0], *rest])
    label = re.sub(r"[^\w.-]+", "_", f"{Path(name).stem}:{spec}").strip("_")
    workdir = local_folder(given or f"runs/{label}-seed{config.seed}")
    return CommandLine(config, workdir, help_wanted, f"{path}:{spec}".removesuffix(":"))


def load_config(path: Path, spec: str = "") -> ConfigDict:
    """What the function ``get_config`` of a config file returns.

    Args:
      path: of the file.
      spec: its argument; '' for none.

    Raises:
      UserError: the file cannot be used.
    """
    module = types.ModuleType("config")
    module.__file__ = str(path)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        config = module.get_config(spec) if spec else module.get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise UserError(f"the config file {path} fails ({reason})") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"the config file {path} fails: its get_config returns no ConfigDict")
    return config


def _override(config: ConfigDict, argv: list[str]) -> tuple[ConfigDict, str]:
    """The configuration with ``--config.FIELD=VALUE`` applied, and the value of ``--workdir``."""
    values = flags.FlagValues()
    numeric = {name for name, value in flatten(config) if isinstance(value, tuple)}
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        flags.DEFINE_string("workdir", "", "folder of the run", flag_values=values)
        rest = values(argv)[1:]
        overridden = values.config
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        raise UserError(_unknown_field(config, argv) or _one_line(error)) from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: options begin with --, see --help")
    for name, value in flatten(overridden):
        if name in numeric and not all(isinstance(number, int | float) for number in value):
            raise UserError(f"config field {name!r} is {value}: give numbers, such as '(1, 2)'")
    return overridden, values.workdir


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _unknown_field(config: ConfigDict, argv: list[str]) -> str | None:
    """What is wrong with the first ``--config.FIELD`` that names no field."""
    known = dict(flatten(config))
    for argument in argv:
        match = re.match(r"--(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in known and not any(f.startswith(match[1] + ".") for f in known):
            return f"unknown config field {match[1]!r}{nearest_field(config, match[1])}"
    return None
