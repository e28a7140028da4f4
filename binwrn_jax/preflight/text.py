"""Reports for a person: lines about one machine, a table of several."""

from __future__ import annotations

from collections.abc import Sequence

from binwrn_jax.preflight.report import DOES_NOT_FIT, MAY_FIT, Machine, Report, Step
from binwrn_jax.preflight.suggest import nearest_batch

GIB = 2**30


def number(value: float) -> str:
    """Three digits or all before the point, never an exponent: ``'0.0123'``, ``'4.56'``, ``'12,345'``."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 0.001 or value == 0:
        return f"{value:.3g}"
    return "under 0.001"


def plural(count: int, word: str) -> str:
    """``'1 chip'``, ``'1,000 chips'``; of ``'batch'`` ``'2 batches'``."""
    ending = "" if count == 1 else "es" if word.endswith("batch") else "s"
    return f"{count:,} {word}{ending}"


def duration(seconds: float) -> str:
    """In the unit that a person would choose: ``'230 microseconds'``, ``'1.5 ms'``, ``'28 minutes'``."""
    for limit, unit, name in (
        (1e-6, 1e-9, "nanoseconds"),
        (1e-3, 1e-6, "microseconds"),
        (1.0, 1e-3, "ms"),
        (120.0, 1.0, "seconds"),
        (7200.0, 60.0, "minutes"),
        (48 * 3600.0, 3600.0, "hours"),
    ):
        if seconds < limit:
            return f"{number(seconds / unit)} {name}"
    return f"{number(seconds / 86400)} days"


def traffic(count: float) -> str:
    """Bytes that are sent or moved, decimal: ``'140 MB'``."""
    for limit, unit, name in ((1e3, 1.0, "bytes"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if count < limit:
            return f"{number(count / unit)} {name}"
    return f"{number(count / 1e12)} TB"


def memory(count: float) -> str:
    """Bytes that something occupies, binary: ``'2.61 GiB'``."""
    for limit, unit, name in ((2**10, 1, "bytes"), (2**20, 2**10, "KiB"), (GIB, 2**20, "MiB")):
        if count < limit:
            return f"{number(count / unit)} {name}"
    return f"{count / GIB:,.2f} GiB"


def operations(count: float) -> str:
    """Floating-point operations: ``'66.6 TFLOP'``, ``'950 MFLOP'``."""
    unit, name = next(((u, n) for u, n in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if count >= u), (1e3, "k"))
    return f"{number(count / unit)} {name}FLOP"


def money(amount: float) -> str:
    """``'12.34'``, ``'under 0.01'``."""
    return f"{amount:,.2f}" if amount >= 0.01 or amount == 0 else "under 0.01"


def chip_hours(hours: float) -> str:
    """``'7.3 chip-hours'``, ``'under 0.01 chip-hours'``."""
    return f"{number(hours) if hours >= 0.01 or hours == 0 else 'under 0.01'} chip-hours"


def lines(report: Report) -> list[str]:
    """The report on one machine; the verdict is in the first line."""
    out = [_headline(report)]

    def add(name: str, text: str) -> None:
        out.append(f"{name:14} {text}")

    if report.verdict == DOES_NOT_FIT:
        add("instead", _instead(report))
    run, machine, step = report.run, report.machine, report.step
    groups = f" in ghost groups of {run.ghost_size}" if run.ghost_size else ""
    parts = f", {plural(run.accumulate, 'micro-batch')}" if run.accumulate > 1 else ""
    add(
        "run",
        f"{run.dataset} {run.network} {run.weights}, {run.dtype}, batch {run.batch_size:,}{groups}{parts}; "
        f"{plural(run.epochs, 'epoch')} of {run.train_images:,} images",
    )
    add("machine", _machine(machine))
    if step is None:
        return out
    if report.verdict == DOES_NOT_FIT:
        micro = f" in {plural(step.accumulate, 'micro-batch')}" if step.accumulate > 1 else ""
        add("what follows", f"is about batch {step.batch_size:,}{micro}")
    add("compiled", _compiled(machine, step))
    for name, text in (*_memory(report, step), *_work(machine, step), *_time(report, step)):
        add(name, text)
    return out


def _headline(report: Report) -> str:
    machine, capacity = report.machine, report.capacity
    if machine.missing:
        start = f"roofline only, not compiled for {machine.device_kind} ({machine.missing}): "
    else:
        start = ""
    limit = f" of {memory(capacity)}" if capacity is not None else ""
    if report.verdict == DOES_NOT_FIT:
        assert capacity is not None
        least = "at least " if machine.platform == "cuda" else ""
        return (
            f"{start}DOES NOT FIT: it takes {least}{memory(report.needed)} on each device, "
            f"{memory(report.needed - capacity)} more than the {memory(capacity)} that a program can have"
        )
    if machine.missing:
        return f"{start}may fit: the CPU's program takes {memory(report.needed)}{limit} on each device"
    if report.verdict == MAY_FIT:
        return (
            f"may fit: it takes at least {memory(report.needed)}{limit} on each device, and the workspace of "
            "convolutions, which the GPU itself chooses"
        )
    return f"fits: it takes {memory(report.needed)}{limit} on each device"


def _instead(report: Report) -> str:
    if report.largest_batch is None:
        return "no batch fits: take a machine with more memory, or a smaller network"
    fits = "may fit" if report.machine.platform == "cuda" else "fits"
    text = f"batch {report.largest_batch:,} {fits} (compiled)"
    if report.micro_batches:
        text += (
            f"; so does batch {report.run.batch_size:,} in {report.micro_batches} micro-batches (compiled): "
            f"--config.accumulate={report.micro_batches}"
        )
    return text


def _machine(machine: Machine) -> str:
    slices = f", {machine.slices} slices" if machine.slices > 1 else ""
    if machine.platform == "cpu":
        return f"{machine.topology}: {plural(machine.devices, 'device')} of this machine's processor"
    chip = "GPU" if machine.platform == "cuda" else "chip"
    devices = f", {plural(machine.devices, 'device')}" if machine.devices != machine.chips else ""
    return (
        f"{machine.topology}: {plural(machine.chips, chip)} ({machine.device_kind}){devices}, "
        f"{plural(machine.hosts, 'host')}{slices}"
    )


def _compiled(machine: Machine, step: Step) -> str:
    what = "the CPU instead" if machine.missing else machine.device_kind
    found = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"for {what} in {duration(step.compile_seconds)}; {found}"


def _memory(report: Report, step: Step) -> list[tuple[str, str]]:
    kinds = ("arguments", "outputs", "temporaries", "code")
    parts = ", ".join(f"{kind} {memory(step.memory[kind])}" for kind in kinds if step.memory[kind])
    out = [("memory", f"{memory(step.memory['peak'])} on each device: {parts}")]
    if report.data_on_device:
        out.append(("", f"the training set lies on every device: {memory(report.data_on_device)}"))
    if report.largest_batch and not report.largest_batch_compiled:
        out.append(("largest batch", f"about {report.largest_batch:,}, computed from this one, not compiled"))
    return out


def _work(machine: Machine, step: Step) -> list[tuple[str, str]]:
    on_tpu = machine.compiled_for == "tpu"
    count = f"; the compiler counts {operations(step.compiler_flops)} in all" if on_tpu else ""
    out = [("operations", f"{operations(step.flops)} per step, computed from the convolutions{count}")]
    if step.bytes and machine.compiled_for == machine.platform:
        out.append(
            (
                "bytes",
                f"{traffic(step.bytes)} per step to and from device memory, counted from the program",
            )
        )
    sent = [
        f"{entry['count']} {entry['kind']}, {traffic(entry['bytes'])} per step" for entry in step.collectives
    ]
    least = f", at least {duration(step.speed.links_seconds)}" if sent and step.speed else ""
    out.append(("collectives", "; ".join(sent) + least if sent else "none"))
    if machine.slices > 1:
        out.append(
            (
                "",
                f"the network between the {machine.slices} slices is slower, and not in what follows",
            )
        )
    return out


def _time(report: Report, step: Step) -> list[tuple[str, str]]:
    machine, run, speed = report.machine, report.run, step.speed
    out = []
    if step.activations_travel and run.ghost_size:
        batch, ghost = nearest_batch(machine.devices, run.batch_size, run.ghost_size)
        out.append(
            ("", "activations travel between devices: the ghost groups are no multiple of them; these are:")
        )
        out.append(("", f"--config.batch_size={batch} --config.model.ghost_size={ghost}"))
    if speed is None:
        return out
    parts = [f"compute {duration(speed.compute_seconds)}"]
    if speed.memory_seconds:
        parts.append(f"memory {duration(speed.memory_seconds)}")
    parts.append(f"links {duration(speed.links_seconds)}")
    unknown = "" if speed.memory_seconds else "; memory is not in it"
    out.append(
        (
            "at best",
            f"{duration(speed.step_seconds)} per step, {number(speed.images_per_s)} images/s "
            f"({', '.join(parts)}, at {number(speed.peak_flops / 1e12)} TFLOP/s a device{unknown})",
        )
    )
    steps = run.epochs * (run.train_images // step.batch_size)
    paid = "" if speed.cost is None else f", {money(speed.cost)} in money"
    out.append(
        (
            "whole run",
            f"{plural(steps, 'step')}: at best {duration(3600 * speed.hours)}, "
            f"{chip_hours(speed.chip_hours)}{paid}; twice that at half of the peak",
        )
    )
    if speed.host_images_per_s:
        out.append(
            ("input", f"{number(speed.host_images_per_s)} images/s from each host to keep up with that")
        )
    return out


def comparison(reports: Sequence[Report]) -> list[str]:
    """A table of several machines, the cheapest first; what does not fit comes last."""
    header = (
        "topology",
        "verdict",
        "memory of each device",
        "largest batch",
        "at best",
        "chip-hours",
        "cost",
    )
    ranked = sorted(reports, key=_rank)
    rows = [header, *map(_row, ranked)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    out = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]
    for report in ranked:
        if report.machine.missing:
            name, missing = report.machine.topology, report.machine.missing
            out.append(f"{name}: roofline only, not compiled for it: {missing}")
    return out


def _rank(report: Report) -> tuple[bool, float]:
    speed = report.step.speed if report.step else None
    if speed is None:
        return not report.fits, float("inf")
    return not report.fits, speed.hours if speed.cost is None else speed.cost


def _row(report: Report) -> tuple[str, ...]:
    capacity = f" of {memory(report.capacity)}" if report.capacity is not None else ""
    least = "" if report.machine.compiled_for == "tpu" or report.machine.platform == "cpu" else "at least "
    row = (report.machine.topology, report.verdict, f"{least}{memory(report.needed)}{capacity}")
    largest = "-" if report.largest_batch is None else f"{report.largest_batch:,}"
    speed = report.step.speed if report.step else None
    if not report.fits or speed is None:
        return (*row, largest, "-", "-", "-")
    paid = "-" if speed.cost is None else money(speed.cost)
    hours = number(speed.chip_hours) if speed.chip_hours >= 0.01 else "under 0.01"
    return (*row, largest, duration(3600 * speed.hours), hours, paid)
