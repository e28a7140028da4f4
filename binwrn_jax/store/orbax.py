"""Helpers for Orbax beyond its documented interface."""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax


def own_checkpointer() -> Any:
    """An Orbax checkpointer for host arrays that waits for no other process."""
    import orbax.checkpoint as ocp

    silence_closed_loops()
    me = jax.process_index()
    return ocp.StandardCheckpointer(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
        )
    )


@functools.cache
def silence_closed_loops() -> None:
    """Keeps the threads of a write that has failed from printing tracebacks beside its one message.

    When a file cannot be written (a full disk), Orbax raises that and closes its event loop. Writes that are
    still under way then find the loop closed, and TensorStore prints a traceback for each.
    """
    before = sys.unraisablehook

    def hook(failure: Any) -> None:
        error = failure.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(failure)

    sys.unraisablehook = hook
