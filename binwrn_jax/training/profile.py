"""A trace of a few steady training steps, for TensorBoard, XProf or Perfetto."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

# Compilation and the first steps, which allocate memory and fill buffers, are left out.
FIRST, STEPS = 10, 5


class StepTrace:
    """Traces `STEPS` steps of this process, from its `FIRST` on, into a folder.

    Args:
      folder: gets ``plugins/profile/DATE/HOST.xplane.pb`` and ``HOST.trace.json.gz``.
      step: at which this process starts.
      enabled: without, nothing happens.
      say: shows a line to the user.
    """

    def __init__(self, folder: Path, step: int, enabled: bool, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._first = step + FIRST if enabled else None
        self._running = False

    def at(self, step: int, state: Any) -> None:
        """Call it before each step with the number of updates and their result.

        Waits for the result where the trace begins and ends.
        """
        if step == self._first:
            jax.block_until_ready(state)
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._first is not None and step == self._first + STEPS:
            self.close(step, state)

    def close(self, step: int, state: Any) -> None:
        """Ends the trace; after the last step of this process also says if it never began."""
        if self._running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._say(f"trace of steps {self._first} to {step - 1} in {self._folder}")
        elif self._first is not None:
            self._say(f"no trace: it begins {FIRST} steps after the start, and there were fewer")
        self._running, self._first = False, None
