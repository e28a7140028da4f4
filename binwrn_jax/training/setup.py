"""Sets up a run before its first step: devices, data, network, state, log and compiled programs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from binwrn_jax.data.dataset import Dataset, DatasetInfo
from binwrn_jax.data.open import Batches, open_batches, open_dataset
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import make_eval_step, make_logits_step
from binwrn_jax.graph import cost
from binwrn_jax.nn import operations
from binwrn_jax.nn.registry import network_name
from binwrn_jax.parallel import processes as distributed
from binwrn_jax.parallel import sharding
from binwrn_jax.parallel.signals import StopRequest
from binwrn_jax.store.checkpoints import Checkpoints
from binwrn_jax.system.files import replace_file
from binwrn_jax.training import config as configs
from binwrn_jax.training import recipes
from binwrn_jax.training.environment import describe_environment
from binwrn_jax.training.initialise import initial_state, open_source
from binwrn_jax.training.loggers import logger_names, open_loggers
from binwrn_jax.training.moments import jit_moments_step
from binwrn_jax.training.profile import StepTrace
from binwrn_jax.training.progress import Clock, Progress
from binwrn_jax.training.records import MetricsLog, NoLog
from binwrn_jax.training.resolve import ResolvedRun, resolve
from binwrn_jax.training.state import TrainState, init_state
from binwrn_jax.training.step import jit_train_step
from binwrn_jax.training.workdir import claim_workdir, write_config

# Steps that may be under way on the device while the host prepares the next ones.
IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a run; one compilation each, since all shapes are static."""

    train_step: Any
    eval_step: Any
    logits_step: Any
    moments_step: Any
    learning_rate: Any


@dataclasses.dataclass
class TrainingRun:
    """The state that the loop, the evaluations and the end of a run share.

    Attributes:
      resolved: everything that follows from the configuration.
      workdir: folder of the run.
      mesh: the devices.
      dataset: where all splits come from.
      data: the training split.
      test_data: the split whose error is reported.
      validation_data: the split that chooses the best model; None if there is none.
      state: what training changes.
      step: updates done.
      resumed: whether an earlier process of this run left a checkpoint.
      checkpoints: writes and reads the state.
      programs: the compiled functions.
      log: ``metrics.jsonl`` and its mirrors.
      clock: seconds and images/s.
      trace: a profile of a few steps.
      environment: versions and hardware.
      progress: the line for the user.
      stop: whether the user or the machine asked for an end.
    """

    resolved: ResolvedRun
    workdir: Path
    mesh: Mesh
    dataset: Dataset
    data: Batches
    test_data: Batches
    validation_data: Batches | None
    state: TrainState
    step: int
    resumed: bool
    checkpoints: Checkpoints
    programs: Programs
    log: MetricsLog
    clock: Clock
    trace: StepTrace
    environment: dict[str, Any]
    progress: Progress
    stop: StopRequest

    @property
    def config(self) -> ConfigDict:
        """All fields of the configuration."""
        return self.resolved.config


def open_run(
    config: ConfigDict, workdir: Path, progress: Progress, stop: StopRequest, resources: contextlib.ExitStack
) -> TrainingRun:
    """Opens everything, and restores the state where an earlier process stopped.

    Args:
      config: checked.
      workdir: folder of the run, which this job holds.
      progress: tells the user.
      stop: of this process; several processes vote.
      resources: gets everything that must be closed when the run ends.

    Raises:
      UserError: an error that the user can mend; nothing has been written then.
    """
    # The devices, and the batch that divides over them.
    mesh = sharding.make_mesh(config.devices)
    resources.enter_context(operations.for_devices(mesh.size))
    sharding.check_batch(config.batch_size, config.model.ghost_size, config.accumulate)
    logger_names(config.log.to)
    if distributed.process_count() > 1:
        stop.vote = distributed.StopVote(mesh, lag=IN_FLIGHT)

    # The data, and the run derived from them and the configuration.
    dataset, data, test_data, validation_data = _open_data(config, mesh)
    resources.callback(data.close)
    resolved = with_teacher(resolve(config, dataset.info, data.size))

    # The state: fresh, of another model, or where an earlier process stopped. From here on files are written.
    state, checkpoints, resumed = _open_state(resolved, dataset.manifest(), mesh, workdir, resources)

    # The log and the progress line.
    step, environment = int(state.step), describe_environment()
    log = _open_log(config, workdir, step, environment)
    resources.callback(log.close)
    return TrainingRun(
        resolved=resolved,
        workdir=workdir,
        mesh=mesh,
        dataset=dataset,
        data=data,
        test_data=test_data,
        validation_data=validation_data,
        state=state,
        step=step,
        resumed=resumed,
        checkpoints=checkpoints,
        programs=compile_programs(resolved, mesh),
        log=log,
        clock=_start_clock(resolved, mesh, log),
        trace=StepTrace(
            workdir / "profile", step, config.profile and distributed.is_primary(), progress.print_line
        ),
        environment=environment,
        progress=progress,
        stop=stop,
    )


def _open_state(
    resolved: ResolvedRun,
    manifest: Mapping[str, Any] | None,
    mesh: Mesh,
    workdir: Path,
    resources: contextlib.ExitStack,
) -> tuple[TrainState, Checkpoints, bool]:
    """The state on the devices, the checkpoints, and whether the state comes from one of them."""
    state = _first_state(resolved)
    distributed.broadcast_from_primary(lambda: claim_workdir(workdir, resolved, state, manifest))
    keep = resolved.config.checkpoint.keep
    checkpoints = Checkpoints(workdir / "checkpoints", keep, resolved.cycle_ends)
    resources.callback(checkpoints.close)
    state = sharding.put(state, sharding.replicated(mesh))
    latest = distributed.broadcast_from_primary(checkpoints.latest)
    if latest is not None:
        state = checkpoints.restore(latest, state)
    return state, checkpoints, latest is not None


def _first_state(resolved: ResolvedRun) -> TrainState:
    """The state before the first step of a new run, on the host."""
    config = resolved.config
    check_memory(resolved)
    state = init_state(resolved.network, resolved.optimizer, resolved.dataset.image_shape, config.seed)
    return initial_state(state, config.init_from, config) if config.init_from else state


def _start_clock(resolved: ResolvedRun, mesh: Mesh, log: MetricsLog) -> Clock:
    before = log.records[-1].get("seconds", 0.0) if log.records else 0.0
    dataset, devices = resolved.dataset, list(mesh.devices.flat)
    dtype = resolved.config.model.dtype
    mfu = cost.mfu_of_image(resolved.network, dataset.image_shape, devices, dtype)
    return Clock(resolved.config.batch_size, before, mfu)


def check_memory(resolved: ResolvedRun) -> None:
    """Refuses a state that is larger than the memory of this computer, before anything is allocated.

    Raises:
      UserError: it is; where the devices are accelerators, their own message comes later.
    """
    shapes = jax.eval_shape(
        lambda: init_state(resolved.network, resolved.optimizer, resolved.dataset.image_shape)
    )
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if jax.default_backend() == "cpu" and needed > memory:
        raise UserError(
            f"the weights and their momentum need {needed / 1e9:.1f} GB, this computer has "
            f"{memory / 1e9:.1f} GB of memory: lower model.width or model.depth"
        )


def reported_split(config: ConfigDict, spec: DatasetInfo) -> str:
    """The split whose error is reported."""
    return str(config.data.test_split or spec.test_split)


class Streaming(TypedDict):
    """How streamed data are read, see `binwrn_jax.data.streamed.StreamedData`."""

    workers: int
    prefetch: int


def streaming(config: ConfigDict) -> Streaming:
    """The fields of a configuration that say how streamed data are read."""
    return {"workers": config.data.workers, "prefetch": config.data.prefetch}


def _open_data(config: ConfigDict, mesh: Mesh) -> tuple[Dataset, Batches, Batches, Batches | None]:
    """The data set and its splits: small ones whole on each device, large ones streamed from disk."""
    dataset = open_dataset(config.data.name, config.data.dir or None, configs.image_options(config))
    spec, options = dataset.info, streaming(config)
    eval_batch = sharding.BatchSplit(mesh, config.eval.batch_size).padded
    split = config.data.validation_split or spec.validation_split
    if config.checkpoint.best and not split:
        raise UserError("checkpoint.best needs a split to choose by: set data.validation_split")

    def open_all() -> tuple[Batches, Batches, Batches | None]:
        training = open_batches(
            dataset,
            config.data.train_split or spec.train_split,
            mesh,
            config.batch_size,
            seed=config.seed,
            augmentation=recipes.paper_recipe(config.augmentation).host_crop,
            **options,
        )
        test = open_batches(dataset, reported_split(config, spec), mesh, eval_batch, **options)
        validation = open_batches(dataset, split, mesh, eval_batch, **options) if split else None
        return training, test, validation

    return dataset, *distributed.primary_first(open_all)  # process 0 may have to prepare them


def with_teacher(resolved: ResolvedRun) -> ResolvedRun:
    """The run with the teacher that its recipe names, whose weights are read here.

    Raises:
      UserError: there is no such model, or it has other images or classes.
    """
    fields, dataset = resolved.config.recipe, resolved.dataset
    if not fields.teacher:
        return resolved
    source = open_source(fields.teacher, resolved.config.model)
    classes, shape = source.description.num_classes, source.description.image_shape
    if classes != dataset.num_classes or shape[2] != dataset.image_shape[2]:
        raise UserError(
            f"recipe.teacher {fields.teacher} has {classes} classes and images of {shape}, {dataset.name} "
            f"{dataset.num_classes} and {dataset.image_shape}: choose a teacher for this data set"
        )
    network, variables = source.network, dict(source.variables)

    def teacher(images: jax.Array) -> Any:
        return network.apply(variables, images)

    recipe = recipes.with_distillation(
        resolved.recipe, teacher, fields.teacher_weight, fields.teacher_temperature
    )
    return dataclasses.replace(resolved, recipe=recipe)


def compile_programs(resolved: ResolvedRun, mesh: Mesh) -> Programs:
    """The jitted functions of a run; each is compiled at its first call."""
    config, streamed = resolved.config, resolved.dataset.streamed
    everywhere = sharding.replicated(mesh)
    return Programs(
        train_step=jit_train_step(resolved, mesh),
        eval_step=jax.jit(make_eval_step(resolved.network), out_shardings=everywhere),
        logits_step=jax.jit(make_logits_step(resolved.network), out_shardings=everywhere),
        moments_step=jit_moments_step(resolved.network, resolved.recipe, config.seed, mesh, streamed),
        learning_rate=jax.jit(resolved.learning_rate),
    )


def _open_log(config: ConfigDict, workdir: Path, step: int, environment: dict[str, Any]) -> MetricsLog:
    """The run's record, and what says how it was made; only process 0 writes."""
    if not distributed.is_primary():
        return NoLog()
    write_config(workdir, config)  # fields that may differ between two starts, such as data.dir
    replace_file(workdir / "environment.json", json.dumps(environment, indent=2) + "\n")
    log = MetricsLog(workdir, step)
    log.mirrors = open_loggers(config.log.to, workdir, dict(configs.flatten(config)), step)
    log.artifact(workdir / "config.json")
    return log


def describe_run(run: TrainingRun) -> str:
    """What this run trains, on what, as one or two lines for the user."""
    config, resolved = run.config, run.resolved
    weights = sum(
        x.size
        for path, x in jax.tree_util.tree_leaves_with_path(run.state.params)
        if path[-1].key == "kernel"
    )
    processes = distributed.process_count()
    line = (
        f"{resolved.dataset.name}: {run.data.size} training and {run.test_data.size} test images; "
        f"{network_name(config.model)} {config.model.weights}, {weights / 1e6:.2f}M weights; "
        f"{run.mesh.size} x {run.environment['devices'][0]}"
        + (f" in {processes} processes" if processes > 1 else "")
        + f"; {config.epochs} epochs of {resolved.steps_per_epoch} steps; "
        + (f"resumed at step {run.step}" if run.resumed else f"new run in {run.workdir}")
    )
    split = sharding.BatchSplit(run.mesh, config.batch_size)
    if split.padded == split.size:
        return line
    groups = config.model.ghost_size
    moved = "; ghost groups span devices, so activations move between them" if groups else ""
    return f"{line}\n{split}{moved}"
