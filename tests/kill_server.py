"""Starts training runs and kills them; a program of its own, which `kills.py` talks to.

It loads everything once and forks a child for each run, so that a run takes seconds. A child is killed at a
call that touches its files, or after some time. Reads one JSON object a line: ``arguments`` of ``binwrn``,
``folders`` whose calls count, ``log`` for output, and ``call`` (the number of the call to die at),
``pattern`` (the first call that matches dies) or ``seconds``. Answers with one: ``status``, ``calls``, the
number of calls that were counted, and ``last``, the last of them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from typing import Any

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.listdir", "os.scandir")


def watch(order: dict[str, Any], channel: int) -> None:
    """Counts the calls of this process that touch the folders, tells each, and dies at the chosen one."""
    lock, count = threading.Lock(), 0
    pattern = re.compile(order["pattern"]) if order.get("pattern") else None
    folders = tuple(order["folders"])

    def call(name: str, *paths: str) -> None:
        nonlocal count
        with lock:
            count += 1
            text = " ".join([name, *paths])
            os.pwrite(channel, f"{count} {text}".encode().ljust(1000)[:1000], 0)
            if count == order.get("call") or (pattern and pattern.search(text)):
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS:
            paths = [os.fsdecode(a) for a in arguments if isinstance(a, str | bytes | os.PathLike)]
            if any(path.startswith(folders) for path in paths):
                call(event, *paths)

    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(folders):
            call("os.fsync", path)
        real_fsync(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


def run(order: dict[str, Any]) -> dict[str, Any]:
    """One child from beginning to end."""
    channel = os.memfd_create("calls")
    child = os.fork()
    if not child:
        with open(order["log"], "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        status = 70
        try:
            watch(order, channel)
            status = main(order["arguments"])
            sys.stdout.flush()
        finally:
            os._exit(status)
    if order.get("seconds") is not None:
        time.sleep(order["seconds"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    number, _, last = os.pread(channel, 1000, 0).decode(errors="replace").strip(" \0").partition(" ")
    os.close(channel)
    return {"status": status, "calls": int(number or 0), "last": last}


if __name__ == "__main__":
    # What a run would load, but no backend of JAX, whose threads no fork survives.

    from binwrn_jax.cli.main import main

    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
