"""All configuration fields with their defaults, the values that they may have, and how two differ."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from binwrn_jax.data.catalog import lookup
from binwrn_jax.data.dataset import DatasetInfo, ImageOptions
from binwrn_jax.data.jpeg import BOXES, CROPS
from binwrn_jax.data.open import is_own, open_dataset
from binwrn_jax.errors import UserError
from binwrn_jax.nn.registry import WIDE_RESNET, configured_network, default_fields
from binwrn_jax.nn.wide_resnet import WideResNet
from binwrn_jax.training.augment import AUGMENTATIONS
from binwrn_jax.training.moments import RULES as MOMENT_RULES
from binwrn_jax.training.schedules import SCALINGS, SCHEDULES

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
            "data": _data_fields(),
            "model": {
                "type": WIDE_RESNET,  # or your own, PACKAGE:FUNCTION, see docs/own-network.md
                **default_fields(),
            },
            "batch_size": 125,  # of one update, over all devices and micro-batches
            "accumulate": 1,  # micro-batches that one update is computed in, one after another
            "epochs": 126,
            "augmentation": "flip_crop",
            "recipe": _recipe_fields(),
            "schedule": {
                "name": "sgdr",  # or 'step', the comparison of Fig. 6, or 'cosine', a single cycle
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
            # A model to start from: a workdir, a model folder, a packed file, a released .mat file or a
            # pretrained name, see docs/recipes.md.
            "init_from": "",
            "freeze": "",  # parameters that stay as they are: paths with wildcards, 'conv0/*,bn0/*'
            "devices": 0,  # 0: all that JAX sees
            # best: keep the model with the least validation error in `best/` (data.validation_split)
            "checkpoint": {"every_steps": 500, "keep": 2, "best": False},
            "log": {"every_steps": 50, "to": ""},  # tensorboard, wandb, mlflow, separated by commas
            "profile": False,  # trace a few steps into the workdir
        }
    )


def _data_fields() -> dict[str, Any]:
    """Which images, and how they are read."""
    return {
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
        "validation_split": "",  # chooses the best checkpoint and the temperature; '' is none
        # Of streamed data (ImageNet): processes that decode beside each training process, 0: its own
        # threads, -1: a process for each core; and batches to have ready ahead of the step.
        "workers": -1,
        "prefetch": 4,
    }


def _recipe_fields() -> dict[str, Any]:
    """Recipes beyond the paper, see `binwrn_jax.training.recipes`; 0 or '' turns a field off."""
    return {
        "label_smoothing": 0.0,  # share of each target that all classes get in equal parts
        "mixup": 0.0,  # alpha of the Beta distribution that images and targets are mixed by
        "cutmix": 0.0,  # the same, of the share that a patch has of an image
        "jitter": 0.0,  # magnitude of random changes of colour and shape, 0 to 1
        "lighting": 0.0,  # standard deviation of random steps along the principal colours
        "ema": 0.0,  # decay of the averaged latent weights that are evaluated and saved
        "teacher": "",  # a model folder, workdir or pretrained name to learn from
        "teacher_weight": 0.9,  # share of the teacher in the loss
        "teacher_temperature": 4.0,
    }


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
    """The fields that differ between two configurations, ``field: old -> new``, without the ``free`` ones.

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


# Least and greatest value of the numeric fields.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),  # what a PRNG key holds
    "epochs": (1, 10**6),
    "batch_size": (1, 2**24),
    "eval.batch_size": (1, 2**16),
    "checkpoint.every_steps": (1, 10**9),
    "checkpoint.keep": (1, 10**9),
    "log.every_steps": (1, 10**9),
    "accumulate": (1, 10**9),
    "schedule.first_cycle": (1, 10**6),
    "schedule.reference_batch": (1, 2**24),
    "schedule.warmup_epochs": (0, 10**6),
    "model.ghost_size": (0, 10**9),
    "devices": (0, 10**9),
    "data.workers": (-1, 1024),
    "data.prefetch": (1, 1024),
    "data.size": (0, 2**14),
    "data.channels": (0, 4),
    "recipe.label_smoothing": (0, 0.99),
    "recipe.mixup": (0, 100),
    "recipe.cutmix": (0, 100),
    "recipe.jitter": (0, 1),
    "recipe.lighting": (0, 10),
    "recipe.ema": (0, 0.999999),
    "recipe.teacher_weight": (0, 1),
    "recipe.teacher_temperature": (0.01, 1000),
}


def image_options(config: ConfigDict) -> ImageOptions:
    """The options for own images; images that are cropped while they are decoded are always streamed."""
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
    """The facts about the data set of a configuration; reads no file, except for own images.

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
    if not isinstance(config, ConfigDict):
        raise UserError(f"the configuration is a {type(config).__name__}: take base_config() and change it")
    _check_fields(config)
    _check_data(config)
    network = configured_network(config.model, num_classes=2)
    if isinstance(network, WideResNet):
        network.check()
    for field, value, choices in (
        ("augmentation", config.augmentation, AUGMENTATIONS),
        ("moments", config.moments, MOMENT_RULES),
        ("schedule.name", config.schedule.name, SCHEDULES),
        ("schedule.scaling", config.schedule.scaling, SCALINGS),
        ("eval.crops", config.eval.crops, CROPS),
    ):
        if value not in choices:
            raise UserError(f"unknown {field} {value!r}: choose one of {', '.join(map(str, choices))}")
    _check_optimization(config)
    if config.recipe.ema and config.moments != "dataset":
        raise UserError(
            "recipe.ema averages weights, and running batch-norm moments are not theirs: set moments=dataset"
        )


def _check_fields(config: ConfigDict) -> None:
    """Checks that every field is there, of its type, finite, and within its range."""
    values, fields = dict(flatten(config)), dict(flatten(base_config()))
    for field in values:
        if field not in fields and not field.startswith("model."):  # networks may have fields of their own
            raise UserError(f"unknown config field {field!r}{nearest_field(base_config(), field)}")
    for field, default in fields.items():
        if field not in values:
            raise UserError(f"config field {field} is missing: it is {default!r} by default")
        value = values[field]
        what = _wrong_type(value, default)
        if what:
            raise UserError(f"{field} is {value!r}: it must be {what}")
        parts = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
            raise UserError(f"{field} is {value}: give a finite number")
    for field, (least, most) in RANGES.items():
        value = values[field]
        if value < least:
            raise UserError(f"{field} is {value}: it must be at least {least}")
        if value > most:
            raise UserError(f"{field} is {value}: it must be at most {most}")


def _wrong_type(value: Any, default: Any) -> str:
    """What a field must be, in words, where its value is of another type than its default; '' where not."""

    def is_number(number: Any) -> bool:
        return isinstance(number, int | float) and not isinstance(number, bool)

    match default:
        case bool():
            return "" if isinstance(value, bool) else "true or false"
        case int():
            return "" if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
        case float():
            return "" if is_number(value) else "a number"
        case str():
            return "" if isinstance(value, str) else "a text"
    return "" if isinstance(value, tuple | list) and all(map(is_number, value)) else "a list of numbers"


def _check_optimization(config: ConfigDict) -> None:
    s, optimizer = config.schedule, config.optimizer
    if not 0 <= s.floor <= s.peak or not s.peak > 0:
        raise UserError(
            f"schedule.peak is {s.peak} and schedule.floor {s.floor}: the rate falls from the peak, which is "
            "positive, to the floor, which is neither negative nor above it"
        )
    if any(rate < 0 for rate in s.rates):
        raise UserError(f"schedule.rates are {s.rates}: they must not be negative")
    if list(s.drops) != sorted(set(s.drops)) or any(drop < 1 for drop in s.drops):
        raise UserError(f"schedule.drops are {s.drops}: they must be ascending epochs from 1 on")
    if s.name == "step" and len(s.rates) != len(s.drops) + 1:
        raise UserError(f"{len(s.drops)} schedule.drops need {len(s.drops) + 1} rates, not {len(s.rates)}")
    if not 0 <= optimizer.momentum < 1:
        raise UserError(f"optimizer.momentum is {optimizer.momentum}: it must be from 0 to below 1")
    if optimizer.weight_decay < 0:
        raise UserError(f"optimizer.weight_decay is {optimizer.weight_decay}: it must not be negative")
