"""All configuration fields with their defaults, and the spec words that pick a row of a table."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from binwrn_jax.data.catalog import lookup
from binwrn_jax.data.dataset import DatasetInfo, ImageOptions
from binwrn_jax.data.jpeg import BOXES, CROPS
from binwrn_jax.data.open import is_own, open_dataset
from binwrn_jax.errors import UserError
from binwrn_jax.nn.registry import create_network, default_fields
from binwrn_jax.nn.rules import RULES as WEIGHT_RULES
from binwrn_jax.nn.rules import clips_latent
from binwrn_jax.training.augment import AUGMENTATIONS
from binwrn_jax.training.moments import RULES as MOMENT_RULES
from binwrn_jax.training.optimizer import sgd
from binwrn_jax.training.schedules import (
    SCALINGS,
    Schedule,
    batch_factor,
    cycle_ends,
    scaled,
    sgdr,
    step_decay,
)

# Changing these between two starts of a run does not change what it computes, but for rounding.
FREE_FIELDS = (
    "data.dir",
    "data.stream",
    "data.workers",
    "data.prefetch",
    "checkpoint",
    "log",
    "eval.batch_size",
    "devices",
    "accumulate",
    "profile",
)


def base_config() -> ConfigDict:
    """Every field that exists. The defaults are the paper's text for CIFAR-10, network 20-4."""
    return ConfigDict(
        {
            "seed": 0,
            "data": {
                "name": "cifar10",
                # Of own images, see docs/own-data.md and `binwrn_jax.data.dataset.ImageOptions`.
                "size": 0,  # side of the images that the network sees; 0 is the size that all of them have
                "channels": 0,  # 1 is grey, 3 RGB, 0 grey if all images are
                "resize": "bilinear",  # or 'center_crop'
                "stream": "auto",  # 'yes' reads from disk at each step, 'no' keeps all on the devices
                "skip_broken": False,  # leave out images that cannot be decoded
                "image_column": "",  # of hf: and tfds:, where there are several
                "label_column": "",
                "dir": "",  # prepared TFDS data; else TFDS_DATA_DIR, else ~/tensorflow_datasets
                "train_split": "",  # a TFDS split such as 'train[:5000]'; '' is the data set's own
                "test_split": "",
                # Of streamed data (ImageNet): processes that decode beside each training process, 0: its own
                # threads, -1: a process for each core; and batches to have ready ahead of the step.
                "workers": -1,
                "prefetch": 4,
            },
            "model": default_fields(),
            "batch_size": 125,  # of one update, over all devices and micro-batches
            "accumulate": 1,  # micro-batches that one update is computed in, one after another
            "epochs": 126,
            "augmentation": "flip_crop",
            "schedule": {
                "name": "sgdr",  # or 'step', the comparison of Fig. 6
                "peak": 0.1,
                "floor": 1e-4,
                "first_cycle": 2,
                "rates": (0.1, 0.01, 0.001),
                "drops": (85, 170),
                # For other batch sizes, see `binwrn_jax.training.schedules.scaled`.
                "scaling": "none",  # or 'linear', 'sqrt'
                "reference_batch": 125,  # for which the rates above are meant
                "warmup_epochs": 0.0,
            },
            "optimizer": {"momentum": 0.9, "weight_decay": 5e-4, "reset_momentum": True},
            "moments": "dataset",
            # crops: 25 evaluates the last network on 5 scales x 5 positions besides (streamed data only)
            "eval": {"every_epoch": False, "batch_size": 500, "crops": 1},
            "init_from": "",  # a model to start from: a finished workdir or an imported model
            "devices": 0,  # 0: all that JAX sees
            "checkpoint": {"every_steps": 500, "keep": 2},
            "log": {"every_steps": 50, "tensorboard": False},
            "profile": False,  # trace a few steps into the workdir
        }
    )


def parse_spec(config: ConfigDict, spec: str, extra: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Applies the words after the colon of ``--config=configs/cifar10.py:20-4,1bit,cutout``.

    Words are separated by commas: the network as depth-width (``20-10``), a weight rule
    (``1bit``, ``32bit``, ``bwn``, ``bwn_layer``, ``binaryconnect``) and any of

    * ``cutout``: the third augmentation (``++`` in Table 1),
    * ``plain``: no skip connections (appendix B),
    * ``learnbn``: learn all BN scales and offsets (Fig. 6), with running BN moments: those after training
      are for layers without (section 3.2.1),
    * ``step``: the step schedule of Fig. 6 instead of warm restarts,
    * ``nobn``: the follow-up without batch norm (arXiv 1907.06916), temperature 40,
    * ``matlab``: the MATLAB version where it differs from the text (rate down to 1e-5),
    * ``keras``: the Keras version (``same`` padding, no input ReLU, rate down to 1e-5, momentum
      kept at restarts, running BN moments),
    * ``bf16``: bfloat16 activations.

    Args:
      config: changed in place.
      spec: the words, or ''.
      extra: further words of one config file, each with the fields that it sets.

    Raises:
      UserError: unknown word; the message lists those that exist.
    """
    cutout = "flip_crop_cutout" if "flip" in config.augmentation else "crop_cutout"
    words: dict[str, Mapping[str, Any]] = {
        **{rule: {"model.weights": rule} for rule in WEIGHT_RULES},
        "cutout": {"augmentation": cutout},
        "plain": {"model.plain": True},
        "learnbn": {"model.affine": True, "moments": "running"},
        "step": {"schedule.name": "step"},
        "nobn": {"model.norm": "none", "model.temperature": 40.0, "model.input_relu": False},
        "matlab": {"schedule.floor": 1e-5},
        "keras": {
            "model.padding": "same",
            "model.input_relu": False,
            "schedule.floor": 1e-5,
            "optimizer.reset_momentum": False,
            "moments": "running",
        },
        "bf16": {"model.dtype": "bfloat16"},
        **(extra or {}),
    }
    for word in filter(None, (part.strip() for part in spec.split(","))):
        network = re.fullmatch(r"(\d+)-(\d+(?:\.\d+)?)", word)
        if network:
            config.model.depth, config.model.width = int(network[1]), float(network[2])
        elif word in words:
            config.update_from_flattened_dict(words[word])
        else:
            near = difflib.get_close_matches(word, words, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(
                f"unknown spec word {word!r}{hint}: use a network such as 20-4, {', '.join(words)}"
            )


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted field name and value."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def nearest_field(config: ConfigDict, name: str) -> str:
    """A hint for a mistyped field: `` (did you mean 'seed'?)``, or the fields there are."""
    fields = [field for field, _ in flatten(config)]
    near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    if not near:  # the right name in the wrong group
        near = [field for field in fields if field.split(".")[-1] == name.split(".")[-1]][:1]
    return f" (did you mean {near[0]!r}?)" if near else f": the fields are {', '.join(fields)}"


def to_json(config: ConfigDict) -> str:
    """The resolved configuration as indented JSON."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def config_sha256(config: Mapping[str, Any]) -> str:
    """A hash of what a run computes: the same for two configurations whose results are the same.

    It covers the fields that affect results (all but `FREE_FIELDS`), without those that have their default,
    so that a new field changes no hash. Of paths, in ``init_from`` and in the name of a data set of the
    user's own (``folder:PATH``), only the last part counts: data may lie elsewhere on another machine.
    """
    defaults = dict(flatten(json.loads(to_json(base_config()))))
    fields = dict(flatten(json.loads(json.dumps(ConfigDict(config).to_dict()))))
    counted = {
        name: value
        for name, value in fields.items()
        if not is_free(name) and (name not in defaults or value != defaults[name])
    }
    for name in ("init_from", "data.name"):
        if name in counted:
            counted[name] = _without_folders(counted[name])
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def _without_folders(name: str) -> str:
    """``runs/a/model`` as ``a`` (the model of a workdir); ``folder:/data/cats`` as ``folder:cats``."""
    kind, colon, path = name.rpartition(":")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) > 1 and parts[-1] == "model":
        parts.pop()
    return kind + colon + (parts[-1] if parts else "")


def is_free(field: str, free: tuple[str, ...] = FREE_FIELDS) -> bool:
    """Whether a field by its dotted name is one of `free`, or in a group of them."""
    return any(field == name or field.startswith(name + ".") for name in free)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], free: tuple[str, ...] = FREE_FIELDS
) -> list[str]:
    """What two resolved configurations disagree on, ``field: old -> new``, but for the ``free`` fields.

    A field that one of them does not have, as an earlier version wrote it, has its default there.
    """
    defaults, before, after = (
        dict(flatten(json.loads(json.dumps(c, sort_keys=True)))) for c in (base_config().to_dict(), old, new)
    )
    values = {
        field: [c.get(field, defaults.get(field, "absent")) for c in (before, after)]
        for field in sorted(before.keys() | after.keys())
    }
    return [
        f"{field}: {theirs} -> {ours}"
        for field, (theirs, ours) in values.items()
        if theirs != ours and not is_free(field, free)
    ]


def image_options(config: ConfigDict) -> ImageOptions:
    """How own images are read; those that are cropped as they are decoded are always streamed."""
    data = config.data
    cropped = is_own(data.name) and (config.augmentation in BOXES or config.eval.crops > 1)
    return ImageOptions(
        size=data.size,
        channels=data.channels,
        resize=data.resize,
        stream="yes" if cropped else data.stream,
        skip_broken=data.skip_broken,
        image_column=data.image_column,
        label_column=data.label_column,
    )


def dataset_info(config: ConfigDict) -> DatasetInfo:
    """The facts about the data set of a configuration: no file is read, but for own images.

    Raises:
      UserError: there is no such data set, or own images cannot be used.
    """
    if is_own(config.data.name):
        return open_dataset(config.data.name, config.data.dir or None, image_options(config)).info
    return lookup(config.data.name)


def _check_data(config: ConfigDict) -> None:
    """Refuses an unknown data set, and crops of images that are small or kept on the devices."""
    name = config.data.name
    if is_own(name):
        large, why = config.data.stream != "no", "data.stream is 'no'"
    else:
        large, why = lookup(name).streamed, f"{name} is not"
    for field, value in (("augmentation", config.augmentation), ("eval.crops", config.eval.crops)):
        if not large and (value in BOXES or value == CROPS[-1]):
            raise UserError(f"{field} {value!r} is for large images: {why}")


def check(config: ConfigDict) -> None:
    """Refuses values that no run could have.

    Raises:
      UserError: the first mistake found, with what to do.
    """
    _check_data(config)
    create_network(config.model, num_classes=2).check()
    for field, value, choices in (
        ("augmentation", config.augmentation, AUGMENTATIONS),
        ("moments", config.moments, MOMENT_RULES),
        ("schedule.name", config.schedule.name, ("sgdr", "step")),
        ("schedule.scaling", config.schedule.scaling, SCALINGS),
        ("eval.crops", config.eval.crops, CROPS),
    ):
        if value not in choices:
            raise UserError(f"unknown {field} {value!r}: choose one of {', '.join(map(str, choices))}")
    for field, value, least in (
        ("seed", config.seed, 0),
        ("epochs", config.epochs, 1),
        ("eval.batch_size", config.eval.batch_size, 1),
        ("checkpoint.every_steps", config.checkpoint.every_steps, 1),
        ("checkpoint.keep", config.checkpoint.keep, 1),
        ("log.every_steps", config.log.every_steps, 1),
        ("accumulate", config.accumulate, 1),
        ("schedule.first_cycle", config.schedule.first_cycle, 1),
        ("schedule.reference_batch", config.schedule.reference_batch, 1),
        ("schedule.warmup_epochs", config.schedule.warmup_epochs, 0),
        ("model.ghost_size", config.model.ghost_size, 0),
        ("devices", config.devices, 0),
        ("data.workers", config.data.workers, -1),
        ("data.prefetch", config.data.prefetch, 1),
    ):
        if not value >= least:
            raise UserError(f"{field} is {value}: it must be at least {least}")
    if config.seed >= 2**32:  # what a PRNG key holds
        raise UserError(f"seed is {config.seed}: it must be below 2**32")
    s, optimizer = config.schedule, config.optimizer
    if not 0 <= s.floor <= s.peak < math.inf or not s.peak > 0:
        raise UserError(
            f"schedule.peak is {s.peak} and schedule.floor {s.floor}: the rate falls from the peak, which is "
            "positive, to the floor, which is neither negative nor above it"
        )
    if not all(0 <= rate < math.inf for rate in s.rates):
        raise UserError(f"schedule.rates are {s.rates}: they must be neither negative nor infinite")
    if list(s.drops) != sorted(set(s.drops)) or any(drop < 1 for drop in s.drops):
        raise UserError(f"schedule.drops are {s.drops}: they must be ascending epochs from 1 on")
    if not 0 <= optimizer.momentum < 1:
        raise UserError(f"optimizer.momentum is {optimizer.momentum}: it must be from 0 to below 1")
    if not 0 <= optimizer.weight_decay < math.inf:
        raise UserError(f"optimizer.weight_decay is {optimizer.weight_decay}: it must not be negative")


def restarts(config: ConfigDict) -> tuple[int, ...]:
    """Epochs at whose end a cycle of the learning rate ends, the last epoch included."""
    if config.schedule.name == "step":
        return (*(drop for drop in config.schedule.drops if drop < config.epochs), config.epochs)
    return cycle_ends(config.epochs, config.schedule.first_cycle)


def build_schedule(config: ConfigDict, steps_per_epoch: int) -> Schedule:
    """The learning rate by step."""
    s = config.schedule
    if s.name == "step":
        schedule = step_decay(steps_per_epoch, s.rates, s.drops)
    else:
        schedule = sgdr(config.epochs, steps_per_epoch, s.peak, s.floor, s.first_cycle)
    factor = batch_factor(config.batch_size, s.reference_batch, s.scaling)
    return scaled(schedule, factor, round(s.warmup_epochs * steps_per_epoch))


def build_optimizer(config: ConfigDict, steps_per_epoch: int) -> Any:
    """The optax transformation with the configured schedule, decay and momentum resets."""
    resets: tuple[int, ...] = ()
    if config.schedule.name == "sgdr" and config.optimizer.reset_momentum:
        resets = tuple(end * steps_per_epoch for end in restarts(config)[:-1])
    return sgd(
        build_schedule(config, steps_per_epoch),
        config.optimizer.momentum,
        config.optimizer.weight_decay,
        resets,
        clip=clips_latent(config.model.weights),
    )
