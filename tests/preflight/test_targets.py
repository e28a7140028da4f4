"""Steps compiled for TPUs and NVIDIA GPUs that are not here, by the compilers where they are installed."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from binwrn_jax import UserError
from binwrn_jax.graph.cost import training_flops
from binwrn_jax.nn.wide_resnet import WideResNet
from binwrn_jax.parallel import hardware
from binwrn_jax.parallel.sharding import make_mesh
from binwrn_jax.preflight import targets
from binwrn_jax.preflight.compile import size_of, state_shapes
from binwrn_jax.preflight.gpus import GPUS, target_config
from binwrn_jax.preflight.targets import open_target, set_environment
from binwrn_jax.training.config import base_config
from binwrn_jax.training.variants import apply_variants

PROGRAM = "import sys; from binwrn_jax.cli.main import main; sys.exit(main())"
KEPT_OUT = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_ACCELERATOR_TYPE")


def binwrn(*arguments):
    """The command as a user starts it: exit code, standard output and error."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, "preflight", *arguments],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in KEPT_OUT},
        timeout=1200,
    )
    return result.returncode, result.stdout, result.stderr


def smallest(shape=(32, 32, 3)):
    """The state of the smallest network, as shapes, for CIFAR-10."""
    config = base_config()
    apply_variants(config, "8-0.25")
    return state_shapes(config)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install '.[tpu]'"
)
needs_cuda = pytest.mark.skipif(bool(targets._why_no_cuda_compiler()), reason=targets._why_no_cuda_compiler())
CIFAR = ("--config=configs/cifar10.py:8-0.25", "--config.batch_size=128")


@pytest.mark.slow
@needs_libtpu
def test_the_smallest_network_on_a_tpu_that_is_not_here():
    code, out, err = binwrn(*CIFAR, "--topology=v5e:2x2", "--json")
    assert code == 0, err
    report = json.loads(out)
    machine, step = report["machine"], report["step"]
    assert report["verdict"] == "fits" and machine["compiled_for"] == "tpu"
    assert (machine["device_kind"], machine["chips"], machine["hosts"]) == ("TPU v5 lite", 4, 1)
    data = 50_000 * (32 * 32 * 3 + 4)
    assert report["data_on_device"] == data
    # Tiles of 8 x 128 make some arrays larger than they are.
    assert data < step["memory"]["arguments"] < 1.1 * data
    assert report["capacity"] == 15.75 * 2**30
    assert step["flops"] == 128 * training_flops(WideResNet(8, 0.25, 10), (32, 32, 3))
    assert 0.5 < step["compiler_flops"] / step["flops"] < 2
    (entry,) = step["collectives"]
    params = sum(x.size for x in jax.tree.leaves(smallest().params))
    assert entry["kind"] == "all-reduce" and entry["bytes"] >= 4 * params
    # The batch is selected from the data set, which is not read as a whole.
    assert 4 * params < step["bytes"] / 4 < data
    assert step["speed"]["step_seconds"] > 0


@pytest.mark.slow
@needs_libtpu
def test_two_slices_and_micro_batches_on_a_tpu_that_is_not_here():
    fields = ("--config.model.ghost_size=8", "--config.accumulate=2")
    code, out, err = binwrn(*CIFAR, *fields, "--topology=v5e:2x2", "--slices=2", "--json")
    assert code == 0, err
    report = json.loads(out)
    machine = report["machine"]
    assert report["verdict"] == "fits" and machine["topology"] == "2 x v5e:2x2"
    assert (machine["devices"], machine["chips"], machine["hosts"], machine["slices"]) == (8, 8, 2, 2)
    params = sum(x.size for x in jax.tree.leaves(smallest().params))
    (entry,) = report["step"]["collectives"]
    assert entry["kind"] == "all-reduce" and entry["bytes"] >= 2 * 4 * params


@pytest.mark.slow
@needs_libtpu
def test_out_of_memory_of_a_tpu_says_which_batch_fits():
    code, out, err = binwrn(
        "--config=configs/cifar10.py:8-1", "--config.batch_size=131072", "--topology=v5e:1x1"
    )
    assert code == 1, err
    assert out.startswith("DOES NOT FIT: it takes ") and "15.75 GiB that a program can have" in out
    assert " fits (compiled)" in out


@pytest.mark.slow
@needs_libtpu
@needs_cuda
def test_gpus_send_what_tpus_send():
    """The compilers of eight GPUs and of eight chips put in the same kinds and total bytes of collectives."""
    code, out, err = binwrn(*CIFAR, "--compare=v5e:2x4,cuda:h100x8,cuda:a100x8", "--json")
    assert code == 0, err
    chips, *gpus = json.loads(out)
    assert chips["verdict"] == "fits" and not chips["machine"]["missing"]

    def sent(report):
        return [(entry["kind"], entry["bytes"]) for entry in report["step"]["collectives"]]

    for gpu in gpus:
        assert gpu["verdict"] == "may fit" and gpu["machine"]["compiled_for"] == "cuda"
        assert sent(gpu) == sent(chips)
        assert gpu["step"]["speed"]["memory_seconds"] > 0


@needs_cuda
@pytest.mark.parametrize("model", GPUS)
def test_every_gpu_can_be_compiled_for(model):
    set_environment()
    place = open_target(f"cuda:{model}x16")
    assert place.missing == "" and (len(place.devices), place.hosts) == (16, 2)
    assert {device.process_index for device in place.devices} == {0, 1}
    assert place.devices[0].device_kind == place.device_kind


@pytest.mark.slow
@needs_cuda
def test_the_smallest_network_on_a_gpu_that_is_not_here():
    code, out, err = binwrn(*CIFAR, "--topology=cuda:h100")
    assert code == 0, err
    assert out.startswith("may fit: it takes at least ")
    assert "for NVIDIA H100 80GB HBM3 in " in out and "collectives    none" in out
    state = size_of(smallest())
    assert f"{(state + 50_000 * 3076) / 2**20:.3g}"[:2] in out


def test_gpus_have_published_peaks_and_a_description():
    for gpu in GPUS.values():
        top = hardware.peak(gpu.kind)
        assert 0.97 < gpu.bandwidth / top.bandwidth < 1.03
        assert 0.99 < gpu.memory / top.memory < 1.08  # decimal on the data sheet
        assert gpu.kind in target_config(gpu)


def test_a_gpu_keeps_a_quarter_of_its_memory_from_programs(monkeypatch):
    monkeypatch.setattr(targets, "_why_no_cuda_compiler", lambda: "it is not installed")
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    place = open_target("cuda:h100")
    assert place.usable_memory() == int(0.75 * GPUS["h100"].memory)
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", ".95")
    assert place.usable_memory() == int(0.95 * GPUS["h100"].memory)
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(UserError, match="XLA_CLIENT_MEM_FRACTION is 'most': it must be a number"):
        place.usable_memory()


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "devices", "hosts", "kind"),
    [
        ("v4:4x4x4", 64, 16, "TPU v4"),
        ("v5e:1x1", 1, 1, "TPU v5 lite"),
        ("v5e:2x4", 8, 1, "TPU v5 lite"),
        ("v5e:16x16", 256, 64, "TPU v5 lite"),
        ("v6e:4x4", 16, 4, "TPU v6 lite"),
        ("v5p:2x2x4", 16, 4, "TPU v5"),
        ("tpu7x:2x2x1", 8, 1, "TPU7x"),
    ],
)
def test_topologies(name, devices, hosts, kind):
    set_environment()
    place = open_target(name)
    assert (len(place.devices), place.hosts, place.device_kind) == (devices, hosts, kind)
    assert hardware.peak(kind)


@needs_libtpu
@pytest.mark.parametrize(("name", "gib"), [("v5e:4x4", 15.75), ("v4:2x2x1", 30.75), ("v6e:2x2", 31.25)])
def test_a_program_cannot_have_all_the_memory(name, gib):
    set_environment()
    place = open_target(name)
    assert place.usable_memory() == gib * 2**30 < hardware.peak(place.device_kind).memory


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:2x2", "v4:2x2x1"])
def test_slices_follow_one_another_in_the_mesh(name):
    set_environment()
    place = open_target(name, slices=2)
    assert (len(place.devices), place.hosts, place.name) == (8, 2, f"2 x {name}")
    assert [device.slice_index for device in make_mesh(0, place.devices).devices] == 4 * [0] + 4 * [1]


@needs_libtpu
def test_a_topology_that_does_not_exist():
    set_environment()
    with pytest.raises(
        UserError, match=r"no topology 'v5e:3x3' \(.*not divisible.*\): use one such as v5e:2x2"
    ):
        open_target("v5e:3x3")
