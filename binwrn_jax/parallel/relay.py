"""A port of this machine in the place of process 0's coordination service.

JAX's client of that service ends its process with a page of C++ as soon as the connection breaks. This relay
hides the break from it, and `binwrn_jax.parallel.watch` ends the process with one line.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

CONNECT_SECONDS = 60.0


def open_relay(host: str, port: int) -> int:
    """Listens on a free port of this machine and forwards all data to ``host:port`` and back.

    Returns:
      The port. The relay ends with the process.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listener, host, port), daemon=True).start()
    return int(listener.getsockname()[1])


def _accept(listener: socket.socket, host: str, port: int) -> None:
    while True:
        near, _ = listener.accept()
        threading.Thread(target=_connect, args=(near, host, port), daemon=True).start()


def _connect(near: socket.socket, host: str, port: int) -> None:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            far = socket.create_connection((host, port), timeout=5.0)
            break
        except OSError:  # the service starts in a moment
            if time.monotonic() > deadline:
                near.close()
                return
            time.sleep(0.05)
    for one in (near, far):
        one.settimeout(None)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=_pass_on, args=(near, far, True), daemon=True).start()
    _pass_on(far, near, False)


def _pass_on(source: socket.socket, target: socket.socket, tell_the_end: bool) -> None:
    """Copies until the source ends; hides the end of the service from the client."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    if tell_the_end:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
