"""The processes of a job say whom they wait for, and end together whichever of them dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from binwrn_jax.cli.main import main
from binwrn_jax.errors import JobFailure, UserError
from binwrn_jax.parallel import rendezvous
from binwrn_jax.parallel.identity import Place, Processes, find_place
from binwrn_jax.parallel.rendezvous import meet

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_threads(*places: Place, timeout: float = 30) -> list:
    """What `meet` gives or raises in each of several processes, here threads."""
    results: list = [None] * len(places)

    def run(i: int) -> None:
        try:
            results[i] = meet(places[i], timeout)
        except (UserError, JobFailure) as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(places))]
    for thread in reversed(threads):  # process 0 comes last
        thread.start()
    for thread in threads:
        thread.join()
    return results


def close(*found: dict) -> None:
    for lines in found:
        for line in lines.values():
            line.close()


def test_all_meet():
    port = free_port()
    hub, *others = in_threads(*(Place("127.0.0.1", port, 3, i) for i in range(3)))
    assert set(hub) == {1, 2} and all(set(lines) == {0} for lines in others)
    hub[2].send({"hello": 2})
    assert others[1][0].receive()[-1] == {"hello": 2}
    hub[1].close()
    while others[0][0].receive() is not None:  # the end comes through
        pass
    close(hub, *others)


def test_processes_that_do_not_agree_are_refused():
    port = free_port()
    places = (Place("127.0.0.1", port, 2, 0), Place("127.0.0.1", port, 3, 2))
    hub, other = in_threads(*places, timeout=2)
    assert isinstance(other, UserError) and "process_count 3: it has 2 processes" in str(other)
    assert isinstance(hub, JobFailure) and "process 1 of 2 did not come" in str(hub)


def test_strangers_at_the_port_are_ignored():
    port = free_port()
    found: list = []
    thread = threading.Thread(target=lambda: found.extend(in_threads(Place("127.0.0.1", port, 2, 0))))
    thread.start()
    for text in (b"GET / HTTP/1.1\r\n\r\n", b"[1, 2, 3]\n", b'"x"\n', b""):
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        stranger.sendall(text)
        stranger.close()
    (lines,) = in_threads(Place("127.0.0.1", port, 2, 1))
    thread.join()
    assert set(lines) == {0} and set(found[0]) == {1}
    close(lines, found[0])


@pytest.mark.parametrize("index", [0, 1])
def test_a_missing_process_is_named_and_the_waiting_ends(capsys, monkeypatch, index):
    monkeypatch.setattr(rendezvous, "SAY_SECONDS", 0.5)
    port = free_port()
    flags = [f"--coordinator=127.0.0.1:{port}", "--process_count=2", f"--process_index={index}"]
    assert main(["train", *flags, "--process_timeout=1.5"]) == 1
    captured = capsys.readouterr()
    *waiting, last = captured.err.splitlines()
    other = f"process {1 - index} of 2"
    assert waiting and all(
        line.startswith(f"waiting for {other} at 127.0.0.1:{port} (") for line in waiting
    ), waiting
    assert last.startswith(f"error: {other} did not come to 127.0.0.1:{port} within 1.5 s")
    assert captured.out == ""


def test_a_task_of_slurm_that_is_alone_waits_with_words(capsys, monkeypatch):
    port = free_port()
    for name, value in {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "JAX_COORDINATOR_PORT": str(port),
    }.items():
        monkeypatch.setenv(name, value)
    assert find_place(Processes()) == Place("localhost", port, 4, 0, [0])
    assert main(["train", "--process_timeout=1"]) == 1
    assert f"processes 1, 2, 3 of 4 did not come to localhost:{port}" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_NTASKS", "many")
    assert main(["train"]) == 2
    assert "environment variables make no sense" in capsys.readouterr().err


def test_a_port_in_use_is_refused(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = [f"--coordinator=127.0.0.1:{port}", "--process_count=2", "--process_index=0"]
        assert main(["train", *flags]) == 2
    assert f"process 0 cannot listen on port {port}" in capsys.readouterr().err


WAITS = """
import sys, time
from binwrn_jax.errors import UserError
from binwrn_jax.cli.handler import guarded
from binwrn_jax.parallel.processes import Processes, broadcast_from_primary, job

def program():
    with job(Processes(f"127.0.0.1:{sys.argv[1]}", int(sys.argv[2]), int(sys.argv[3]))):
        assert broadcast_from_primary(lambda: [7]) == [7]
        print("in", flush=True)
        command = sys.stdin.readline()
        if command == "fail\\n":
            raise UserError("a mistake")
        if command == "crash\\n":
            raise KeyError("a fault")
    return 0

sys.exit(guarded(program))
"""


JOINED = """
import contextlib
from binwrn_jax.parallel.processes import initialize

@contextlib.contextmanager
def joined(processes):
    initialize(processes)
    yield
"""


@pytest.fixture
def job():
    """Starts three processes of a job that wait, each for a word on its standard input."""
    processes = []

    def start(script: str = WAITS) -> list[subprocess.Popen[str]]:
        port = str(free_port())
        for index in range(3):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", script, port, "3", str(index)],
                    cwd=ROOT,
                    env={**os.environ, "JAX_PLATFORMS": "cpu"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        for process in processes:
            while (line := process.stdout.readline()) != "in\n":
                assert line, process.wait()
        return processes

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ends(process: subprocess.Popen[str], timeout: float = 30) -> tuple[int, str]:
    """Exit code and the rest of the output."""
    text, _ = process.communicate(timeout=timeout)
    return process.returncode, text


@pytest.mark.parametrize("victim", [0, 1])
def test_whoever_is_killed_the_others_end_with_the_line(job, victim):
    processes = job()
    processes[victim].send_signal(signal.SIGKILL)
    line = (
        f"error: process {victim} of 3 has died, or its machine: the job ends; "
        "run the same command to go on from the last checkpoint\n"
    )
    for index in {0, 1, 2} - {victim}:
        assert ends(processes[index]) == (1, line)


@pytest.mark.parametrize("culprit", [0, 2])
def test_a_mistake_of_one_ends_all_with_its_message(job, culprit):
    processes = job()
    processes[culprit].stdin.write("fail\n")
    processes[culprit].stdin.flush()
    assert ends(processes[culprit]) == (2, "error: a mistake\n")
    for index in {0, 1, 2} - {culprit}:
        assert ends(processes[index]) == (2, f"error: process {culprit} of 3: a mistake\n")


def test_all_leave_together(job):
    processes = job()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [ends(process, 60) for process in processes] == [(0, "")] * 3


def test_processes_that_only_joined_leave_in_peace(job):
    """Without `job`, as a script does: nobody takes the end of another for its death."""
    joined = WAITS.replace("with job(", "with joined(").replace("\ndef program", JOINED + "\ndef program")
    processes = job(joined)
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [ends(process, 60) for process in processes] == [(0, "")] * 3


@pytest.mark.slow
def test_a_process_may_come_to_the_first_sum_over_devices_much_later(job):
    """As when it compiles for long: gloo alone gives up after 30 seconds."""
    summing = WAITS.replace(
        "        command = sys.stdin.readline()",
        """        import jax
        from binwrn_jax.parallel import sharding
        mesh, command = sharding.make_mesh(), sys.stdin.readline()
        ones = sharding.put(jax.numpy.ones(mesh.size), sharding.split(mesh))
        assert jax.jit(jax.numpy.sum, out_shardings=sharding.replicated(mesh))(ones) == mesh.size""",
    )
    processes = job(summing)
    for seconds, process in zip((0, 35, 0), processes, strict=True):
        time.sleep(seconds)
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [ends(process, 60) for process in processes] == [(0, "")] * 3


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_a_frozen_process_is_taken_for_a_lost_machine(job, victim):
    processes = job()
    processes[victim].send_signal(signal.SIGSTOP)
    for index in {0, 1, 2} - {victim}:
        code, text = ends(processes[index], 45)
        assert code == 1 and f"process {victim} of 3 has died, or its machine" in text
