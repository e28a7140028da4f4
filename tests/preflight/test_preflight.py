"""The preflight: what it reads from a compiled program, what it makes of it, and mistakes in one line."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from binwrn_jax import UserError
from binwrn_jax.cli.main import main
from binwrn_jax.data.catalog import DATASETS
from binwrn_jax.graph.cost import training_flops
from binwrn_jax.nn.registry import configured_network
from binwrn_jax.nn.wide_resnet import WideResNet
from binwrn_jax.parallel import hardware
from binwrn_jax.preflight import targets
from binwrn_jax.preflight.collectives import Collective
from binwrn_jax.preflight.compile import (
    fitting_batch,
    fitting_parts,
    size_of,
    state_shapes,
    train_images,
)
from binwrn_jax.preflight.report import DOES_NOT_FIT, FITS, MAY_FIT, preflight
from binwrn_jax.preflight.roofline import activations_travel, by_kind, collective_seconds, roofline
from binwrn_jax.preflight.suggest import nearest_batch
from binwrn_jax.preflight.targets import (
    OutOfMemory,
    machine_memory,
    open_target,
    tpu_out_of_memory,
)
from binwrn_jax.preflight.text import chip_hours, comparison, duration, lines, memory, number, plural, traffic
from binwrn_jax.training.config import base_config
from binwrn_jax.training.variants import apply_variants


def config(spec="8-0.25", **fields):
    result = base_config()
    apply_variants(result, spec)
    result.data.name = "digits"
    result.update_from_flattened_dict({"batch_size": 64, "epochs": 2, **fields})
    return result


@pytest.fixture(scope="module")
def without_cuda():
    """As on a machine without JAX's CUDA plug-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "_why_no_cuda_compiler", lambda: "the plug-in is not installed: install it")
        yield


@pytest.fixture(scope="module")
def report(without_cuda):
    """Of the smallest network on eight devices of the CPU, as if they were H100s."""
    if len(jax.devices()) < 8:
        pytest.skip(f"needs 8 devices, JAX sees {len(jax.devices())}")
    return preflight(config(), open_target("cuda:h100x8"), price=2.0)


def test_memory_is_that_of_the_state_and_the_data(report):
    found, state = report.step.memory, size_of(state_shapes(config()))
    data = 1437 * (8 * 8 + 4)
    assert report.data_on_device == data
    # And the indices of the batch.
    assert found["arguments"] == state + data + 64 * 4
    assert report.needed == found["peak"] == sum(found[k] for k in found if k != "peak")
    # The state is donated: of the outputs only the three metrics need room of their own, and pointers.
    assert found["outputs"] < 1000 < state / 10


def test_operations_and_collectives(report):
    assert report.step.flops == 64 * training_flops(WideResNet(8, 0.25, 10), (8, 8, 1))
    (entry,) = report.step.collectives
    params = sum(x.size for x in jax.tree.leaves(state_shapes(config()).params))
    assert entry["kind"] == "all-reduce"
    assert 4 * params < entry["bytes"] < 8 * params  # the gradients, and moments of batch norm
    assert not report.step.activations_travel


def test_a_network_and_images_of_the_users_own_are_counted(tmp_path):
    """By the network's equations and the files on disk: 8 of 10 images of each class are for training."""
    labels = np.arange(200) % 5
    images = np.arange(200 * 6 * 8 * 3, dtype=np.uint32).reshape(200, 6, 8, 3) // 7 % 251
    np.savez(tmp_path / "own.npz", images=images.astype(np.uint8), labels=labels)
    fields = config(**{"model.type": "own_networks:create", "data.name": f"npz:{tmp_path}/own.npz"})
    found = preflight(fields, open_target("cpu:1"))
    network = configured_network(fields.model, 5)
    assert (found.run.network, found.run.train_images) == ("own_networks:create", 160)
    assert found.data_on_device == 160 * (6 * 8 * 3 + 4)
    assert found.step.flops == 64 * training_flops(network, (6, 8, 3)) > 0


def test_micro_batches_send_once_each(report, eight_devices):
    """The gradients are summed over the devices in the loop: twice as many bytes, and as much time."""
    twice = preflight(config(accumulate=2, **{"model.ghost_size": 4}), open_target("cuda:h100x8"))
    (sent,) = twice.step.collectives
    params = sum(x.size for x in jax.tree.leaves(state_shapes(config()).params))
    assert sent["count"] % 2 == 0 and 2 * 4 * params < sent["bytes"] < 3 * 4 * params
    ring = 2 * 7 / 8 * sent["bytes"]
    links = hardware.peak("NVIDIA H100 80GB HBM3").links
    assert twice.step.speed.links_seconds == pytest.approx(ring / links)


def test_run_and_cost(report):
    speed = report.step.speed
    assert report.run.steps == 2 * (1437 // 64)
    assert speed.step_seconds == max(speed.compute_seconds, speed.memory_seconds, speed.links_seconds)
    assert speed.compute_seconds == report.step.flops / 8 / 494.7e12
    assert speed.images_per_s == pytest.approx(64 / speed.step_seconds)
    assert speed.chip_hours == pytest.approx(report.run.steps * speed.step_seconds / 3600 * 8)
    assert speed.cost == 2 * speed.chip_hours
    assert speed.host_images_per_s == 0  # the data lies on the devices
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_a_report_for_another_device_says_so_first(report):
    first, *rest = lines(report)
    assert first.startswith("roofline only, not compiled for NVIDIA H100 80GB HBM3 (the plug-in is not inst")
    assert "may fit: the CPU's program takes" in first and report.verdict == MAY_FIT
    text = "\n".join(rest)
    for words in (
        "digits 8-0.25 1bit, float32, batch 64; 2 epochs of 1,437 images",
        "cuda:h100x8: 8 GPUs (NVIDIA H100 80GB HBM3), 1 host",
        "for the CPU instead",
        "the training set lies on every device",
        "memory is not in it",
        "44 steps: at best",
        "under 0.01 chip-hours, under 0.01 in money",
    ):
        assert words in text
    # Half of the memory is for others.
    assert report.largest_batch is None


def test_a_cpu_without_the_memory_does_not_fit(monkeypatch):
    """Not even the state has room: it is refused, by how much, and nothing is tried."""
    monkeypatch.setattr(targets, "machine_memory", lambda: targets.CPU_RESERVED + 100_000)
    report = preflight(config(), open_target("cpu"))
    assert report.verdict == DOES_NOT_FIT and not report.fits
    assert (report.capacity, report.largest_batch, report.step) == (100_000, None, None)
    first, second, *_ = lines(report)
    more = memory(report.needed - 100_000)
    assert first.startswith("DOES NOT FIT: it takes ") and f"{more} more than the 97.7 KiB that" in first
    assert "no batch fits" in second


def test_devices_of_the_cpu_share_its_memory(monkeypatch, eight_devices):
    monkeypatch.setattr(targets, "machine_memory", lambda: targets.CPU_RESERVED + 8_000)
    assert open_target("cpu").usable_memory() == 8_000
    assert open_target("cpu:8").usable_memory() == 1_000
    assert 2**28 < machine_memory() < 2**50


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_made_smaller(monkeypatch):
    """The memory of an imaginary machine is set between that of two batches of the real program."""
    whole = preflight(config(batch_size=512), open_target("cpu"))
    assert whole.verdict == FITS and 512 < whole.largest_batch <= 1437
    fixed = size_of(state_shapes(config())) + whole.data_on_device
    limit = fixed + (whole.needed - fixed) * 6 // 10
    monkeypatch.setattr(targets, "machine_memory", lambda: targets.CPU_RESERVED + limit)
    report = preflight(config(batch_size=512), open_target("cpu"))
    assert report.verdict == DOES_NOT_FIT and (report.needed, report.capacity) == (whole.needed, limit)
    assert 150 < report.largest_batch < 400 and report.largest_batch_compiled
    assert report.micro_batches is None  # without ghost groups they would change the batch statistics
    assert report.step.flops == report.largest_batch * training_flops(WideResNet(8, 0.25, 10), (8, 8, 1))
    text = "\n".join(lines(report))
    assert (
        text.startswith("DOES NOT FIT: it takes") and f"batch {report.largest_batch} fits (compiled)" in text
    )
    assert f"is about batch {report.largest_batch}" in text


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_divided_into_micro_batches(monkeypatch):
    grouped = {"batch_size": 512, "model.ghost_size": 32}
    whole = preflight(config(**grouped), open_target("cpu"))
    fixed = size_of(state_shapes(config())) + whole.data_on_device
    limit = fixed + (whole.needed - fixed) * 6 // 10
    monkeypatch.setattr(targets, "machine_memory", lambda: targets.CPU_RESERVED + limit)
    report = preflight(config(**grouped), open_target("cpu"))
    assert report.micro_batches in (2, 4) and report.step.accumulate == report.micro_batches
    assert report.step.batch_size == 512
    assert f"--config.accumulate={report.micro_batches}" in "\n".join(lines(report))


def test_micro_batches_are_whole_ghost_groups_on_each_device():
    tried = []

    def compile_parts(count):
        tried.append(count)
        if count < 8:
            raise OutOfMemory(2, 1)
        return "program"

    grouped = config(batch_size=1024, **{"model.ghost_size": 16})
    assert fitting_parts(grouped, 4, 300, compile_parts) == (8, "program")
    assert tried == [4, 8]
    assert fitting_parts(config(), 4, 300, compile_parts) is None


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
    error = tpu_out_of_memory(message, arguments=1000)
    assert error.used == pytest.approx(used, abs=1) and error.limit == int(15.75 * 2**30)


def test_other_messages_of_the_tpu_compiler():
    assert tpu_out_of_memory("INTERNAL: something else", 0) is None


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


def test_images_are_counted_without_data():
    for info in DATASETS.values():
        assert {info.train_split, info.test_split} <= set(info.splits)

    def images(split):
        return train_images(config(**{"data.name": "svhn_cropped", "data.train_split": split}))

    assert images("train+extra") == 73_257 + 531_131
    assert images("train[:1000]") == 1000
    assert images("train[90%:]") == 73_257 - round(73_257 * 0.9)
    with pytest.raises(UserError, match="no split 'valid'; available: train, test, extra"):
        images("valid")


def test_digits_are_counted_right(digits):
    train, test = digits
    assert DATASETS["digits"].splits == {"train": len(train.labels), "test": len(test.labels)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "cpu"], "which run? Give --config"),
        (["--config=configs/digits.py", "--topology", "cuda:h100x12"], "of 8, such as cuda:h100x16"),
        (["--config=configs/digits.py", "--topology", "cuda"], "unknown topology 'cuda'"),
        (["--config=configs/digits.py", "--price", "nan"], "'nan': a price is a positive number"),
        (["--config=configs/digits.py", "--price", "-1"], "'-1': a price is a positive number"),
        (["--config=configs/digits.py", "--price", "1,2"], "several prices are for --compare"),
        (["--config=configs/digits.py", "--effort", "7"], "'7': it must be a number from -1 to 1"),
        (["--config=configs/digits.py", "--effort", "much"], "'much': it must be a number from -1 to 1"),
        (["--config=configs/digits.py", "--effort", "nan"], "'nan': it must be a number from -1 to 1"),
        (["--config=configs/digits.py", "--price", "0"], "'0': a price is a positive number"),
        (["--config=configs/digits.py", "--price", "inf"], "'inf': a price is a positive number"),
        (["--config=configs/digits.py", "--price", "1,,2"], "'': a price is a positive number"),
        (["--config=configs/digits.py", "--slices", "1.5"], "'1.5': it must be a whole number from 1"),
        (["--config=configs/digits.py", "--slices", "-1"], "'-1': it must be a whole number from 1"),
        (["--config=configs/digits.py", "--topology", "cuda:h100x80000"], "at most 4,096 GPUs"),
        (["--config=configs/digits.py", "--topology", "cuda:h100x-8"], "unknown topology 'cuda:h100x-8'"),
        (["--config=configs/digits.py", "--topology", "cpu:0"], "unknown topology 'cpu:0'"),
        (["--config=configs/digits.py", "--config.batch_size=-1"], "batch_size is -1"),
        (["--config=configs/digits.py", "--config.model.width=nan"], "model.width is nan"),
        (["--config=configs/digits.py", "--config.epochs=inf"], "'inf'"),
        (["--config=configs/digits.py", "--topology=cpu", "--config.data.name=folder:/no"], "/no does not"),
        (["--config=configs/digits.py", "--topology=cpu", "--config.data.name=npz:/none"], "/none"),
        (["--config=configs/digits.py", "--config.model.type=no_module:create"], "cannot be imported"),
        (["--config=configs/digits.py", "--topology=cpu", "--config.model.type=own_networks:other_logits"],
         "logits are [2, 10]"),
        (["--config=configs/digits.py", "--workdir=gs://bucket/run"], "gs://bucket/run is no folder"),
        (["--config=configs/digits.py", "--slices", "0"], "'0': it must be a whole number from 1"),
        (["--config=configs/digits.py", "--compare", "cpu,cpu:2", "--price", "1,2,3"], "3 prices for 2"),
        (["--config=configs/digits.py", "--compare", "cpu,v9:2x2"], "unknown topology 'v9:2x2'"),
        (["--config=configs/digits.py", "--compare", "cpu", "--topology", "cpu"], "not allowed with"),
        (["--config=configs/digits.py", "--topology", "v9:2x2"], "unknown topology 'v9:2x2': use TPUs such"),
        (["--config=configs/digits.py", "--topology", "v5e:4by4"], "unknown topology"),
        (["--config=configs/digits.py", "--topology", "cuda:h1000"], "NAME one of a100"),
        (["--config=configs/digits.py", "--topology", "cpu", "--slices", "2"], "several of a TPU only"),
        (["--config=configs/digits.py", "--topology", "cpu:9999"], "9999 devices wanted"),
        (["--config=configs/digits.py", "--config.sed=1"], "'sed' (did you mean 'seed'?)"),
        (["--config=configs/digits.py", "--config.model.ghost_size=7", "--topology", "cpu"], "ghost groups"),
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


def test_units_that_a_person_reads():
    assert [number(x) for x in (0, 0.00012, 0.0123, 4.567, 99.96, 12345.6)] == [
        "0", "under 0.001", "0.0123", "4.57", "100", "12,346",
    ]  # fmt: skip
    assert [plural(n, "chip") for n in (1, 2, 1000)] == ["1 chip", "2 chips", "1,000 chips"]
    assert (plural(2, "epoch"), plural(2, "micro-batch")) == ("2 epochs", "2 micro-batches")
    seconds = (2.5e-8, 8.3e-4, 0.0211, 85.0, 1656.0, 4 * 3600.0, 72 * 3600.0)
    assert [duration(s) for s in seconds] == [
        "25 nanoseconds", "830 microseconds", "21.1 ms", "85 seconds", "27.6 minutes", "4 hours", "3 days",
    ]  # fmt: skip
    assert [traffic(n) for n in (764, 140e6, 2.13e12)] == ["764 bytes", "140 MB", "2.13 TB"]
    assert [memory(n) for n in (380, 97_000, 3 * 2**20, 98.31 * 2**30)] == [
        "380 bytes", "94.7 KiB", "3 MiB", "98.31 GiB",
    ]  # fmt: skip
    assert chip_hours(2.31e-7) == "under 0.01 chip-hours"


def test_a_comparison_lists_the_cheapest_first_and_what_does_not_fit_last(monkeypatch, without_cuda):
    """One table; the machine whose memory is too small has no cost."""
    reports = [
        preflight(config(), open_target(name), price)
        for name, price in (("cuda:h100", 3.0), ("cuda:a100", 1.0), ("cuda:l4", 0.01))
    ]
    monkeypatch.setattr(targets, "GPU_MEMORY_SHARE", 1e-9)
    small = preflight(config(), open_target("cuda:h200"), 0.001)
    header, *rows = comparison([small, *reports])[:5]
    assert header.split()[:2] == ["topology", "verdict"] and header.endswith("cost")
    costs = [report.step.speed.cost for report in reports]
    expected = [r.machine.topology for r in sorted(reports, key=lambda r: costs[reports.index(r)])]
    assert [row.split()[0] for row in rows] == [*expected, "cuda:h200"]
    assert "does not fit" in rows[-1] and rows[-1].split()[-1] == "-"


def test_several_machines_at_one_command(capsys, eight_devices):
    """Batches need not divide over the devices."""
    arguments = ["preflight", "--config=configs/digits.py:8-0.25", "--compare", "cpu,cpu:7", "--price", "2"]
    assert main([*arguments, "--json"]) == 0
    one, seven = json.loads(capsys.readouterr().out)
    assert one["machine"]["topology"] == "cpu" and one["verdict"] == seven["verdict"] == FITS
    assert (one["machine"]["devices"], seven["machine"]["devices"]) == (1, 7)


@pytest.mark.parametrize("devices", [1, 4, 8, 12, 16, 64, 256, 512])
@pytest.mark.parametrize("wanted", [0, 1000, 1024, 5000, 8192])
def test_a_suggested_batch_is_whole_ghost_groups_on_every_device(devices, wanted):
    batch, ghost = nearest_batch(devices, wanted)
    assert batch % (devices * ghost) == 0 and 32 <= ghost <= 128
    if devices * 32 <= wanted:
        assert abs(batch - wanted) <= devices * ghost / 2 and 2 * wanted / 3 <= batch <= 1.5 * wanted


def test_suggested_batches_of_known_machines():
    assert nearest_batch(16) == (2048, 128)
    assert nearest_batch(64) == (8192, 128)
    assert nearest_batch(256) == (8192, 32)
    assert nearest_batch(16, 1024) == (1024, 64)
