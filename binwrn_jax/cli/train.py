"""``binwrn train --config=FILE[:VARIANTS] --workdir=DIR``: trains one network; also behind ``train.py``."""

from __future__ import annotations

from binwrn_jax.cli.allocator import retain_freed_memory


def run_flags(arguments: list[str]) -> int:
    """Reads the flags, joins the other processes of the job if there are any, and trains."""
    retain_freed_memory()  # before JAX starts its threads

    from binwrn_jax.cli.flags import USAGE, parse_flags, take_processes
    from binwrn_jax.cli.output import print_line
    from binwrn_jax.training.config import to_json

    processes, rest = take_processes(["binwrn train", *arguments])
    line = parse_flags(rest, "digits")
    if line.help_wanted:
        print(USAGE + f"\nThe configuration of {line.source} as resolved:\n" + to_json(line.config), end="")
        return 0
    from binwrn_jax.parallel.processes import is_primary, job
    from binwrn_jax.parallel.signals import Stopped
    from binwrn_jax.training.loop import train

    try:
        with job(processes):
            if is_primary():
                print_line(f"config {line.source}")
            train(line.config, line.workdir)
    except Stopped as stopped:
        return stopped.exit_code
    return 0
