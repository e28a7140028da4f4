"""The preflight: what it reads from a compiled program, what it makes of it, and mistakes in one line."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from binwrn_jax import UserError
from binwrn_jax.cli.main import main
from binwrn_jax.cli.preflight import lines
from binwrn_jax.data.catalog import DATASETS, lookup
from binwrn_jax.graph.cost import training_flops
from binwrn_jax.parallel import hardware
from binwrn_jax.parallel.sharding import make_mesh
from binwrn_jax.preflight.collectives import Collective
from binwrn_jax.preflight.compile import (
    OutOfMemory,
    Topology,
    _out_of_memory,
    activations_travel,
    by_kind,
    collective_seconds,
    fitting_batch,
    preflight,
    roofline,
    set_environment,
    size_of,
    state_shapes,
    topology,
    train_images,
    usable_memory,
)
from binwrn_jax.training.config import base_config, parse_spec

ENVIRONMENT = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_ACCELERATOR_TYPE")
ENVIRONMENT += ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What the command sets for its process does not stay in that of the tests."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    jax.devices()  # their number is settled: no test may change it


def config(spec="8-0.25", **fields):
    result = base_config()
    parse_spec(result, spec)
    result.data.name = "digits"
    result.update_from_flattened_dict({"batch_size": 64, "epochs": 2, **fields})
    return result


@pytest.fixture(scope="module")
def report():
    """Of the smallest network on eight devices of the CPU, as if they were H100s."""
    if len(jax.devices()) < 8:
        pytest.skip(f"needs 8 devices, JAX sees {len(jax.devices())}")
    return preflight(config(), topology("cuda:h100x8"), price=2.0)


def test_memory_is_that_of_the_state_and_the_data(report):
    memory, state = report["memory"], size_of(state_shapes(config()))
    data = 1437 * (8 * 8 + 4)
    assert report["data_on_device"] == data
    # And the indices of a device, 8 of 64.
    assert memory["arguments"] == state + data + 8 * 4
    assert memory["peak"] == sum(memory[k] for k in ("arguments", "outputs", "temporaries", "code"))
    # The state is donated: of the outputs only the three metrics need room of their own, and pointers.
    assert memory["outputs"] < 1000 < state / 10
    assert memory["capacity"] == hardware.peak("NVIDIA H100 80GB HBM3").memory


def test_operations_and_collectives(report):
    analytic = 64 * training_flops(8, 0.25, 10, (8, 8, 1))
    assert report["flops"]["analytic"] == analytic
    assert 0.7 < report["flops"]["compiler"] / analytic < 2  # the tiny network's batch norms count
    (entry,) = report["collectives"]
    params = sum(x.size for x in jax.tree.leaves(state_shapes(config()).params))
    assert entry["kind"] == "all-reduce"
    assert 4 * params < entry["bytes"] < 8 * params  # the gradients, and moments of batch norm
    assert not report["activations_travel"]


def test_micro_batches_send_once_each(report, eight_devices):
    """The gradients are summed over the devices in the loop: twice as many bytes, and as much time."""
    twice = preflight(config(accumulate=2, **{"model.ghost_size": 4}), topology("cuda:h100x8"))
    (sent,) = twice["collectives"]
    params = sum(x.size for x in jax.tree.leaves(state_shapes(config()).params))
    assert sent["count"] % 2 == 0 and 2 * 4 * params < sent["bytes"] < 3 * 4 * params
    ring = 2 * 7 / 8 * sent["bytes"]
    assert twice["rooflines"][0]["links_seconds"] == pytest.approx(
        ring / hardware.peak("NVIDIA H100 80GB HBM3").links
    )


def test_run_and_cost(report):
    (top,) = report["rooflines"]
    assert report["steps"] == 2 * (1437 // 64)
    assert top["step_seconds"] == max(top["compute_seconds"], top["memory_seconds"], top["links_seconds"])
    assert top["compute_seconds"] == report["flops"]["analytic"] / 8 / 494.7e12
    assert top["images_per_s"] == pytest.approx(64 / top["step_seconds"])
    assert top["chip_hours"] == pytest.approx(report["steps"] * top["step_seconds"] / 3600 * 8)
    assert top["cost"] == 2 * top["chip_hours"]
    assert top["host_images_per_s"] == 0  # the data lies on the devices
    assert json.loads(json.dumps(report)) == report


def test_text(report):
    text = "\n".join(lines(report))
    for words in (
        "digits 8-0.25 1bit, float32, batch 64, on cuda:h100x8: 8 devices",
        "fits ",
        "the training set lies on every device",
        "images/s on 8 x NVIDIA H100 80GB HBM3",
        "2 epochs of 1,437 images, 44 steps",
    ):
        assert words in text


def test_what_does_not_fit_is_made_smaller(monkeypatch):
    """The memory of an imaginary device is set between that of two batches of the real program."""
    device = jax.devices()[:1]
    place = Topology("toy:1", "cuda", device, ("toy",), 1)
    monkeypatch.setitem(hardware.PEAKS, "toy", hardware.Peak(1e12, 1e12, 10**12, 1e12))
    whole = preflight(config(batch_size=512), place)
    fixed = size_of(state_shapes(config())) + whole["data_on_device"]
    limit = fixed + (whole["memory"]["peak"] - fixed) * 6 // 10
    monkeypatch.setitem(hardware.PEAKS, "toy", hardware.Peak(1e12, 1e12, limit, 1e12))
    report = preflight(config(batch_size=512), place)
    assert not report["fits"] and report["memory"] == {"peak": whole["memory"]["peak"], "capacity": limit}
    assert 150 < report["fitting_batch"] < 400
    assert report["flops"]["analytic"] == report["fitting_batch"] * training_flops(8, 0.25, 10, (8, 8, 1))
    text = "\n".join(lines(report))
    assert "DOES NOT FIT" in text and f"batch {report['fitting_batch']} fits" in text


@pytest.mark.parametrize(("unit", "wanted"), [(16, 304), (64, 256), (512, None)])
def test_fitting_batch(unit, wanted):
    """A program of 100 + 3 per image and some more at odd sizes, of which 1040 can be had."""
    tried = []

    def compile_batch(batch):
        tried.append(batch)
        used = 100 + 3 * batch + (20 if batch % 32 else 0)
        if used > 1040:
            raise OutOfMemory(used, 1040)
        return used

    found = fitting_batch(1024, unit, OutOfMemory(100 + 3 * 1024, 1040), 100, compile_batch)
    assert (found and found[0]) == wanted
    assert all(batch % unit == 0 for batch in tried) and len(tried) <= 2


@pytest.mark.parametrize(
    ("message", "used"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 26.50G of 15.75G hbm. Exceeded hbm capacity by 10.75G.",
            26.5 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
            "(18.05G) exceeds available HBM (15.75G).",
            18.05 * 2**30 + 1000,
        ),
    ],
)
def test_messages_of_the_tpu_compiler(message, used):
    error = _out_of_memory(message, arguments=1000)
    assert error.used == pytest.approx(used, abs=1) and error.limit == int(15.75 * 2**30)


def test_other_messages_of_the_tpu_compiler():
    assert _out_of_memory("INTERNAL: something else", 0) is None


def test_ring_times():
    found = [Collective("all-reduce", (), 4000, ""), Collective("all-gather", (), 800, "")]
    # 2 * 3/4 of 4000 and 3/4 of 800 bytes at 100 per second.
    assert collective_seconds(found, 4, 100.0) == pytest.approx(66.0)
    assert collective_seconds(found, 1, 100.0) == 0
    assert by_kind([*found, found[0]]) == [
        {"kind": "all-gather", "count": 1, "bytes": 800},
        {"kind": "all-reduce", "count": 2, "bytes": 8000},
    ]
    assert not activations_travel(found) and activations_travel(found[1:])
    in_loop = [found[0]._replace(times=3)]
    assert collective_seconds(in_loop, 4, 100.0) == pytest.approx(180.0)
    assert by_kind(in_loop) == [{"kind": "all-reduce", "count": 3, "bytes": 12000}]


def test_roofline_takes_the_slowest():
    top = hardware.Peak(bfloat16=1000.0, float32=500.0, memory=1, bandwidth=100.0, links=10.0)
    bounds = roofline(2000.0, 300.0, [], 8, top, "bfloat16")
    assert bounds == (2.0, 3.0, 0.0) and (bounds.step, bounds.bound) == (3.0, "memory")
    assert roofline(2000.0, 300.0, [], 8, top, "float32").bound == "compute"


def test_every_tpu_has_links_and_the_links_of_a_chip_are_shared():
    for name, top in hardware.PEAKS.items():
        if name.startswith("TPU"):
            assert top.links > 0, name
    assert hardware.peak("TPU v3").links == hardware.peak("TPU v3").devices_per_chip ** -1 * 328e9


def test_images_of_every_data_set():
    for spec in DATASETS.values():
        assert {spec.train_split, spec.test_split} <= set(spec.splits)
    svhn = lookup("svhn_cropped")
    assert train_images(svhn, "train+extra") == 73_257 + 531_131
    assert train_images(svhn, "train[:1000]") == 1000
    assert train_images(svhn, "train[90%:]") == 73_257 - round(73_257 * 0.9)
    with pytest.raises(UserError, match="no split 'valid'; available: train, test, extra"):
        train_images(svhn, "valid")


def test_digits_are_counted_right(digits):
    train, test = digits
    assert DATASETS["digits"].splits == {"train": len(train.labels), "test": len(test.labels)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "cpu"], "which run? Give --config"),
        (["--config=configs/digits.py", "--topology", "v9:2x2"], "unknown topology 'v9:2x2': use TPUs such"),
        (["--config=configs/digits.py", "--topology", "v5e:4by4"], "unknown topology"),
        (["--config=configs/digits.py", "--topology", "cuda:h1000"], "NAME one of a100"),
        (["--config=configs/digits.py", "--topology", "cpu", "--slices", "2"], "several of a TPU only"),
        (["--config=configs/digits.py", "--topology", "cpu:9999"], "9999 devices wanted"),
        (["--config=configs/digits.py", "--config.sed=1"], "'sed' (did you mean 'seed'?)"),
        (["--config=configs/digits.py", "--topologie", "cpu"], "'topologie'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments, words, capsys):
    assert main(["preflight", *arguments]) == 2
    output = capsys.readouterr()
    error = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and words in error[0] and output.out == ""


def test_without_libtpu(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    assert main(["preflight", "--config=configs/digits.py", "--topology", "v5e:2x2"]) == 2
    assert capsys.readouterr().err == "error: compiling for a TPU needs libtpu: pip install '.[tpu]'\n"


PROGRAM = "import sys; from binwrn_jax.cli.main import main; sys.exit(main())"


def binwrn(*arguments):
    """The command as a user starts it: exit code, standard output and error."""
    environment = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, "preflight", "--json", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=1200,
    )
    return result.returncode, result.stdout, result.stderr


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install '.[tpu]'"
)


@pytest.mark.slow
@needs_libtpu
def test_the_smallest_network_on_a_tpu_that_is_not_here():
    code, out, err = binwrn(
        "--config=configs/cifar10.py:8-0.25", "--config.batch_size=128", "--topology=v5e:2x2"
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert report["fits"] and report["compiled_for"] == "tpu"
    assert (report["device_kind"], report["chips"], report["hosts"]) == ("TPU v5 lite", 4, 1)
    data = 50_000 * (32 * 32 * 3 + 4)
    assert report["data_on_device"] == data
    # Tiles of 8 x 128 make some arrays larger than they are.
    assert data < report["memory"]["arguments"] < 1.1 * data
    assert report["memory"]["capacity"] == 15.75 * 2**30
    analytic = 128 * training_flops(8, 0.25, 10, (32, 32, 3))
    assert 0.5 < report["flops"]["compiler"] / analytic < 2
    (entry,) = report["collectives"]
    params = sum(x.size for x in jax.tree.leaves(state_shapes(config()).params))
    assert entry["kind"] == "all-reduce" and entry["bytes"] >= 4 * params
    assert report["rooflines"][0]["step_seconds"] > 0
    assert np.isfinite(report["compile_seconds"])


@pytest.mark.slow
@needs_libtpu
def test_two_slices_and_micro_batches_on_a_tpu_that_is_not_here():
    code, out, err = binwrn(
        "--config=configs/cifar10.py:8-0.25", "--config.batch_size=128", "--config.model.ghost_size=8",
        "--config.accumulate=2", "--topology=v5e:2x2", "--slices=2",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert report["fits"] and report["topology"] == "2 x v5e:2x2"
    assert (report["devices"], report["chips"], report["hosts"], report["slices"]) == (8, 8, 2, 2)
    params = sum(x.size for x in jax.tree.leaves(state_shapes(config()).params))
    (entry,) = report["collectives"]
    assert entry["kind"] == "all-reduce" and entry["bytes"] >= 2 * 4 * params
    assert "between the 2 slices" in "\n".join(lines(report))


@pytest.mark.slow
@needs_libtpu
def test_out_of_memory_of_a_tpu_says_which_batch_fits():
    code, out, err = binwrn(
        "--config=configs/cifar10.py:8-1", "--config.batch_size=131072", "--topology=v5e:1x1"
    )  # fmt: skip
    assert code == 1, err
    report = json.loads(out)
    assert not report["fits"] and report["memory"]["peak"] > report["memory"]["capacity"] > 15 * 2**30
    assert 0 < report["fitting_batch"] < 131072


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
    place = topology(name)
    assert (len(place.devices), place.hosts, place.kinds) == (devices, hosts, (kind,))
    assert hardware.peak(kind)


@needs_libtpu
@pytest.mark.parametrize(("name", "gib"), [("v5e:4x4", 15.75), ("v4:2x2x1", 30.75), ("v6e:2x2", 31.25)])
def test_a_program_cannot_have_all_the_memory(name, gib):
    set_environment()
    place = topology(name)
    assert usable_memory(place.devices[0]) == gib * 2**30 < hardware.peak(place.kinds[0]).memory


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:2x2", "v4:2x2x1"])
def test_slices_follow_one_another_in_the_mesh(name):
    set_environment()
    place = topology(name, slices=2)
    assert (len(place.devices), place.hosts, place.name) == (8, 2, f"2 x {name}")
    assert [device.slice_index for device in make_mesh(0, place.devices).devices] == 4 * [0] + 4 * [1]


@needs_libtpu
def test_a_topology_that_does_not_exist():
    set_environment()
    with pytest.raises(
        UserError, match=r"no topology 'v5e:3x3' \(.*not divisible.*\): use one such as v5e:2x2"
    ):
        topology("v5e:3x3")
