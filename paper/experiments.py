"""Every row of the paper's tables and every curve of its figures as a named experiment.

    for experiment in select(["table1"]): print(experiment.name, experiment.paper)

An experiment is a config file, spec words and overrides: what a user would type for train.py. Each name says
what is trained: data, weights, network, variants: ``c100-1bit-20-10-cutout``. The experiments of scale
``cpu`` have no network in their name: they ask the same questions with one small network and few images.

The tables are the paper's (sections 4 and 5). ImageNet is as its config has it by default, for several
devices, and not with the paper's batch of 125. The data behind Figs. 6 and 7 were not at hand when this was
written: the curves are taken for CIFAR-100 (Fig. 6) and both CIFARs (Fig. 7), 20-4.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import runpy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from binwrn_jax.data.catalog import DATASETS
from binwrn_jax.errors import UserError
from binwrn_jax.graph.cost import training_flops
from binwrn_jax.nn.wide_resnet import WideResNet, architecture
from binwrn_jax.parallel.hardware import PEAKS
from paper.tables import ERRORS, KERAS, MNIST, TABLE1, TABLE2

CHECKOUT = Path(__file__).parent.parent
SCALES = ("full", "cpu")

# FLOP/s that the estimates of hours assume for the convolutions of a training step, of networks that begin
# with fewer than 64 channels and of wider ones. The CPU's are measured, see docs/performance.md: on 2 cores
# (Xeon of the Sapphire Rapids class), float32, batch 125, a step of 20-1 took 204 ms, of 20-4 1,600 ms and of
# 20-10 9,907 ms: 148, 302 and 304 GFLOP/s. The others are guesses: a quarter of the published bfloat16 peak.
WIDE = 64
MACHINES: dict[str, tuple[float, float]] = {
    "CPU": (150e9, 300e9),
    "H200": (0.25 * PEAKS["NVIDIA H200"].bfloat16,) * 2,
    "v5e-8": (0.25 * 8 * PEAKS["TPU v5e"].bfloat16,) * 2,
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One network to be trained.

    Attributes:
      name: unique.
      scale: ``'full'``, the paper's own setting, or ``'cpu'``.
      file: of ``configs/``.
      spec: the words after the colon.
      overrides: fields set besides.
      images: of one training epoch.
      tags: tables and figures that it belongs to: ``'table1'``, ``'fig6'``.
      paper: what the paper reports, in percent: ``error``, ``top5``, and for ImageNet ``error_25_crops`` and
        ``top5_25_crops``; empty for what it shows in a figure only, or does not have.
    """

    name: str
    scale: str
    file: str
    spec: str
    overrides: tuple[tuple[str, Any], ...]
    images: int
    tags: tuple[str, ...]
    paper: Mapping[str, float]

    def config(self) -> ConfigDict:
        """The resolved configuration, seed 0."""
        config: ConfigDict = _config_file(self.file)(self.spec)
        config.update_from_flattened_dict(dict(self.overrides))
        return config

    def arguments(self) -> list[str]:
        """The arguments of train.py."""
        fields = [f"--config.{field}={value}" for field, value in self.overrides]
        return [f"--config=configs/{self.file}:{self.spec}", *fields]

    @property
    def gflop_per_image(self) -> float:
        """Of the convolutions, forward and backward."""
        config = self.config()
        data = DATASETS[config.data.name]
        return (
            _training_flops(config.model.depth, config.model.width, data.num_classes, data.image_shape) / 1e9
        )

    @property
    def images_in_all(self) -> int:
        """Over all epochs."""
        return self.images * self.config().epochs

    def hours(self) -> dict[str, float]:
        """Estimated training time by machine, see `MACHINES`; without evaluation."""
        model = self.config().model
        wide = architecture(model.depth, model.width).channels >= WIDE
        flop = self.images_in_all * self.gflop_per_image * 1e9
        return {machine: flop / rates[wide] / 3600 for machine, rates in MACHINES.items()}


@functools.cache
def _training_flops(depth: int, width: float, num_classes: int, image_shape: tuple[int, int, int]) -> int:
    return training_flops(WideResNet(depth=depth, width=width, num_classes=num_classes), image_shape)


@functools.cache
def _config_file(name: str) -> Any:
    path = CHECKOUT / "configs" / name
    if not path.is_file():
        raise UserError(f"no {path}: experiments need a checkout of the project, with its configs/")
    return runpy.run_path(str(path))["get_config"]


# --- the registry ---------------------------------------------------------------------------------------

FILES = {
    "c10": "cifar10.py",
    "c100": "cifar100.py",
    "svhn": "svhn.py",
    "imagenet32": "imagenet32.py",
    "imagenet": "imagenet.py",
    "mnist": "mnist.py",
    "fashion": "mnist.py",
    "digits": "digits.py",
}
_TRAINS_ON = {
    "c10": ("cifar10", ("train",)),
    "c100": ("cifar100", ("train",)),
    "svhn": ("svhn_cropped", ("train", "extra")),
    "imagenet32": ("imagenet32", ("train",)),
    "imagenet": ("imagenet2012", ("train",)),
    "mnist": ("mnist", ("train",)),
}
IMAGES = {
    data: sum(DATASETS[name].splits[split] for split in splits) for data, (name, splits) in _TRAINS_ON.items()
}

# The small setting: one network, five cycles, and so few images that with 32 bits it overfits, as those of
# the paper do; batches of 50, for enough updates. The drops of the step schedule are at thirds of the epochs,
# as they are in the paper.
CPU_NETWORK, CPU_IMAGES, CPU_EPOCHS = "8-1", 1_000, 62
CPU_OVERRIDES = (
    ("epochs", CPU_EPOCHS),
    ("batch_size", 50),
    ("data.train_split", f"train[:{CPU_IMAGES}]"),
    ("data.test_split", "test[:5000]"),
)
# Ways of training that are not in the paper (docs/recipes.md): 1-bit, as above for half as long. The teacher
# has 32 bits, is the same for all seeds, and is trained first, in the default --workdir.
RECIPE_WORDS = ("smooth", "mixup", "cutmix", "jitter", "lighting", "jitter,lighting", "ema", "cosine")
RECIPE_EPOCHS = 30
TEACHER = "c10-32bit-30epochs"


def _full(
    data: str,
    weights: str,
    network: str,
    epochs: int,
    tags: Sequence[str],
    *words: str,
    errors: Sequence[float] = (),
) -> Experiment:
    return Experiment(
        name="-".join((data, weights.replace("_", "-"), network, *words)),
        scale="full",
        file=FILES[data],
        spec=",".join((network, weights, *words)),
        overrides=(("epochs", epochs),),
        images=IMAGES[data],
        tags=tuple(tags),
        paper=dict(zip(ERRORS, errors, strict=False)),
    )


def _full_scale() -> Iterator[Experiment]:
    for weights in ("32bit", "1bit"):
        for network, (epochs, columns) in TABLE1.items():
            for column, errors in columns.items():
                variant = ("cutout",) if column.endswith("++") else ()
                tags = ["table1", "fig1", "fig5"]
                if network == "20-4" and not variant:
                    tags += ["fig7", "rules"] if weights == "1bit" else ["fig7"]
                error = errors[weights == "1bit"]
                yield _full(column.rstrip("+"), weights, network, epochs, tags, *variant, errors=(error,))
    for data, weights, network, epochs, table2 in TABLE2:
        yield _full(data, weights, network, epochs, ("table2", "fig1"), errors=table2)
    for weights, by_epoch in MNIST.items():
        for epochs, error in by_epoch.items():
            one = _full("mnist", weights, "20-4", epochs, ("mnist", "fig1"), errors=(error,))
            yield dataclasses.replace(one, name=f"{one.name}-{epochs}epoch" + "s" * (epochs > 1))
    for weights in ("32bit", "1bit"):  # the schedule of steps needs 254 epochs, its rival gets the same
        arms: tuple[tuple[str, ...], ...] = ((), ("step",), ("learnbn",), ("step", "learnbn"))
        for words in arms:
            one = _full("c100", weights, "20-4", 254, ("fig6",), *words)
            yield dataclasses.replace(one, name=one.name + "-254epochs")
        for data in ("c10", "c100"):
            released = (24.5,) if (data, weights) == ("c100", "1bit") else ()  # 75.5 %, by the released file
            yield _full(data, weights, "20-4", 126, ("fig7",), "plain", errors=released)
        yield _full("c10", weights, "20-1", 30, ("small", "fig5"), "cutout")
    for weights in ("bwn", "bwn_layer", "binaryconnect"):
        for data in ("c10", "c100"):
            yield _full(data, weights, "20-4", 126, ("rules",))
    for data, by_weights in KERAS.items():
        for weights, (batch_norm, shifted_relu) in by_weights.items():
            yield _full(data, weights, "20-10", 254, ("nobn",), "cutout", "keras", errors=(batch_norm,))
            words = ("cutout", "keras", "nobn")
            one = _full(data, weights, "20-10", 300, ("nobn",), *words, errors=(shifted_relu,))
            # Its notebooks anneal once, without restarts.
            yield dataclasses.replace(one, overrides=(*one.overrides, ("schedule.first_cycle", 300)))


def _cpu(data: str, weights: str, tags: Sequence[str], *words: str) -> Experiment:
    overrides: tuple[tuple[str, Any], ...] = CPU_OVERRIDES
    network: tuple[str, ...] = (CPU_NETWORK,)
    images = CPU_IMAGES
    if data == "digits":  # whole, and the network of its config
        network, overrides, images = (), (), 1_437
    if "step" in words:
        overrides += (("schedule.drops", (round(CPU_EPOCHS / 3), round(2 * CPU_EPOCHS / 3))),)
    return Experiment(
        name="-".join((data, weights.replace("_", "-"), *words)),
        scale="cpu",
        file=FILES[data],
        spec=",".join((*(("fashion",) if data == "fashion" else ()), *network, weights, *words)),
        overrides=overrides,
        images=images,
        tags=tuple(tags),
        paper={},
    )


def _cpu_scale() -> Iterator[Experiment]:
    for data in ("digits", "mnist", "fashion"):
        for weights in ("32bit", "1bit"):
            yield _cpu(data, weights, ("fig1", "fig5"))
    for weights in ("32bit", "1bit"):
        yield _cpu(
            "c10", weights, ("fig1", "fig5", "fig6", "fig7", "cutout", *(("rules",) * (weights == "1bit")))
        )
        yield _cpu("c10", weights, ("fig1", "fig5", "cutout"), "cutout")
        yield _cpu("c10", weights, ("fig7",), "plain")
        for words in (("step",), ("learnbn",), ("step", "learnbn")):
            yield _cpu("c10", weights, ("fig6",), *words)
    for weights in ("bwn", "bwn_layer", "binaryconnect"):
        yield _cpu("c10", weights, ("rules",))
    for version in ("matlab", "keras"):
        yield _cpu("c10", "1bit", ("conventions",), version)


def _recipes() -> Iterator[Experiment]:
    def arm(weights: str, *words: str, suffix: str = "", **fields: Any) -> Experiment:
        one = _cpu("c10", weights, ("recipes",), *words)
        overrides = dict(one.overrides) | {"epochs": RECIPE_EPOCHS} | fields
        return dataclasses.replace(one, name=one.name + suffix, overrides=tuple(overrides.items()))

    for weights in ("32bit", "1bit"):
        yield arm(weights, suffix=f"-{RECIPE_EPOCHS}epochs")
    for words in RECIPE_WORDS:
        yield arm("1bit", *words.split(","))
    teacher = {"recipe.teacher": f"runs/experiments/cpu/{TEACHER}/seed1"}
    yield arm("1bit", suffix="-teacher", **teacher)


EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in (*_full_scale(), *_cpu_scale(), *_recipes())}


class Comparison(NamedTuple):
    """A claim as a difference of two test errors, ``worse - better``.

    Attributes:
      tag: the figure or table that it belongs to.
      claim: in words.
      worse: name of the experiment that has the larger error if the claim is true; of a claim of no
        difference the variant.
      better: name of the other.
      equal: whether the claim is that the two do not differ.
      ours: whether it is a question of this project, about which the paper claims nothing.
    """

    tag: str
    claim: str
    worse: str
    better: str
    equal: bool = False
    ours: bool = False


def _comparisons() -> Iterator[Comparison]:
    for name, one in EXPERIMENTS.items():
        twin = name.replace("-1bit", "-32bit")
        if "-1bit" in name and twin in EXPERIMENTS and {"fig1", "small"} & set(one.tags):
            yield Comparison("fig1", "one bit costs something against 32", name, twin)
    for weights in ("1bit", "32bit"):
        for start, end in (("c100", "-20-4"), ("c10", "")):
            epochs = "-254epochs" if end else ""
            base, step = f"{start}-{weights}{end}", f"{start}-{weights}{end}-step"
            yield Comparison("fig6", "warm restarts beat steps", step + epochs, base + epochs)
            yield Comparison(
                "fig6", "not learning batch norm is better", base + "-learnbn" + epochs, base + epochs
            )
            yield Comparison("fig6", "both together are better", step + "-learnbn" + epochs, base + epochs)
        for base in (f"c10-{weights}-20-4", f"c100-{weights}-20-4", f"c10-{weights}"):
            yield Comparison("fig7", "residual beats plain", base + "-plain", base)
    for start, end in (("c10", "-20-4"), ("c100", "-20-4"), ("c10", "")):
        claim = "BWN works equally well with one scale per layer"  # section 5.2
        yield Comparison("rules", claim, f"{start}-bwn-layer{end}", f"{start}-bwn{end}", equal=True)
        for rule in ("bwn", "bwn-layer", "binaryconnect"):
            claim = f"the constant scale beats {rule}"
            yield Comparison("rules", claim, f"{start}-{rule}{end}", f"{start}-1bit{end}", ours=True)
    for version in ("matlab", "keras"):
        claim = f"the {version} version's choices change nothing"
        yield Comparison("conventions", claim, f"c10-1bit-{version}", "c10-1bit", equal=True, ours=True)
    for words in (*RECIPE_WORDS, "teacher"):
        name, base = f"c10-1bit-{words.replace(',', '-')}", f"c10-1bit-{RECIPE_EPOCHS}epochs"
        yield Comparison("recipes", f"{words.replace(',', ' and ')} helps", base, name, ours=True)
    for name in EXPERIMENTS:
        base = name.removesuffix("-cutout")
        if base != name and base in EXPERIMENTS:
            yield Comparison("cutout", "cutout helps", base, name)


COMPARISONS: tuple[Comparison, ...] = tuple(_comparisons())


def select(names: Iterable[str], scale: str = "full") -> list[Experiment]:
    """The experiments of a scale that are named, in the order of the registry.

    Args:
      names: names, or tags (``table1``, ``fig6``); empty for all. A name of the paper's scale means at the
        scale ``cpu`` the small experiment that asks the same.
      scale: one of `SCALES`.

    Raises:
      UserError: an unknown name; the message has the nearest one and where to find the list.
    """
    there = [e for e in EXPERIMENTS.values() if e.scale == scale]
    tags = dict.fromkeys(tag for e in there for tag in e.tags)
    known = {e.name for e in there}
    wanted: set[str] = set()
    for name in names:
        small = re.sub(r"-\d+-\d+(\.\d+)?(-\d+epochs?)?", "", name)
        if name in tags:
            wanted |= {e.name for e in there if name in e.tags}
        elif name in known:
            wanted.add(name)
        elif scale == "cpu" and name in EXPERIMENTS and small in known:
            wanted.add(small)
        else:
            raise UserError(_unknown(name, scale, known | set(tags)))
    return [e for e in there if not wanted or e.name in wanted]


def _unknown(name: str, scale: str, known: set[str]) -> str:
    groups = ", ".join(sorted(word for word in known if "-" not in word))
    elsewhere = EXPERIMENTS.get(name)
    if elsewhere and elsewhere.scale != scale:
        what = f"experiment {name!r} exists at --scale {elsewhere.scale} only"
    else:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        what = f"unknown experiment {name!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
    return f"{what}: use a group ({groups}), or a name of `python -m paper list --scale {scale}`"
