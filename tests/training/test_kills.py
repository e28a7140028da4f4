"""A run that is killed, wherever that is, ends by the same command with the same bits and no leftovers."""

import os
import random
import sys
import time
from collections import Counter

import pytest
from kills import Server, facts

# One for each kind of write, in the order of a run.
MOMENTS = [
    r"os.rename .*/checkpoints/9\.orbax",
    r"open .*/\.binwrn-manifest\.json\.\w+\.tmp",
    r"os.rename .*/model .*/\.model\.\w+\.old",  # the second model: the first one is aside, ...
    r"os.rename .*/\.model\.\w+\.old .*/\.model\.\w+\.tmp",  # ... and here the second one is in place
    r"os.fsync .*/\.model\.safetensors\.\w+\.tmp",
    r"os.rename .*/\.summary\.json\.\w+\.tmp",
]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and looks into /proc")


@pytest.mark.slow
def test_one_kill_at_each_kind_of_write(tmp_path):
    with Server(tmp_path) as server:
        (tmp_path / "whole").mkdir()
        server.finish(tmp_path / "whole")
        for pattern in MOMENTS:
            answer = server.run(tmp_path / "run", pattern=pattern)
            assert answer["status"] == 9, f"{pattern}: {answer}\n{server.log.read_text()}"
        server.finish(tmp_path / "run")
        assert facts(tmp_path / "run") == facts(tmp_path / "whole")


KILLS = int(os.environ.get("BINWRN_KILLS", "200"))


@pytest.mark.slow
def test_two_hundred_kills_at_random_moments(tmp_path):
    """Half of them at a call that touches the run's files, half of them after a time."""
    rng = random.Random(KILLS)
    phases: Counter[str] = Counter()
    with Server(tmp_path) as server:
        (tmp_path / "whole").mkdir()
        calls = server.finish(tmp_path / "whole")["calls"]
        wanted = facts(tmp_path / "whole")
        begin = time.monotonic()  # this time nothing has to be compiled
        server.finish(tmp_path / "again")
        seconds = time.monotonic() - begin
        assert facts(tmp_path / "again") == wanted
        kills = runs = 0
        while kills < KILLS:
            workdir, status = tmp_path / f"run{runs}", 9
            while status and kills < KILLS:
                # Most runs are killed several times.
                if kills % 2:
                    answer = server.run(workdir, call=rng.randint(1, calls // 2))
                else:
                    answer = server.run(workdir, seconds=rng.uniform(0, 0.8 * seconds))
                status = answer["status"]
                assert status in (0, 9), server.log.read_text()
                if status:
                    kills += 1
                    phases[phase(answer["last"])] += 1
            if status:
                server.finish(workdir)
            assert facts(workdir) == wanted, f"run {runs}, after {kills} kills"
            runs += 1
            print(f"{kills} kills, {runs} runs", flush=True)
    print(f"{kills} kills in {runs} runs; the last call before them: {dict(phases.most_common())}")


def phase(last: str) -> str:
    """What a run was writing or reading at a call."""
    words = ("checkpoints", "model.safetensors", "model", "summary", "curves", "metrics", "config")
    return next((word for word in words if f"/{word}" in last or f"/.{word}" in last), "start")
