"""Grain processes that decode images ahead of their use: elements by position, in order."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags

from binwrn_jax.errors import UserError

Batch = dict[str, np.ndarray]


def worker_count(workers: int) -> int:
    """The number of worker processes that a configuration asks for: -1 is one for each core."""
    if workers >= 0:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stream(source: Any, start: int, workers: int, prefetch: int) -> Any:
    """The elements of a random access source from ``start`` on, in order, computed ahead of their use.

    Args:
      source: has ``__len__`` and ``__getitem__``.
      start: first position.
      workers: processes; 0: threads of this process.
      prefetch: elements to have ready, at least so many.

    Returns:
      A Grain iterator, to be closed.
    """
    import grain

    elements = grain.MapDataset.source(source).slice(slice(start, None))
    if not workers:
        threads = grain.ReadOptions(num_threads=min(2, prefetch), prefetch_buffer_size=prefetch)
        return iter(elements.to_iter_dataset(threads))
    if not flags.FLAGS.is_parsed():  # Grain's own flags, which no command here offers: the defaults
        flags.FLAGS.mark_as_parsed()
    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=max(1, -(-prefetch // workers))
    )
    # Grain gives shared memory back in a thread that ends with the program, before its work is done.
    grain.multiprocessing.SharedMemoryArray.enable_async_del = lambda *arguments, **options: None
    init = functools.partial(_init_worker, os.getpid())
    return iter(elements.to_iter_dataset(alone).mp_prefetch(options, worker_init_fn=init))


def _init_worker(parent: int, index: int, count: int) -> None:
    """Sets up a worker: it leaves signals and accelerators to its parent, and ends with it."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # the parent saves first, and then stops its workers
        signal.signal(signum, signal.SIG_IGN)
    jax.config.update("jax_platforms", "cpu")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def iterate_batches(iterator: Any) -> Iterator[Batch]:
    """The elements of `stream`; an error in a worker becomes a `UserError`."""
    while True:
        try:
            yield _own(next(iterator))
        except StopIteration:
            return
        except UserError as error:  # without the worker's traceback
            raise UserError(str(error)) from None
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            code = str(error).partition("exit code ")[2].partition(".")[0]
            raise UserError(
                f"a data worker died (exit code {code}; -9 is often a lack of memory): start again to resume "
                "at the last checkpoint, with fewer --config.data.workers where memory is short"
            ) from error


def _own(batch: Batch) -> Batch:
    """The batch in memory of this process alone.

    What a worker sends lies in memory shared with it, which ends with the last array that uses it; an array
    of JAX may be one of them, for as long as the program runs.
    """
    return {name: array if type(array) is np.ndarray else np.array(array) for name, array in batch.items()}
