"""The log, the progress line and the clock."""

import io
import json

from binwrn_jax.metrics import Clock, MetricsLog, Progress, duration, read_records


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_log_is_plain_and_sparse():
    stream = io.StringIO()
    progress = Progress(stream, every_seconds=3600)
    for step in range(5):
        progress.show(f"step {step}")
    progress.say("end of cycle")
    assert stream.getvalue() == "step 0\nend of cycle\n"


def test_progress_in_a_terminal_is_one_line_rewritten(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(stream)
    progress.show("step 1")
    assert stream.getvalue() == "\r\x1b[2Kstep 1"
    progress.say("end of cycle")  # takes the place of the passing line
    progress.say("done")
    assert stream.getvalue() == "\r\x1b[2Kstep 1\r\x1b[2Kend of cycle\ndone\n"


def test_progress_in_a_dumb_terminal_is_plain(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    Progress(stream).show("step 1")
    assert stream.getvalue() == "step 1\n"


def test_resumed_log_has_each_step_once(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    for step in (10, 20, 30):
        log.write("train", step, loss=1.0 / step)
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 4')  # killed in the middle of a line
    log = MetricsLog(tmp_path, resume_step=20)
    log.write("train", 30, loss=0.5)
    log.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in records] == [(10, 0.1), (20, 0.05), (30, 0.5)]
    assert read_records(tmp_path / "metrics.jsonl") == records == log.records


def test_clock_leaves_out_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock(batch_size=50, seconds_before=10.0)
    assert (clock.rate(), clock.left(10)) == ("? images/s", "?")
    clock.measure(0)
    now[0] += 2
    clock.measure(4)
    assert clock.images_per_s == 100 and clock.left(20) == "0:00:10"
    clock.pause()
    now[0] += 1000
    clock.measure(4)
    now[0] += 1
    clock.measure(8)
    assert clock.images_per_s == 200
    assert clock.seconds == 10 + 2 + 1000 + 1


def test_duration():
    assert [duration(s) for s in (0, 59.6, 3600)] == ["0:00:00", "0:01:00", "1:00:00"]
