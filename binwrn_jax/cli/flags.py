"""The command line of train.py: ``--config=FILE:SPEC``, ``--config.FIELD=VALUE``, ``--workdir``."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from binwrn_jax.errors import UserError
from binwrn_jax.parallel.processes import Processes
from binwrn_jax.training.config import flatten, nearest_field

USAGE = """usage: python train.py [--config=configs/FILE.py[:SPEC]] [--workdir=DIR] [--config.FIELD=VALUE ...]

Trains one network and evaluates it; the same command again resumes.

  --config       a file of configs/, by default configs/digits.py; after a colon words separated by
                 commas, such as cifar10.py:20-4,1bit,cutout
  --workdir      folder for everything that the run writes (default: runs/ and the name and spec)
  --config.seed=1, --config.epochs=6, --config.data.dir=DIR, ...: any field of the configuration
  --coordinator=HOST:PORT, --process_count=N, --process_index=I: several processes as one job, where JAX
                 cannot find them itself (it does on TPU pods, SLURM and Open MPI): docs/distributed.md
  --help         this text and all fields with their values
"""


def take_processes(argv: list[str]) -> tuple[Processes, list[str]]:
    """Reads ``--coordinator``, ``--process_count`` and ``--process_index``; the rest is for `parse_flags`.

    Raises:
      UserError: a number is none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--coordinator")
    parser.add_argument("--process_count", type=int)
    parser.add_argument("--process_index", type=int)
    try:
        found, rest = parser.parse_known_args(argv[1:])
    except argparse.ArgumentError as error:
        raise UserError(_one_line(error)) from None
    return Processes(found.coordinator, found.process_count, found.process_index), [argv[0], *rest]


def parse_flags(argv: list[str], default_config: Path) -> tuple[ConfigDict, Path, bool]:
    """Reads the command line.

    Args:
      argv: with the program's name first.
      default_config: file taken where no ``--config`` is given.

    Returns:
      ``(config, workdir, help)``; ``help`` is True where the user asked for it.

    Raises:
      UserError: an unknown flag, field, file or word, or a value of the wrong type.
    """
    argv = [re.sub(r"^-(?=[a-z]{2})", "--", argument) for argument in argv]
    help_wanted = any(argument in ("--help", "-h", "-?") for argument in argv[1:])
    argv = [argument for argument in argv if argument not in ("--help", "-h", "-?")]
    if "--config" in argv[1:-1]:
        place = argv.index("--config")
        argv[place : place + 2] = [f"--config={argv[place + 1]}"]
    # One file, the last one given, and before its fields: ml_collections insists on that.
    files = [argument for argument in argv if argument.startswith("--config=")]
    argv = [argv[0], *files[-1:], *(argument for argument in argv[1:] if argument not in files)]
    values = flags.FlagValues()
    # ml_collections looks for overrides in sys.argv, whatever it is given to parse.
    sys_argv, sys.argv = sys.argv, argv
    try:
        config_flags.DEFINE_config_file("config", str(default_config), flag_values=values)
        flags.DEFINE_string("workdir", "", "folder of the run", flag_values=values)
        rest = values(argv)[1:]
        config = values.config
        # It also keeps back what went wrong in reading the file until the first use.
        seed = config.seed
    except UserError:
        raise
    except OSError as error:
        file = _given(argv, default_config).partition(":")[0]
        if not Path(file).is_file():
            raise UserError(f"no config file {file}: see configs/") from None
        raise UserError(_one_line(error)) from None
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(_unknown_field(argv, default_config) or _one_line(error)) from None
    except flags.Error as error:
        raise UserError(_one_line(error)) from None
    finally:
        sys.argv = sys_argv
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: options begin with --, see --help")
    file, _, spec = _given(argv, default_config).partition(":")
    if "://" in values.workdir:
        raise UserError(f"--workdir {values.workdir} is no folder: mount the bucket, see tpu/README.md")
    name = re.sub(r"[^\w.-]+", "_", f"{Path(file).stem}:{spec}").strip("_")
    workdir = Path(values.workdir or f"runs/{name}-seed{seed}")
    return config, workdir, help_wanted


def _given(argv: list[str], default_config: Path) -> str:
    """The value of ``--config``: the last one counts."""
    return [str(default_config), *(a.split("=", 1)[1] for a in argv if a.startswith("--config="))][-1]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _unknown_field(argv: list[str], default_config: Path) -> str | None:
    """What is wrong with the first ``--config.FIELD`` that names no field."""
    plain = [a for a in argv if not a.startswith("--config.") and not a.startswith("--noconfig.")]
    config, _, _ = parse_flags(plain, default_config)
    known = dict(flatten(config))
    for argument in argv:
        match = re.match(r"--(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in known and not any(f.startswith(match[1] + ".") for f in known):
            return f"unknown config field {match[1]!r}{nearest_field(config, match[1])}"
    return None
