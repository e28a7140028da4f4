"""The narrated run: from a configuration and a folder to a trained, evaluated network."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from binwrn_jax.data.open import open_batches, open_dataset
from binwrn_jax.deploy.export import pack_model
from binwrn_jax.deploy.jax_runtime import load_packed
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import evaluate, make_eval_step
from binwrn_jax.graph import cost
from binwrn_jax.nn.registry import create_network
from binwrn_jax.nn.rules import is_one_bit
from binwrn_jax.parallel import processes as distributed
from binwrn_jax.parallel import sharding
from binwrn_jax.parallel.signals import Stopped, StopRequest
from binwrn_jax.store.checkpoints import Checkpoints
from binwrn_jax.store.description import Description
from binwrn_jax.store.model import Model, load_model
from binwrn_jax.system.files import replace_file
from binwrn_jax.training import config as configs
from binwrn_jax.training import metrics, records
from binwrn_jax.training.moments import dataset_moments
from binwrn_jax.training.profile import StepTrace
from binwrn_jax.training.state import TrainState, init_state
from binwrn_jax.training.step import jit_train_step, make_moments_step
from binwrn_jax.training.summary import write_summary
from binwrn_jax.training.workdir import check_same, claim_workdir, describe_environment, locked, write_config

# Steps that may be under way on the device while the host prepares the next ones.
IN_FLIGHT = 2

PACKED_FILE = "model.safetensors"
PROOF_IMAGES = 64  # test images on which the packed file is compared with the network


def initial_params(state: TrainState, path: Path, model: ConfigDict) -> TrainState:
    """The state with the weights and moments of a trained model (``config.init_from``).

    Raises:
      UserError: it has other shapes than ``state``, or conventions other than those of ``model``, the
        fields of the config.
    """
    variables, description = load_model(path)
    mine = jax.tree.map(lambda x: x.shape, state.variables)
    theirs = jax.tree.map(lambda x: x.shape, dict(variables))
    if jax.tree.structure(mine) != jax.tree.structure(theirs) or mine != theirs:
        raise UserError(f"init_from {path} is of another network: give the same spec as it was trained with")
    # What no shape tells, and trained weights depend on.
    for field in ("padding", "input_relu", "plain"):
        theirs = description["model"][field]
        if theirs != model[field]:
            raise UserError(
                f"init_from {path} has model.{field} {theirs!r}, this run {model[field]!r}: "
                f"give --config.model.{field}={theirs}"
            )
    return state.replace(params=variables["params"], batch_stats=variables["batch_stats"])


@dataclasses.dataclass
class Run:
    """What the loop and its evaluations share."""

    config: ConfigDict
    workdir: Path
    progress: metrics.Progress
    stop: StopRequest
    resources: contextlib.ExitStack  # what is to be closed, however the run ends


def train(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains, evaluates and saves one network; called again on its folder, goes on where it stopped.

    Args:
      config: see `binwrn_jax.training.config.base_config`.
      workdir: folder of this run; holds afterwards ``config.json``, ``environment.json``,
        ``metrics.jsonl``, ``checkpoints/``, ``model/``, ``model.safetensors`` (the packed file, of
        1-bit weights), ``curves.png`` and ``summary.json``.

    Returns:
      The content of ``summary.json``.

    Raises:
      UserError: whatever the user can mend; the folder is left as it was.
      Stopped: SIGTERM or Ctrl-C came; the state is saved.
    """
    workdir = Path(workdir)
    configs.check(config)
    check_same(config)
    progress = metrics.Progress(silent=not distributed.is_first())
    with (
        locked(workdir),
        StopRequest() as stop,
        contextlib.ExitStack() as resources,
        distributed.failing_together(),
    ):
        return _train(Run(config, workdir, progress, stop, resources))


def _train(run: Run) -> dict[str, Any]:
    config, workdir, progress, stop = run.config, run.workdir, run.progress, run.stop

    # The devices, and what has to divide over them.
    mesh = sharding.make_mesh(config.devices)
    sharding.check_batch(config.batch_size, config.model.ghost_size, config.accumulate)
    if distributed.process_count() > 1:
        stop.vote = distributed.StopVote(mesh, lag=IN_FLIGHT)

    # The data: small sets whole on each device, large ones streamed from disk.
    dataset = open_dataset(config.data.name, config.data.dir or None, configs.image_options(config))
    spec = dataset.info
    train_split = config.data.train_split or spec.train_split
    test_split = config.data.test_split or spec.test_split
    streaming = {"workers": config.data.workers, "prefetch": config.data.prefetch}
    training = {"seed": config.seed, "augmentation": config.augmentation}
    eval_batch = sharding.BatchSplit(mesh, config.eval.batch_size).padded
    data, test_data = distributed.first_then_others(  # process 0 may have to prepare the data set
        lambda: (
            open_batches(dataset, train_split, mesh, config.batch_size, **training, **streaming),
            open_batches(dataset, test_split, mesh, eval_batch, **streaming),
        )
    )
    run.resources.callback(data.close)
    data.check_trains()
    steps_per_epoch = data.steps_per_epoch
    total_steps = config.epochs * steps_per_epoch
    cycle_ends = {epoch * steps_per_epoch for epoch in configs.restarts(config)}

    # The network and its optimiser; nothing has been written up to here.
    model = create_network(config.model, spec.num_classes)
    optimizer = configs.build_optimizer(config, steps_per_epoch)
    rate = jax.jit(configs.build_schedule(config, steps_per_epoch))
    state = init_state(model, optimizer, spec.image_shape, config.seed)
    if config.init_from:
        state = initial_params(state, Path(config.init_from), config.model)
    distributed.from_first(lambda: claim_workdir(workdir, config, state, len(cycle_ends)))
    state = sharding.put(state, sharding.replicated(mesh))

    # Where an earlier process stopped, if one did.
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep, cycle_ends)
    run.resources.callback(checkpoints.close)
    latest = distributed.from_first(checkpoints.latest)
    if latest is not None:
        state = checkpoints.restore(latest, state)
    step = int(state.step)
    environment = describe_environment()
    log = records.NoLog()
    if distributed.is_first():
        write_config(workdir, config)  # fields that may differ between two starts, such as data.dir
        replace_file(workdir / "environment.json", json.dumps(environment, indent=2) + "\n")
        log = records.MetricsLog(workdir, step, config.log.tensorboard)
    run.resources.callback(log.close)
    weights = sum(
        x.size for path, x in jax.tree_util.tree_leaves_with_path(state.params) if path[-1].key == "kernel"
    )
    progress.say(
        f"{spec.name}: {data.size} training and {test_data.size} test images; "
        f"{config.model.depth}-{config.model.width:g} {config.model.weights}, {weights / 1e6:.2f}M weights; "
        f"{mesh.size} x {environment['devices'][0]}"
        + (f" in {distributed.process_count()} processes" if distributed.process_count() > 1 else "")
        + f"; {config.epochs} epochs of {steps_per_epoch} steps; "
        + (f"resumed at step {step}" if latest is not None else f"new run in {workdir}")
    )
    split = sharding.BatchSplit(mesh, config.batch_size)
    if split.padded != split.size:
        progress.say(str(split))

    # The three programs. One compilation each: all shapes are static.
    everywhere = sharding.replicated(mesh)
    train_step = jit_train_step(config, model, optimizer, mesh, steps_per_epoch, spec.streamed)
    eval_step = jax.jit(make_eval_step(model), out_shardings=everywhere)
    moments_step = jax.jit(
        make_moments_step(model, config.augmentation, config.seed),
        donate_argnums=0,
        in_shardings=(everywhere, everywhere, sharding.inputs(mesh, spec.streamed), everywhere),
        out_shardings=everywhere,
    )

    def interruptible(batches: Iterator[Any], count: int, what: str) -> Iterator[Any]:
        for done, batch in enumerate(batches):
            stop.check()
            progress.show(f"{what} {done}/{count} batches")
            yield batch

    def evaluate_now(step: int) -> None:
        """Moments over the training set, test error, and the model as of now."""
        clock.pause()
        variables = state.variables
        if config.moments == "dataset":
            first = (step // steps_per_epoch) * steps_per_epoch
            positions = range(first, first + steps_per_epoch)
            batches = ((position, data.batch(position)) for position in positions)
            batches = interruptible(batches, steps_per_epoch, "batch-norm moments:")
            variables = {**variables, "batch_stats": dataset_moments(moments_step, variables, batches)}
        result = evaluate(
            eval_step,
            variables,
            interruptible(test_data.in_order(), -(-test_data.size // eval_batch), "test:"),
        )
        if config.eval.crops > 1 and step >= total_steps:
            batch = sharding.BatchSplit(mesh, -(-eval_batch // config.eval.crops)).padded
            crops = open_batches(dataset, test_split, mesh, batch, crops=config.eval.crops, **streaming)
            batches = interruptible(crops.in_order(), -(-crops.size // batch), f"{config.eval.crops} crops:")
            averaged = evaluate(eval_step, variables, batches)
            result |= {f"crops_{key}": averaged[key] for key in ("error", "top5_error", "loss")}
            progress.say(
                f"{config.eval.crops} crops: test error {averaged['error']:.2f} %, "
                f"top-5 {averaged['top5_error']:.2f} %"
            )
        epoch = step // steps_per_epoch
        description = Description(
            num_classes=spec.num_classes,
            image_shape=spec.image_shape,
            model=config.model.to_dict(),
            dataset=spec.name,
            class_names=dataset.info.class_names,
            input={"resize": spec.resize},
            epoch=epoch,
            step=step,
            test={"split": test_split, **result},
            config_sha256=configs.config_sha256(config),
        )
        if distributed.is_first():
            Model(model, variables, description).save(workdir / "model")
        log.write(
            "eval",
            step,
            epoch=epoch,
            seconds=clock.seconds,
            cycle_end=step in cycle_ends,
            split=test_split,
            **result,
        )
        progress.say(
            f"epoch {epoch}: test error {result['error']:.2f} % ({result['n'] - result['correct']} of "
            f"{result['n']}), loss {result['loss']:.4f}" + ("; end of cycle" if step in cycle_ends else "")
        )

    def report(step: int, done: records.Record, since: records.Record) -> None:
        """One training record and progress line, from sums over the steps since the last one."""
        steps = step - since["step"]
        epoch = step / steps_per_epoch
        loss = (done["epoch_loss"] - since["epoch_loss"]) / steps
        if not math.isfinite(loss):
            raise UserError(
                f"the training diverged: the loss is {loss} at step {step}; start anew in another --workdir "
                "with a lower schedule.peak"
            )
        values = {
            "epoch": epoch,
            "loss": loss,
            "error": 100 * (done["epoch_errors"] - since["epoch_errors"]) / (steps * config.batch_size),
            "learning_rate": float(rate(step - 1)),
            **clock.values(),
            "seconds": clock.seconds,
        }
        sums = {name: done[name] for name in ("epoch_loss", "epoch_errors")}  # the next interval's beginning
        log.write("train", step, **values, **sums)
        progress.show(
            f"step {step}/{total_steps}  epoch {epoch:.2f}/{config.epochs}  loss {values['loss']:.4f}  "
            f"error {values['error']:.2f} %  rate {values['learning_rate']:.5f}  "
            f"{clock.rate()}  left {clock.left(total_steps - step)}"
        )

    def save_and_tell(stopped: Stopped) -> None:
        """After a signal: everything up to this step goes to disk."""
        trace.close(step, state)
        log.sync()
        checkpoints.save(step, state)
        checkpoints.wait()
        progress.say(f"stopped by {stopped} at step {step}, saved: run the same command to go on")

    before = log.records[-1].get("seconds", 0.0) if log.records else 0.0
    mfu = cost.mfu_of_image(config.model, spec.num_classes, spec.image_shape, list(mesh.devices.flat))
    clock = metrics.Clock(config.batch_size, before, mfu)
    trace = StepTrace(workdir / "profile", step, config.profile and distributed.is_first(), progress.say)
    evaluated = set(distributed.from_first(lambda: [record["step"] for record in log.of_kind("eval")]))
    # Sums since the last report, whichever process wrote it.
    since = distributed.from_first(lambda: log.last_report(step, steps_per_epoch)) or {
        "step": step,
        "epoch_loss": float(state.epoch_loss) if step % steps_per_epoch else 0.0,
        "epoch_errors": int(state.epoch_errors) if step % steps_per_epoch else 0,
    }
    pending: deque[jax.Array] = deque()
    progress.show("compiling the training step")
    while True:
        # What is due at this step, before the next one.
        trace.at(step, state)
        epoch_end = step > 0 and step % steps_per_epoch == 0
        due = step in cycle_ends or (config.eval.every_epoch and epoch_end)
        if step in cycle_ends or (step > 0 and step % config.checkpoint.every_steps == 0):
            log.sync()
            checkpoints.save(step, state)
        try:
            stop.check()
            if due and step not in evaluated:
                evaluate_now(step)
        except Stopped as stopped:
            save_and_tell(stopped)
            raise
        if step >= total_steps:
            break

        # The step itself.
        with clock.waiting_for_data():
            batch = data.batch(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, step_metrics = train_step(state, batch)
        step += 1

        # The host runs ahead of the device by so much and no more.
        pending.append(step_metrics["loss"])
        if len(pending) > IN_FLIGHT:
            pending.popleft().block_until_ready()

        epoch_end = step % steps_per_epoch == 0
        if epoch_end or step % config.log.every_steps == 0:
            done = {name: value.item() for name, value in jax.device_get(step_metrics).items()}
            clock.measure(step)
            report(step, done, since)
            since = {"step": step, **done}
            if epoch_end:
                log.write(
                    "epoch",
                    step,
                    epoch=step // steps_per_epoch,
                    train_loss=done["epoch_loss"] / steps_per_epoch,
                    train_error=100 * done["epoch_errors"] / (steps_per_epoch * config.batch_size),
                    seconds=clock.seconds,
                )
                since = {"step": step, "epoch_loss": 0.0, "epoch_errors": 0}

    trace.close(step, state)
    checkpoints.wait()

    # The file to deploy: one bit per weight, proven equal, and evaluated as it will be used.
    packed = {}
    path = workdir / PACKED_FILE

    def pack() -> bool:
        try:
            proof = dataset.arrays(test_split, PROOF_IMAGES).images
            pack_model(workdir / "model", path, proof)
        except UserError as failure:  # the training diverged, for example
            progress.say(f"no packed file: {failure}")
            return False
        return True

    if is_one_bit(config.model.weights) and distributed.from_first(pack):
        network = load_packed(path)
        packed_step = jax.jit(make_eval_step(network), out_shardings=everywhere)
        result = evaluate(packed_step, sharding.put(network.weights, everywhere), test_data.in_order())
        packed = {"packed_test_error": result["error"], "packed_bytes": path.stat().st_size}
        progress.say(f"{path}: {packed['packed_bytes']:,} bytes, test error {result['error']:.2f} %")

    summary = distributed.from_first(
        lambda: write_summary(workdir, config, spec.name, environment, log.records, step, packed)
    )
    progress.say(
        f"done: test error {summary['test_error']:.2f} % after {config.epochs} epochs, "
        f"{metrics.duration(summary['seconds'])}; see {workdir / 'summary.json'} and curves.png"
    )
    return summary
