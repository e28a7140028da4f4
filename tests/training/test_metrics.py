"""The log, the progress line and the clock."""

import io

import jax

from binwrn_jax.training.profile import FIRST, StepTrace
from binwrn_jax.training.progress import Clock, Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_log_is_plain_and_sparse():
    stream = io.StringIO()
    progress = Progress(stream, every_seconds=3600)
    for step in range(5):
        progress.update_status(f"step {step}")
    progress.print_line("end of cycle")
    assert stream.getvalue() == "step 0\nend of cycle\n"


def test_progress_in_a_terminal_is_one_line_rewritten(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(stream)
    progress.update_status("step 1")
    assert stream.getvalue() == "\r\x1b[2Kstep 1"
    progress.print_line("end of cycle")  # takes the place of the passing line
    progress.print_line("done")
    assert stream.getvalue() == "\r\x1b[2Kstep 1\r\x1b[2Kend of cycle\ndone\n"


def test_progress_in_a_dumb_terminal_is_plain(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    Progress(stream).update_status("step 1")
    assert stream.getvalue() == "step 1\n"


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


def test_clock_says_what_the_rate_means(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock(batch_size=50, mfu_of_image=0.001)
    with clock.waiting_for_data():
        now[0] += 5  # before the window: not of it
    clock.measure(0)
    assert clock.values() == {"images_per_s": None, "data_wait": None, "mfu": None}
    for _ in range(2):
        with clock.waiting_for_data():
            now[0] += 0.25
        now[0] += 0.75
    clock.measure(4)
    assert clock.values() == {"images_per_s": 100, "data_wait": 0.25, "mfu": 0.1}
    assert clock.rate() == "100 images/s, data wait 25.0 %, MFU 10.0 %"
    unknown = Clock(batch_size=50)
    unknown.measure(0)
    now[0] += 1
    unknown.measure(1)
    assert unknown.values() == {"images_per_s": 50, "data_wait": 0}
    assert unknown.rate() == "50 images/s, data wait 0.0 %"


def test_trace_that_never_began_and_one_cut_short(tmp_path):
    said = []
    trace = StepTrace(tmp_path / "a", 3, True, said.append)
    for step in range(3, 3 + FIRST):
        trace.at(step, None)
    trace.close(3 + FIRST - 1, None)
    assert said.pop().startswith("no trace") and not (tmp_path / "a").exists()
    trace = StepTrace(tmp_path / "b", 3, True, said.append)
    for step in range(3, 3 + FIRST + 2):
        trace.at(step, jax.numpy.ones(3) * step)
    trace.close(3 + FIRST + 1, None)
    trace.close(3 + FIRST + 1, None)
    assert said == [f"trace of steps {3 + FIRST} to {3 + FIRST} in {tmp_path / 'b'}"]
    assert list((tmp_path / "b").glob("plugins/profile/*/*.xplane.pb"))
    StepTrace(tmp_path / "c", 0, False, said.append).close(0, None)
    assert len(said) == 1


def test_duration():
    assert [duration(s) for s in (0, 59.6, 3600)] == ["0:00:00", "0:01:00", "1:00:00"]
