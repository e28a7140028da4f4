"""The run as a user meets it: real processes, real digits, signals, resuming, bad input."""

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import ROOT, RUN, assert_same_network, finish, numbers, start, wait_for_step

from binwrn_jax import UserError, base_config, train
from binwrn_jax.cli import main as cli
from binwrn_jax.cli.handler import guarded
from binwrn_jax.store.model import Model
from binwrn_jax.training.records import read_records


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    output = finish(workdir)
    assert "end of cycle" in output and "done: test error" in output
    return workdir


def test_workdir_holds_what_the_readme_says(whole):
    names = {path.name for path in whole.iterdir()}
    assert {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "checkpoints",
        "model",
        "model.safetensors",
    } <= names
    summary = json.loads((whole / "summary.json").read_text())
    assert list(summary["test_error_at_cycle_ends"]) == ["2", "6"]
    assert summary["epochs"] == 6 and summary["steps"] == 6 * 28 and summary["seconds"] > 0
    assert summary["test_error"] < 30  # chance is 90
    assert summary["packed_test_error"] == summary["test_error"]
    assert summary["packed_bytes"] == (whole / "model.safetensors").stat().st_size
    assert (whole / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    steps = {int(path.name) for path in (whole / "checkpoints").iterdir() if path.name.isdigit()}
    assert {56, 168} <= steps  # a checkpoint for each cycle's end, and the last two
    assert len(steps) <= 4
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__


def test_train_error_of_an_epoch_is_that_of_its_steps(whole):
    records = numbers(whole)
    for epoch in (1, 6):
        steps = [r for r in records if r["kind"] == "train" and epoch - 1 < r["epoch"] <= epoch]
        ends = [0 if epoch == 1 else (epoch - 1) * 28, *(r["step"] for r in steps)]
        weighted = np.average([r["error"] for r in steps], weights=np.diff(ends))
        (record,) = [r for r in records if r["kind"] == "epoch" and r["epoch"] == epoch]
        assert record["train_error"] == pytest.approx(weighted)


def test_kill_9_then_the_same_command_ends_with_the_same_bits(whole, tmp_path):
    process = start(tmp_path)
    wait_for_step(process, tmp_path, 75)
    process.kill()
    process.communicate()
    logged = read_records(tmp_path / "metrics.jsonl")[-1]["step"]
    output = finish(tmp_path)
    resumed = int(re.search(r"resumed at step (\d+)", output)[1])
    assert 0 < resumed <= logged + 5
    assert logged - resumed <= 30  # every_steps, and what was being written
    assert_same_network(tmp_path, whole)
    assert numbers(tmp_path) == numbers(whole)


def test_signals_save_first(whole, tmp_path):
    stopped = None
    for signum, code, step in ((signal.SIGTERM, 0, 30), (signal.SIGINT, 130, 100)):
        process = start(tmp_path)
        wait_for_step(process, tmp_path, step)
        process.send_signal(signum)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == code, output
        assert stopped is None or f"resumed at step {stopped}" in output
        stopped = int(re.search(r"at step (\d+), saved", output)[1])
        assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
    assert f"resumed at step {stopped}" in finish(tmp_path)
    assert_same_network(tmp_path, whole)


def test_a_run_goes_on_to_more_epochs(whole, tmp_path):
    """Two epochs are the first cycle of six: the same bits, packed file included, as six at once."""
    finish(tmp_path, "--config.epochs=2")
    assert "resumed at step 56" in finish(tmp_path)
    assert_same_network(tmp_path, whole)
    ours, theirs = ((w / "model.safetensors").read_bytes() for w in (tmp_path, whole))
    assert ours == theirs
    assert [r["step"] for r in numbers(tmp_path)] == [r["step"] for r in numbers(whole)]


def test_a_run_that_is_no_beginning_says_why(capsys, whole, tmp_path):
    workdir = copy_of(whole, tmp_path)
    before = snapshot(workdir)
    for epochs, message in (
        (4, "epochs: 6 -> 4: it has more"),
        # With a first cycle of 4 epochs the second one was cut at 6.
        (8, "schedule.first_cycle: 2 -> 4"),
    ):
        more = ["--config.schedule.first_cycle=4"] if epochs == 8 else []
        code, error = run(capsys, *RUN, f"--config.epochs={epochs}", *more, f"--workdir={workdir}")
        assert code == 2 and error.count("\n") == 1 and message in error, error
    assert snapshot(workdir) == before


def test_finished_run_is_left_alone(capsys, whole, tmp_path, monkeypatch):
    """Here without the package for plots, so that the curves are neither drawn nor named."""
    workdir = copy_of(whole, tmp_path)
    (workdir / "curves.png").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.chdir(ROOT)
    assert cli.main(["train", *RUN, "--config.devices=1", f"--workdir={workdir}"]) == 0
    assert capsys.readouterr().out.endswith(f"see {workdir / 'summary.json'}\n")
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_run_makes_its_model_and_packed_file_again(whole, tmp_path):
    workdir = copy_of(whole, tmp_path)
    packed = (workdir / "model.safetensors").read_bytes()
    (workdir / "model.safetensors").unlink()
    subprocess.run(["rm", "-r", str(workdir / "model")], check=True)
    # What kills left, some of them of an earlier version, goes.
    for name in (".model.new", ".model.old", ".model.0123456789abcdef.tmp"):
        (workdir / name).mkdir()
        (workdir / name / "x").touch()
    for name in (".model.safetensors.12.unverified", ".summary.json.12.tmp", ".curves.png.tmp.png"):
        (workdir / name).touch()
    (workdir / ".notes.swp").touch()  # not ours
    assert "model is not that of step 168: it is made again" in finish(workdir)
    assert_same_network(workdir, whole)
    assert (workdir / "model.safetensors").read_bytes() == packed
    assert numbers(workdir) == numbers(whole)
    assert set(os.listdir(workdir)) == {*os.listdir(whole), ".notes.swp"}


def run(capsys, *arguments: str) -> tuple[int, str]:
    """The program in this process: exit code and stderr."""
    os.chdir(ROOT)
    config = [a for a in arguments if a.startswith("--config=")] or ["--config=configs/digits.py"]
    code = cli.main(["train", *config, "--config.devices=1", *(a for a in arguments if a not in config)])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.sed=1"], r"unknown config field 'sed' \(did you mean 'seed'"),
        (["--config.width=2"], r"did you mean 'model.width'"),
        (["--config.seed=x"], "invalid literal"),
        (["--config.seed=-1"], "seed is -1: it must be at least 0"),
        (["--config.seed=4294967296"], "seed is 4294967296: it must be at most 4294967295"),
        (["--config.model=3"], "not a dict"),
        (["--config.model.width=nan"], "model.width is nan: give a finite number"),
        (["--config.model.temperature=nan"], "model.temperature is nan: give a finite number"),
        (["--config.model.width=1e9"], "width 1e.09 makes layers of 3.7e.22 weights: use at most 241"),
        (["--config.model.width=1e20"], "width 1e.20 makes layers"),
        (["--config.model.width=1e308"], "no number of channels"),
        (["--config.model.depth=6002"], "depth 6002 is more than this program builds: use at most 1202"),
        (["--config.model={}"], "config field model.depth is missing|not a dict|model"),
        (["--config.schedule.warmup_epochs=inf"], "schedule.warmup_epochs is inf: give a finite number"),
        (["--config.schedule.rates=(nan,0.1)"], "schedule.rates"),
        (["--config.schedule.drops=(nan,)"], "schedule.drops"),
        (
            ["--config.schedule.name=step", "--config.schedule.drops=(2,)"],
            "1 schedule.drops need 2 rates, not 3",
        ),
        (
            ["--config.eval.batch_size=1000000000000"],
            "eval.batch_size is 1000000000000: it must be at most 65536",
        ),
        (["--config.epochs=1000000000000"], "epochs is 1000000000000: it must be at most 1000000"),
        (["--config.recipe.label_smoothing=2"], "recipe.label_smoothing is 2.0: it must be at most 0.99"),
        (["--config.freeze=conv99"], "freeze: 'conv99' matches no parameter"),
        (["--config.log.to=comet"], "unknown logger 'comet' in log.to"),
        (["--config.checkpoint.best=true"], "checkpoint.best needs a split to choose by"),
        (["--config.recipe.teacher=nowhere"], "no model at nowhere"),
        (["--config.schedule.peak=nan"], "schedule.peak is nan: give a finite number"),
        (["--config.schedule.peak=0.00001"], "schedule.peak is 1e-05 and schedule.floor 0.0001"),
        (["--config.schedule.floor=-1"], "floor, which is neither negative"),
        (["--config.schedule.drops=(20,10)"], r"schedule.drops are \(20, 10\): they must be ascending"),
        (["--config.schedule.rates=(0.1,-1,0.1)"], "schedule.rates are"),
        (["--config.optimizer.momentum=1"], "momentum is 1.0: it must be from 0 to below 1"),
        (["--config.optimizer.weight_decay=-1"], "weight_decay is -1.0: it must not be negative"),
        (["--wrokdir=x"], "workdir"),
        (["runs"], "unexpected argument 'runs'"),
        (["--config=configs/nothing.py"], "no config file configs/nothing.py"),
        (["--config=configs/digits.py:20-4,1bti"], r"unknown spec word '1bti' \(did you mean '1bit'"),
        (["--config=configs/digits.py:21-4"], "depth 21 is not 6n . 2: use 20 or 26"),
        (["--config.model.width=0"], "width 0.0 leaves no channel"),
        (["--config.model.weights=2bit"], "unknown weights '2bit': choose one of 1bit"),
        (["--config.model.padding=valid"], "unknown padding"),
        (["--config.model.dtype=float8"], "unknown model.dtype"),
        (["--config.augmentation=mixup"], "unknown augmentation 'mixup'"),
        (["--config.data.name=cifar"], "unknown data set 'cifar'.*cifar10"),
        (["--config.batch_size=2000"], "1437 training images are fewer than one batch of 2000"),
        (["--config.batch_size=30", "--config.model.ghost_size=7"], "does not divide into ghost groups of 7"),
        (["--config.devices=99"], "99 devices wanted, but JAX sees"),
        (["--config.init_from=nowhere"], "no model at nowhere"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(capsys, tmp_path, arguments, message):
    workdir = tmp_path / "run"
    code, error = run(capsys, "--config=configs/digits.py", f"--workdir={workdir}", *arguments)
    assert code == 2
    assert re.search(message, error), error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not workdir.exists()


@pytest.mark.parametrize("workdir", ["gs://bucket/run", "s3://bucket/run", Path("gs://bucket/run")])
def test_a_bucket_is_no_workdir(tmp_path, monkeypatch, workdir):
    """Not as a folder of that name either, which a path would be made of."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^--workdir gs|^--workdir s3") as refused:
        train(base_config(), workdir)
    assert "is no folder: mount the bucket" in str(refused.value) and not list(tmp_path.iterdir())


def test_a_workdir_that_cannot_be_used(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        code, error = run(capsys, f"--workdir={workdir}")
        assert code == 2
        assert error.startswith(f"error: cannot use {workdir} (") and error.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_divergence_stops_the_run(capsys, tmp_path):
    code, error = run(
        capsys,
        "--config=configs/digits.py:8-0.25,32bit,nobn",
        f"--workdir={tmp_path}",
        "--config.schedule.peak=1e30",
        "--config.log.every_steps=5",
    )
    assert code == 2
    assert re.search(r"^error: the training diverged: the loss is \w+ at step \d+;", error), error
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))


def test_missing_data_without_network_says_what_to_set(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens on the discard port
    code, error = run(capsys, "--config=configs/cifar100.py", f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert "TFDS_DATA_DIR" in error and "--config.data.dir" in error
    assert error.rstrip().splitlines()[-1].startswith("error: cifar100 is not prepared")


def test_other_settings(capsys, tmp_path):
    """32-bit weights, running moments, ghost groups, an evaluation each epoch, TensorBoard, a trace."""
    code, error = run(
        capsys,
        "--config=configs/digits.py:8-0.25,32bit,step",
        f"--workdir={tmp_path}",
        "--config.epochs=3",
        "--config.schedule.drops=(2,)",
        "--config.schedule.rates=(0.1,0.01)",
        "--config.moments=running",
        "--config.model.ghost_size=25",
        "--config.eval.every_epoch=true",
        "--config.log.to=tensorboard",
        "--config.profile=true",
    )
    assert code == 0, error
    assert list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))
    tests = [record for record in numbers(tmp_path) if record["kind"] == "eval"]
    assert [(r["epoch"], r["cycle_end"]) for r in tests] == [(1, False), (2, True), (3, True)]
    rates = {r["epoch"]: r["learning_rate"] for r in numbers(tmp_path) if r["kind"] == "train"}
    assert rates[2.0] == pytest.approx(0.1) and rates[3.0] == pytest.approx(0.01)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert not (tmp_path / "model.safetensors").exists()  # 32-bit weights are not packed


def test_double_precision_trains_packs_and_predicts(tmp_path):
    """JAX_ENABLE_X64=1, in a process of its own."""
    code = (
        "import sys; from binwrn_jax.cli.main import main; w = sys.argv[1];"
        "assert main(['train', '--config=digits:8-0.25', '--config.epochs=1', '--workdir=' + w]) == 0;"
        "assert main(['predict', w + '/model.safetensors', 'docs/seven.png']) == 0;"
        "assert main(['export', w, '--format', 'stablehlo', '--output', w + '/model.bin']) == 0"
    )
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, env=environment)


def copy_of(whole: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", str(whole), str(tmp_path / "copy")], check=True)
    return tmp_path / "copy"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_workdir_of_another_config_names_the_fields(capsys, whole, tmp_path):
    workdir = copy_of(whole, tmp_path)
    before = snapshot(workdir)
    code, error = run(capsys, *RUN, f"--workdir={workdir}", "--config.seed=4", "--config.model.width=0.25")
    assert code == 2
    assert "another config (model.width: 0.5 -> 0.25; seed: 3 -> 4)" in error
    assert snapshot(workdir) == before


@pytest.mark.parametrize(
    "content",
    [
        None,
        b'{"kind": "train"}\n',
        *(pytest.param(bad, marks=pytest.mark.slow) for bad in (b"", b"\xff\xfe\n", b"[1]\n")),
    ],
)
def test_a_lost_log_does_not_stop_the_run(capsys, whole, tmp_path, content):
    workdir = copy_of(whole, tmp_path)
    (workdir / "metrics.jsonl").unlink()
    if content is not None:
        (workdir / "metrics.jsonl").write_bytes(content)
    code, error = run(capsys, *RUN, f"--workdir={workdir}")
    assert code == 0, error
    summary, before = (json.loads((w / "summary.json").read_text()) for w in (workdir, whole))
    assert summary["test_error"] == before["test_error"]


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_damaged_config_json(capsys, whole, tmp_path, content):
    workdir = copy_of(whole, tmp_path)
    (workdir / "config.json").write_text(content)
    code, error = run(capsys, *RUN, f"--workdir={workdir}")
    assert code == 2 and error.count("\n") == 1
    assert "config.json is damaged: restore it" in error


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(whole, tmp_path):
    workdir = copy_of(whole, tmp_path)
    largest = max((workdir / "checkpoints" / "168").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    # In a process of its own as the run was: eight devices convolve in another way.
    output = finish(workdir)
    assert re.search(rf"checkpoint .*/168 is damaged \(default/.*{largest.name} is not what was", output), (
        output
    )
    assert "it is now .168.damaged there" in output and "resumed at step 160" in output
    assert (
        workdir / "checkpoints" / ".168.damaged" / largest.relative_to(workdir / "checkpoints" / "168")
    ).exists()
    assert_same_network(workdir, whole)
    assert numbers(workdir) == numbers(whole)


def test_checkpoints_that_are_all_damaged_stop_the_run_and_stay(capsys, whole, tmp_path):
    workdir = copy_of(whole, tmp_path)
    for path in workdir.glob("checkpoints/*/default/manifest.ocdbt"):
        path.write_bytes(path.read_bytes()[:-1])
    before = snapshot(workdir)
    code, error = run(capsys, *RUN, f"--workdir={workdir}")
    assert code == 2 and error.count("\n") == 1, error
    assert re.search(r"no checkpoint in .* is what was written \(168: default/manifest.ocdbt has", error), (
        error
    )
    assert snapshot(workdir) == before


def test_foreign_files_among_the_checkpoints(capsys, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "thesis.tex").write_text("all of it")
    code, error = run(capsys, f"--workdir={tmp_path}")
    assert code == 2
    assert "has checkpoints but no config.json" in error
    assert (tmp_path / "checkpoints" / "thesis.tex").read_text() == "all of it"


def test_a_folder_with_files_of_our_names(capsys, tmp_path):
    (tmp_path / "model").write_text("3D")
    code, error = run(capsys, f"--workdir={tmp_path}")
    assert code == 2
    assert "has model but no config.json" in error
    assert (tmp_path / "model").read_text() == "3D"


def test_two_runs_in_one_folder(capsys, tmp_path):
    process = start(tmp_path)
    try:
        wait_for_step(process, tmp_path, 5)
        code, error = run(capsys, *RUN, f"--workdir={tmp_path}")
        assert code == 2 and "another run is using" in error
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow  # a job of two processes that goes on as one is a default test
def test_resumes_on_another_number_of_devices(capsys, whole, tmp_path):
    if jax.device_count() == 1:
        pytest.skip("there is one device only")
    workdir = copy_of(whole, tmp_path)
    subprocess.run(["rm", "-r", str(workdir / "checkpoints" / "168")], check=True)
    assert run(capsys, *RUN, "--config.devices=2", f"--workdir={workdir}")[0] == 0
    ours, theirs = (dict(Model.load(folder).variables) for folder in (workdir, whole))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0.02, atol=0.02), ours, theirs)


UNSHARE = ["unshare", "--mount", "--map-root-user", "sh", "-c"]


def can_mount(folder) -> bool:
    """Whether this process may make a small disk for its children."""
    try:
        done = subprocess.run([*UNSHARE, f"mount -t tmpfs tmpfs {folder}"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.parametrize(
    "kilobytes",
    [900, *(pytest.param(size, marks=pytest.mark.slow) for size in (820, 860, 940, 980, 1020, 1060, 1100))],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_with_more_room(tmp_path, kilobytes):
    """A disk that fills up while a run writes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("no small disk can be mounted here")
    train = shlex.join([sys.executable, "-m", "binwrn_jax", "train", *RUN, f"--workdir={disk / 'run'}"])
    script = (
        f"mount -t tmpfs -o size={kilobytes}k tmpfs {disk}; {train} 2>{tmp_path}/errors; echo code $?;"
        f"mount -o remount,size=64m {disk}; {train} && ls -A {disk}/run {disk}/run/checkpoints"
    )
    done = subprocess.run(
        [*UNSHARE, script],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    errors = (tmp_path / "errors").read_text()
    assert errors.startswith("error: disk full") and errors.count("\n") == 1, errors
    assert "code 2" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done: test error" in done.stdout
    assert "tmp" not in done.stdout.rpartition("done: test error")[2].replace(str(tmp_path), "")


SAVES = """
import sys
import jax
import numpy as np
from binwrn_jax.cli.handler import guarded
from binwrn_jax.nn.registry import create_network, default_fields
from binwrn_jax.store.model import Model

def save():
    fields = {**default_fields(), "depth": 8, "width": 1.0}
    images = np.zeros((1, 8, 8, 1), np.uint8)
    variables = jax.jit(create_network(fields, 10).init)(jax.random.key(0), images)
    description = {"model": fields, "num_classes": 10, "image_shape": [8, 8, 1]}
    Model.create(variables, description).save(sys.argv[1])
    return 0

sys.exit(guarded(save))
"""


def test_a_model_that_does_not_fit_is_one_line_and_leaves_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("no small disk can be mounted here")
    save = shlex.join([sys.executable, "-c", SAVES, str(disk / "model")])
    script = f"mount -t tmpfs -o size=100k tmpfs {disk}; {save}; echo code $?; ls -A {disk}"
    done = subprocess.run(
        [*UNSHARE, script],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr.startswith("error: disk full") and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == "code 2\n"


def test_full_disk_is_one_line(capsys, tmp_path, monkeypatch):
    real = os.statvfs

    def full(path):
        values = list(real(path))
        values[4] = 10  # f_bavail
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", full)
    code, error = run(capsys, f"--workdir={tmp_path}")
    assert code == 2 and error.startswith("error: disk full") and error.count("\n") == 1


def test_full_disk_is_recognised_wherever_it_comes_from(capsys):
    def write() -> int:
        with open("/dev/full", "w") as file:
            file.write("x")
        return 0

    def write_deep() -> int:
        try:
            return write()
        except OSError as error:
            raise RuntimeError("the background thread failed") from error

    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    for program in (write, write_deep):
        assert guarded(program) == 2
        assert capsys.readouterr().err.startswith("error: disk full")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: VERB; see binwrn --help"),
        (["evalute", "x"], "unknown verb 'evalute' (did you mean 'evaluate'?): the verbs are train, "),
        (["--json", "evaluate"], "see binwrn --help"),
        (["evaluate", "x"], "the following arguments are required: --dataset; see binwrn evaluate --help"),
        (["export", "x", "--format", "tflite", "--output", "y"], "invalid choice: 'tflite'"),
        (["evaluate", "x", "--dataset", "digits", "--limit", "all"], "--limit: invalid int value: 'all'"),
    ],
)
def test_wrong_arguments_of_binwrn_are_one_line(capsys, arguments, message):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_help_shows_the_fields(capsys):
    assert cli.main(["train", "--help"]) == 0
    output = capsys.readouterr().out
    assert "--workdir" in output and '"weight_decay": 0.0005' in output


def test_nothing_imports_tensorflow_or_touches_a_device():
    code = (
        "import sys, binwrn_jax, binwrn_jax.cli, jax; from jax._src import xla_bridge;"
        "assert 'tensorflow' not in sys.modules and 'orbax.checkpoint' not in sys.modules;"
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
