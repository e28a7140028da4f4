"""The narrated run: from a configuration and a folder to a trained, evaluated network."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from binwrn_jax.errors import UserError
from binwrn_jax.parallel import processes as distributed
from binwrn_jax.parallel.signals import Stopped, StopRequest
from binwrn_jax.training.config import check
from binwrn_jax.training.evaluate_run import evaluate_run, is_due
from binwrn_jax.training.finish import finish_run
from binwrn_jax.training.progress import Progress
from binwrn_jax.training.setup import IN_FLIGHT, TrainingRun, describe_run, open_run
from binwrn_jax.training.workdir import check_same, local_folder, locked


def train(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains, evaluates and saves one network; resumes if it is called again on its folder.

    Args:
      config: see `binwrn_jax.training.config.base_config`.
      workdir: folder of this run; holds afterwards ``config.json``, ``environment.json``,
        ``metrics.jsonl``, ``checkpoints/``, ``model/``, ``model.safetensors`` (the packed file, of
        1-bit weights), ``curves.png`` and ``summary.json``.

    Returns:
      The content of ``summary.json``.

    Raises:
      UserError: an error that the user can mend; the folder is left as it was.
      Stopped: SIGTERM or Ctrl-C came; the state is saved.
    """
    folder = local_folder(workdir)
    check(config)
    check_same(config)
    progress = Progress(silent=not distributed.is_primary())
    with (
        locked(folder),
        StopRequest() as stop,
        contextlib.ExitStack() as resources,
        distributed.abort_all_on_error(),
    ):
        run = open_run(config, folder, progress, stop, resources)
        progress.print_line(describe_run(run))
        _train(run)
        run.trace.close(run.step, run.state)
        run.checkpoints.wait()
        return finish_run(run)


def _train(run: TrainingRun) -> None:
    """Steps until the last one, with checkpoints and evaluations in between."""
    resolved, config = run.resolved, run.config
    evaluated = set(
        distributed.broadcast_from_primary(lambda: [record["step"] for record in run.log.of_kind("eval")])
    )
    reported = first_sums(run)
    pending: deque[jax.Array] = deque()
    run.progress.update_status("compiling the training step")
    while True:
        # Work that is due at this step, before the next one.
        run.trace.at(run.step, run.state)
        if run.step in resolved.cycle_ends or (
            run.step > 0 and run.step % config.checkpoint.every_steps == 0
        ):
            run.log.sync()  # a resumed run also continues from the records
            run.checkpoints.save(run.step, run.state)
        try:
            run.stop.check()
            if is_due(run) and run.step not in evaluated:
                evaluate_run(run)
        except Stopped as stopped:
            save_stopped(run, stopped)
            raise
        if run.step >= resolved.total_steps:
            return

        # The step itself.
        with run.clock.waiting_for_data():
            batch = run.data.batch(run.step)
        with jax.profiler.StepTraceAnnotation("train", step_num=run.step):
            run.state, metrics = run.programs.train_step(run.state, batch)
        run.step += 1

        # The limit by which the host runs ahead of the device.
        pending.append(metrics["loss"])
        if len(pending) > IN_FLIGHT:
            pending.popleft().block_until_ready()

        # The report.
        if run.step % resolved.steps_per_epoch == 0 or run.step % config.log.every_steps == 0:
            reported = report(run, metrics, reported)


class Sums(NamedTuple):
    """Sums over the steps of the present epoch, up to a step: losses in nats, and wrong predictions."""

    step: int
    loss: float
    errors: int


def first_sums(run: TrainingRun) -> Sums:
    """The start of the first report of this process: the end of the last report of the run."""
    count = run.resolved.steps_per_epoch
    last = distributed.broadcast_from_primary(lambda: run.log.last_report(run.step, count))
    if last is not None:
        return Sums(last["step"], last["epoch_loss"], last["epoch_errors"])
    return Sums(run.step, float(run.state.epoch_loss), int(run.state.epoch_errors))


def report(run: TrainingRun, metrics: dict[str, jax.Array], since: Sums) -> Sums:
    """One training record and progress line over the steps since the last one; at its end also the epoch's.

    Args:
      run: at the step to report.
      metrics: of that step.
      since: the result of the last report.

    Returns:
      The start of the next report.

    Raises:
      UserError: the training diverged.
    """
    values = {name: value.item() for name, value in jax.device_get(metrics).items()}
    done = Sums(run.step, values["epoch_loss"], values["epoch_errors"])
    run.clock.measure(run.step)
    _report_steps(run, done, since)
    count = run.resolved.steps_per_epoch
    if run.step % count:
        return done
    run.log.write(
        "epoch",
        run.step,
        epoch=run.step // count,
        train_loss=done.loss / count,
        train_error=100 * done.errors / (count * run.config.batch_size),
        seconds=run.clock.seconds,
    )
    return Sums(run.step, 0.0, 0)


def _report_steps(run: TrainingRun, done: Sums, since: Sums) -> None:
    resolved, steps = run.resolved, done.step - since.step
    loss = (done.loss - since.loss) / steps
    if not math.isfinite(loss):
        raise UserError(
            f"the training diverged: the loss is {loss} at step {run.step}; start anew in another --workdir "
            "with a lower schedule.peak"
        )
    values: dict[str, Any] = {
        "epoch": run.step / resolved.steps_per_epoch,
        "loss": loss,
        "error": 100 * (done.errors - since.errors) / (steps * run.config.batch_size),
        "learning_rate": float(run.programs.learning_rate(run.step - 1)),
        **run.clock.values(),
        "seconds": run.clock.seconds,
    }
    # The sums are where the next interval begins, in this process or in one that resumes.
    run.log.write("train", run.step, **values, epoch_loss=done.loss, epoch_errors=done.errors)
    run.progress.update_status(
        f"step {run.step}/{resolved.total_steps}  epoch {values['epoch']:.2f}/{run.config.epochs}  "
        f"loss {loss:.4f}  error {values['error']:.2f} %  rate {values['learning_rate']:.5f}  "
        f"{run.clock.rate()}  left {run.clock.left(resolved.total_steps - run.step)}"
    )


def save_stopped(run: TrainingRun, stopped: Stopped) -> None:
    """After a signal: everything up to this step goes to disk."""
    run.trace.close(run.step, run.state)
    run.log.sync()
    run.checkpoints.save(run.step, run.state)
    run.checkpoints.wait()
    run.progress.print_line(f"stopped by {stopped} at step {run.step}, saved: run the same command to go on")
