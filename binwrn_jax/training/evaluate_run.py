"""An evaluation during a run: batch-norm moments, test error, and the current model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from binwrn_jax.data.open import Batches, open_batches
from binwrn_jax.evaluation import evaluate, fit_temperature
from binwrn_jax.parallel import processes as distributed
from binwrn_jax.parallel import sharding
from binwrn_jax.store.description import Description
from binwrn_jax.store.model import Model
from binwrn_jax.training.config import config_sha256
from binwrn_jax.training.moments import dataset_moments
from binwrn_jax.training.setup import TrainingRun, reported_split, streaming

BEST = "best"  # folder of the model with the least validation error


def is_due(run: TrainingRun) -> bool:
    """Whether an evaluation belongs to the present step."""
    epoch_end = run.step > 0 and run.step % run.resolved.steps_per_epoch == 0
    return run.step in run.resolved.cycle_ends or bool(
        epoch_end and (run.config.eval.every_epoch or run.config.checkpoint.best)
    )


def evaluate_run(run: TrainingRun) -> None:
    """Measures the error, writes ``model/`` and a record, and tells the user.

    Raises:
      Stopped: a signal came in the middle; nothing has been written.
    """
    run.clock.pause()
    step, epoch = run.step, run.step // run.resolved.steps_per_epoch
    variables = evaluation_variables(run)
    result = measure_split(run, variables, run.test_data, "test")
    if run.config.eval.crops > 1 and step >= run.resolved.total_steps:
        result |= _measure_crops(run, variables)
    validation: dict[str, Any] | None = None
    other: dict[str, Any] = {}
    if run.validation_data is not None:
        validation = measure_split(run, variables, run.validation_data, "validation")
        result["validation_error"] = validation["error"]
        other["temperature"] = calibrate(run, variables, run.validation_data)
    cycle_end = step in run.resolved.cycle_ends
    if distributed.is_primary():
        model = Model(run.resolved.network, variables, describe_model(run, result, other))
        model.save(run.workdir / "model")
        if run.config.checkpoint.best and validation is not None and _is_best(run, validation["error"]):
            model.save(run.workdir / BEST)
    run.log.write(
        "eval",
        step,
        epoch=epoch,
        seconds=run.clock.seconds,
        cycle_end=cycle_end,
        split=reported_split(run.config, run.resolved.dataset),
        **result,
    )
    run.progress.print_line(
        f"epoch {epoch}: test error {result['error']:.2f} % ({result['n'] - result['correct']} of "
        f"{result['n']}), loss {result['loss']:.4f}"
        + (f"; validation error {validation['error']:.2f} %" if validation else "")
        + ("; end of cycle" if cycle_end else "")
    )


def evaluation_variables(run: TrainingRun) -> dict[str, Any]:
    """The parameters that the recipe evaluates, with batch-norm moments of their own (section 3.2.1)."""
    params = run.resolved.recipe.evaluation_params(run.state)
    variables = {"params": params, "batch_stats": run.state.batch_stats}
    if run.config.moments != "dataset":
        return variables
    count = run.resolved.steps_per_epoch
    first = (run.step // count) * count
    batches = ((position, run.data.batch(position)) for position in range(first, first + count))
    moments = dataset_moments(
        run.programs.moments_step, variables, with_stop_check(run, batches, count, "batch-norm moments:")
    )
    return {**variables, "batch_stats": moments}


def measure_split(run: TrainingRun, variables: dict[str, Any], data: Batches, name: str) -> dict[str, Any]:
    """Exact metrics of the present network over a split, see `binwrn_jax.evaluation.summarise`."""
    batch = sharding.BatchSplit(run.mesh, run.config.eval.batch_size).padded
    batches = with_stop_check(run, data.in_order(), -(-data.size // batch), f"{name}:")
    return dict(evaluate(run.programs.eval_step, variables, batches))


def _measure_crops(run: TrainingRun, variables: dict[str, Any]) -> dict[str, Any]:
    """Error, top-5 error and loss over several crops of each test image (section 3.3)."""
    config, spec = run.config, run.resolved.dataset
    crops = config.eval.crops
    whole = sharding.BatchSplit(run.mesh, config.eval.batch_size).padded
    batch = sharding.BatchSplit(run.mesh, -(-whole // crops)).padded
    data = open_batches(
        run.dataset,
        reported_split(config, spec),
        run.mesh,
        batch,
        crops=crops,
        **streaming(config),
    )
    batches = with_stop_check(run, data.in_order(), -(-data.size // batch), f"{crops} crops:")
    averaged = evaluate(run.programs.eval_step, variables, batches)
    run.progress.print_line(
        f"{crops} crops: test error {averaged['error']:.2f} %, top-5 {averaged['top5_error']:.2f} %"
    )
    return {f"crops_{key}": averaged[key] for key in ("error", "top5_error", "loss")}


def predict_split(
    run: TrainingRun, variables: dict[str, Any], data: Batches, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 ``[N, classes]`` and labels ``[N]`` of a split; ``what`` is told to the user."""
    parts = []
    batch = sharding.BatchSplit(run.mesh, run.config.eval.batch_size).padded
    for inputs in with_stop_check(run, data.in_order(), -(-data.size // batch), what):
        logits, labels, mask = map(np.asarray, run.programs.logits_step(variables, inputs))
        parts.append((logits[mask], labels[mask]))
    logits, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return logits, labels


def calibrate(run: TrainingRun, variables: dict[str, Any], data: Batches) -> float:
    """The temperature that fits the probabilities of the present network, see `fit_temperature`."""
    return fit_temperature(*predict_split(run, variables, data, "temperature:"))


def describe_model(run: TrainingRun, result: dict[str, Any], other: dict[str, Any]) -> Description:
    """The description of ``model/``; ``other`` are further fields."""
    config, spec = run.config, run.resolved.dataset
    return Description(
        num_classes=spec.num_classes,
        image_shape=spec.image_shape,
        model=config.model.to_dict(),
        dataset=spec.name,
        class_names=spec.class_names,
        input={"resize": spec.resize},
        epoch=run.step // run.resolved.steps_per_epoch,
        step=run.step,
        test={"split": reported_split(config, spec), **result},
        config_sha256=config_sha256(config),
        other=other,
    )


def _is_best(run: TrainingRun, error: float) -> bool:
    """Whether no earlier evaluation had a validation error as low; of equal ones the first stays."""
    earlier = [record.get("validation_error") for record in run.log.of_kind("eval")]
    return all(error < other for other in earlier if other is not None)


def best_record(records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation with the least validation error, the first of equal ones; None if there is none."""
    found = [r for r in records if r["kind"] == "eval" and r.get("validation_error") is not None]
    return min(found, key=lambda record: float(record["validation_error"]), default=None)


def with_stop_check(run: TrainingRun, batches: Iterable[Any], count: int, what: str) -> Iterator[Any]:
    """The batches; checks for signals and updates the progress line before each.

    Raises:
      Stopped: a signal came.
    """
    for done, batch in enumerate(batches):
        run.stop.check()
        run.progress.update_status(f"{what} {done}/{count} batches")
        yield batch
