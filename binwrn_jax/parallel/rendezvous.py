"""The meeting of a job's processes: each prints which are missing and keeps a connection to process 0.

Process 0 listens where JAX's coordination service will listen afterwards. The connections stay open for the
length of the job, see `binwrn_jax.parallel.watch`: the system closes them when a process dies.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import sys
import time
from typing import Any

from binwrn_jax.errors import JobFailure, UserError
from binwrn_jax.parallel.identity import Place

SAY_SECONDS = 10.0  # between two lines about the same absence
_POLL_SECONDS = 0.5
_MOST_NAMED = 8  # absent processes in one line


class Line:
    """A connection that carries lines of JSON.

    Attributes:
      socket: non-blocking while lines are read from it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._rest = b""
        connection.settimeout(5.0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(self, message: Any) -> None:
        """Sends one message; leaves a broken connection to the reader."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Any] | None:
        """The messages that have come; None at the end of the connection."""
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not data or len(self._rest) > 1 << 20:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            return None  # of another program

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()


class _Announcer:
    """Prints the missing processes now and then, and ends the waiting at the time limit."""

    def __init__(self, place: Place, timeout: float) -> None:
        self._place, self._timeout = place, timeout
        self._start = time.monotonic()
        self._said = 0.0

    def tell(self, missing: list[int]) -> None:
        """Raises `JobFailure` at the time limit."""
        place, seconds = self._place, time.monotonic() - self._start
        named = ", ".join(map(str, missing[:_MOST_NAMED]))
        if len(missing) > _MOST_NAMED:
            named += f" and {len(missing) - _MOST_NAMED} more"
        who = f"process{'es' if len(missing) > 1 else ''} {named} of {place.count}"
        if seconds >= self._timeout:
            raise JobFailure(
                f"{who} did not come to {place.address} within {self._timeout:g} s: start all processes of "
                "the job at about the same time, and see that they reach this address"
            )
        if seconds - self._said >= SAY_SECONDS:
            self._said = seconds
            print(f"waiting for {who} at {place.address} ({seconds:.0f} s)", file=sys.stderr, flush=True)


def meet(place: Place, timeout: float) -> dict[int, Line]:
    """Waits until all processes of the job are there.

    Args:
      place: of this process.
      timeout: seconds to wait.

    Returns:
      The connections by process: to all others in process 0, to process 0 in the others.

    Raises:
      UserError: the port cannot be used, or the processes do not agree on their number.
      JobFailure: not all came in time.
    """
    announcer = _Announcer(place, timeout)
    return _gather(place, announcer) if place.index == 0 else {0: _join(place, announcer)}


def _listen(place: Place) -> socket.socket:
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As JAX's service, which follows on this port, will do.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("", place.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise UserError(
            f"process 0 cannot listen on port {place.port} ({error.strerror}): choose another port"
        ) from error
    return listener


def _gather(place: Place, announcer: _Announcer) -> dict[int, Line]:
    """Process 0: accepts the others until none is missing."""
    lines: dict[int, Line] = {}
    kept: list[Line] = []
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(_listen(place))
        selector = opened.enter_context(selectors.DefaultSelector())
        selector.register(listener, selectors.EVENT_READ)
        while len(lines) < place.count - 1:
            for key, _ in selector.select(_POLL_SECONDS):
                if key.data is None:
                    line = Line(listener.accept()[0])
                    opened.callback(_close_unless_kept, line, kept)
                    selector.register(line.socket, selectors.EVENT_READ, line)
                elif not _greeted(place, key.data, lines):
                    selector.unregister(key.data.socket)
                    key.data.close()
                    for index in [index for index, line in lines.items() if line is key.data]:
                        del lines[index]
            missing = [index for index in range(1, place.count) if index not in lines]
            for line in lines.values():
                line.send({"missing": missing})
            if missing:
                announcer.tell(missing)
        kept.extend(lines.values())
    return lines


def _close_unless_kept(line: Line, kept: list[Line]) -> None:
    if line not in kept:
        line.close()


def _greeted(place: Place, line: Line, lines: dict[int, Line]) -> bool:
    """Reads the first message of a process; False if its connection is useless."""
    messages = line.receive()
    if messages is None:
        return False
    for message in messages:
        index, count = message if isinstance(message, list) and len(message) == 2 else (0, 0)
        if count != place.count or not 0 < index < count or lines.get(index, line) is not line:
            line.send({"refused": f"it has {place.count} processes, each index once"})
            return False
        lines[index] = line
    return True


def _join(place: Place, announcer: _Announcer) -> Line:
    """Another process: connects to process 0 until process 0 reports that all are there."""
    while True:
        try:
            line = Line(socket.create_connection((place.host, place.port), timeout=5.0))
        except OSError:  # not there yet, or its name is not known yet
            announcer.tell([0])
            time.sleep(_POLL_SECONDS)
            continue
        try:
            if _admitted(place, line, announcer):
                return line
        except BaseException:
            line.close()
            raise
        line.close()
        announcer.tell([0])
        time.sleep(_POLL_SECONDS)


def _admitted(place: Place, line: Line, announcer: _Announcer) -> bool:
    """Waits until process 0 reports that all are there; False if the connection ends before."""
    line.send([place.index, place.count])
    missing = [0]
    while (messages := line.receive()) is not None:
        for message in messages:
            if not isinstance(message, dict):
                continue  # of another program
            if "refused" in message:
                raise UserError(
                    f"process 0 of the job refuses --process_index {place.index} of --process_count "
                    f"{place.count}: {message['refused']}"
                )
            missing = message.get("missing", missing)
            if not missing:
                return True
        announcer.tell(missing)
    return False
