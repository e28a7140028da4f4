"""The end of a run: the packed file, evaluated as it will be used, ``summary.json`` and the curves."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from binwrn_jax.deploy.export import pack_model
from binwrn_jax.deploy.jax_runtime import load_packed
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import confusion_matrix, evaluate, make_eval_step
from binwrn_jax.nn.registry import is_own, network_name
from binwrn_jax.nn.rules import is_one_bit
from binwrn_jax.parallel import processes as distributed
from binwrn_jax.parallel import sharding
from binwrn_jax.store.model import Model
from binwrn_jax.system.files import replace_file
from binwrn_jax.training.curves import draw_confusion, draw_curves, rate_points
from binwrn_jax.training.evaluate_run import BEST, best_record, predict_split
from binwrn_jax.training.progress import duration
from binwrn_jax.training.setup import TrainingRun, reported_split

PACKED_FILE = "model.safetensors"
PROOF_IMAGES = 64  # test images for the comparison of the packed file with the network


def finish_run(run: TrainingRun) -> dict[str, Any]:
    """Packs the trained network, writes the summary and the curves, and tells the user.

    Returns:
      The content of ``summary.json``.
    """
    packed = _pack(run) if is_one_bit(run.config.model.weights) or is_own(run.config.model) else {}
    if run.config.log.to:
        _draw_confusion(run)
    summary: dict[str, Any]
    summary, drawn = distributed.broadcast_from_primary(lambda: write_summary(run, packed))
    run.progress.print_line(
        f"done: test error {summary['test_error']:.2f} % after {run.config.epochs} epochs, "
        f"{duration(summary['seconds'])}; see {run.workdir / 'summary.json'}"
        + (" and curves.png" if drawn else "")
    )
    return summary


def _pack(run: TrainingRun) -> dict[str, Any]:
    """Writes the file to deploy, one bit per weight, proven equal; its size and error, or nothing."""
    path = run.workdir / PACKED_FILE
    if not distributed.broadcast_from_primary(lambda: _write_packed(run)):
        return {}
    network, everywhere = load_packed(path), sharding.replicated(run.mesh)
    step = jax.jit(make_eval_step(network), out_shardings=everywhere)
    result = evaluate(step, sharding.put(network.weights, everywhere), run.test_data.in_order())
    size = path.stat().st_size
    run.progress.print_line(f"{path}: {size:,} bytes, test error {result['error']:.2f} %")
    return {"packed_test_error": result["error"], "packed_bytes": size}


def _write_packed(run: TrainingRun) -> bool:
    config, spec = run.config, run.resolved.dataset
    try:
        proof = run.dataset.arrays(reported_split(config, spec), PROOF_IMAGES).images
        network = run.resolved.network
        pack_model(run.workdir / "model", run.workdir / PACKED_FILE, proof, network)
    except UserError as failure:  # the training diverged, for example
        run.progress.print_line(f"no packed file: {failure}")
        return False
    run.log.artifact(run.workdir / PACKED_FILE)
    return True


def _draw_confusion(run: TrainingRun) -> None:
    """Draws ``confusion.png`` of the test split, for the loggers."""
    model = Model.load(run.workdir / "model", network=run.resolved.network)
    variables = sharding.put(dict(model.variables), sharding.replicated(run.mesh))
    logits, labels = predict_split(run, variables, run.test_data, "confusion matrix:")
    if not distributed.is_primary():
        return
    path, spec = run.workdir / "confusion.png", run.resolved.dataset
    title = f"{spec.name} {reported_split(run.config, spec)}"
    _draw_and_log(
        run, path, lambda: draw_confusion(path, confusion_matrix(logits, labels), spec.class_names, title)
    )


def write_summary(run: TrainingRun, packed: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Writes ``summary.json`` and, where matplotlib is installed, ``curves.png``.

    Args:
      run: finished.
      packed: ``packed_test_error`` and ``packed_bytes``, or nothing where there is no packed file.

    Returns:
      The content of ``summary.json``; whether the curves were drawn.
    """
    config, records, dataset = run.config, run.log.records, run.resolved.dataset.name
    tests, epochs, train = ([r for r in records if r["kind"] == kind] for kind in ("eval", "epoch", "train"))
    rates = [record["images_per_s"] for record in train if record["images_per_s"]]
    network = network_name(config.model)
    best = best_record(records) if config.checkpoint.best else None
    summary = {
        "dataset": dataset,
        "network": network,
        "weights": config.model.weights,
        "seed": config.seed,
        "epochs": config.epochs,
        "steps": run.step,
        "test": {k: v for k, v in tests[-1].items() if k not in ("kind", "step", "seconds", "cycle_end")},
        "test_error": tests[-1]["error"],
        "test_error_at_cycle_ends": {str(r["epoch"]): r["error"] for r in tests if r["cycle_end"]},
        "train_error": epochs[-1]["train_error"] if epochs else None,  # none where the log was lost
        "seconds": tests[-1]["seconds"],
        "images_per_s": statistics.median(rates) if rates else None,
        "devices": run.environment["devices"],
        "processes": run.environment["processes"],
        "processor": run.environment["processor"],
        "cores": run.environment["cores"],
        "commit": run.environment["commit"],
        **packed,
    }
    if best:
        keys = ("epoch", "validation_error", "error")
        summary["best"] = {"model": BEST, **{key: best[key] for key in keys}}
    title = f"{dataset}, {network} {config.model.weights}, seed {config.seed}"
    drawn = _draw(run, f"{title}: test error {summary['test_error']:.2f} %")
    replace_file(run.workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    run.log.artifact(run.workdir / "summary.json")
    return summary, drawn


def _draw(run: TrainingRun, title: str) -> bool:
    path, resolved = run.workdir / "curves.png", run.resolved
    restarts = sorted(resolved.cycle_ends)
    steps, rates = rate_points(jax.jit(jax.vmap(resolved.learning_rate)), resolved.total_steps, restarts)
    rate = steps / resolved.steps_per_epoch, rates
    return _draw_and_log(run, path, lambda: draw_curves(path, run.log.records, title, rate))


def _draw_and_log(run: TrainingRun, path: Path, draw: Callable[[], None]) -> bool:
    """Draws a picture and gives it to the loggers; without matplotlib says so and gives False."""
    try:
        draw()
    except UserError as missing:
        logging.getLogger(__name__).info("%s", missing)
        return False
    run.log.artifact(path)
    return True
