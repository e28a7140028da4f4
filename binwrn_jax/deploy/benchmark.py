"""How fast each runtime runs a model on this machine, each in a process of its own, all in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.errors import UserError

ROUNDS = 5  # in which the runtimes take turns, so that a slow moment of the machine meets all of them
QUANTILES = (50, 90, 99)
_START_S = 300.0  # for a process to open its model


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A file and what runs it.

    Attributes:
      runtime: its name in the table.
      opener: ``runtime`` of `binwrn_jax.deploy.formats.open_model`.
      activations: ``'float32'`` or ``'int8'``.
      path: of the file.
    """

    runtime: str
    opener: str
    activations: str
    path: Path


@dataclasses.dataclass(frozen=True)
class Timing:
    """What was measured of a contestant.

    Attributes:
      runtime: see `Contestant`.
      activations: see `Contestant`.
      threads: processors that it could use.
      file_bytes: size of its file.
      load_s: seconds to open it.
      memory_bytes: by which the process has grown, at the most, from before it opened the file.
      latency_s: seconds for one image by percentile.
      images_per_s: in batches.
      batch: size of these.
      images: that were run one by one.
    """

    runtime: str
    activations: str
    threads: int
    file_bytes: int
    load_s: float
    memory_bytes: int
    latency_s: dict[int, float]
    images_per_s: float
    batch: int
    images: int


def _resident_bytes() -> int:
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _serve(connection: Connection, contestant: Contestant, threads: int) -> None:
    """A process: opens the file, then answers how long each of its runs took."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    from binwrn_jax.deploy.formats import open_model

    try:
        open_model(contestant.path, runtime=contestant.opener)  # compiles what is compiled once for a machine
        gc.collect()
        before, begin = _resident_bytes(), time.perf_counter()
        model = open_model(contestant.path, runtime=contestant.opener)
    except UserError as error:
        connection.send(str(error))
        return
    connection.send((time.perf_counter() - begin, before))
    with contextlib.suppress(EOFError):  # the parent has what it asked for
        while True:
            images, seconds = connection.recv()
            taken: list[float] = []
            while sum(taken) < seconds or not taken:
                begin = time.perf_counter()
                model(images)
                taken.append(time.perf_counter() - begin)
            connection.send((taken, _resident_bytes()))


@contextlib.contextmanager
def _processes(contestants: Sequence[Contestant], threads: int) -> Iterator[list[Connection]]:
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in contestants]
    workers = [
        context.Process(target=_serve, args=(there, contestant, threads), daemon=True)
        for (_, there), contestant in zip(pairs, contestants, strict=True)
    ]
    try:
        for worker, (_, there) in zip(workers, pairs, strict=True):
            worker.start()
            there.close()
        yield [here for here, _ in pairs]
    finally:
        for worker, (here, _) in zip(workers, pairs, strict=True):
            here.close()
            worker.terminate()
            worker.join()


def _answer(connection: Connection, contestant: Contestant, limit: float) -> Any:
    try:
        if not connection.poll(limit):
            raise UserError(f"{contestant.runtime} gave no answer in {limit:.0f} s")
        answer = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        raise UserError(f"the process of {contestant.runtime} has died: too little memory?") from error
    if isinstance(answer, str):
        raise UserError(f"{contestant.runtime}: {answer}")
    return answer


def measure(
    contestants: Sequence[Contestant],
    images: np.ndarray,
    *,
    threads: int = 1,
    batch: int = 32,
    seconds: float = 2.0,
) -> list[Timing]:
    """Times all contestants in turn, in `ROUNDS` rounds.

    Args:
      contestants: at least one.
      images: uint8 ``[N, H, W, C]``; they are run one by one, and in batches.
      threads: processors that each process may use.
      batch: images of a batch.
      seconds: of each contestant, for single images and for batches each.

    Raises:
      UserError: a file cannot be opened, or a process died.
    """
    single, together = images[:1], np.resize(images, (batch, *images.shape[1:]))
    with _processes(contestants, threads) as connections:
        opened = [_answer(c, who, _START_S) for c, who in zip(connections, contestants, strict=True)]
        taken: list[dict[int, list[float]]] = [{1: [], batch: []} for _ in contestants]
        peaks = [0] * len(contestants)
        for turn in range(-1, ROUNDS):  # the first one compiles and warms up
            for index, (connection, who) in enumerate(zip(connections, contestants, strict=True)):
                for some in (single, together):
                    connection.send((some, seconds / ROUNDS if turn >= 0 else 0.0))
                    times, size = _answer(connection, who, _START_S + seconds)
                    peaks[index] = max(peaks[index], size)
                    if turn >= 0:
                        taken[index][len(some)] += times
    return [
        Timing(
            runtime=who.runtime,
            activations=who.activations,
            threads=threads,
            file_bytes=who.path.stat().st_size,
            load_s=load,
            memory_bytes=peak - before,
            latency_s={q: float(np.percentile(times[1], q)) for q in QUANTILES},
            images_per_s=batch / float(np.median(times[batch])),
            batch=batch,
            images=len(times[1]),
        )
        for who, (load, before), peak, times in zip(contestants, opened, peaks, taken, strict=True)
    ]
