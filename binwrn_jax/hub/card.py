"""Model cards: a README for the Hugging Face hub from what a run has recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from binwrn_jax.data.catalog import DATASETS
from binwrn_jax.errors import require
from binwrn_jax.hub.huggingface import MODEL

MARK = "<!-- written by binwrn card -->"
PAPER = "arxiv:1802.08530"
# The hub's names of data sets.
HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "imagenet2012": "ILSVRC/imagenet-1k",
    "mnist": "ylecun/mnist",
    "svhn_cropped": "ufldl-stanford/svhn",
}
# The hub's names of licences, by the text in small letters. Others are given as they are, as 'other'.
LICENSES = {
    name: name
    for name in (
        *("apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
        *("cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "lgpl-3.0", "mit", "mpl-2.0", "unlicense"),
    )
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a card says of a model.

    Attributes:
      repository: ``OWNER/NAME`` on the hub.
      description: the fields of the packed file, see `binwrn_jax.store.description.Description`.
      weights: number of weights of one bit.
      file_bytes: size of the packed file.
      config: of the run, by dotted name; empty for a model that no run of this package made.
      summary: of the run; empty as well.
    """

    repository: str
    description: Mapping[str, Any]
    weights: int
    file_bytes: int
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_card(facts: Facts) -> str:
    """The text of ``README.md``: metadata as the hub reads it, then what a person wants to know.

    Raises:
      UserError: the package huggingface_hub is missing.
    """
    parts = [
        f"---\n{_metadata(facts)}\n---\n{MARK}",
        f"# {facts.repository.rpartition('/')[2]}",
        _introduction(facts),
        _results(facts),
        _use(facts),
        _training(facts),
        _license(facts),
        "## Method\n\nM. D. McDonnell, *Training wide residual networks for deployment using a single bit "
        "for each weight*, ICLR 2018, [arXiv 1802.08530](https://arxiv.org/abs/1802.08530).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(facts: Facts) -> str:
    hub = require("huggingface_hub", "writing a model card")
    dataset, test = facts.description.get("dataset"), facts.description.get("test") or {}
    results = []
    if test.get("error") is not None and dataset:
        results.append(
            hub.EvalResult(
                task_type="image-classification",
                dataset_type=HUB_DATASETS.get(dataset, "custom"),
                dataset_name=dataset,
                dataset_split=test.get("split", "test"),
                metric_type="accuracy",
                metric_value=round(1 - test["error"] / 100, 6),
            )
        )
    text = facts.description.get("license")
    license = LICENSES.get(str(text).lower()) if text else None
    data = hub.ModelCardData(
        model_name=facts.repository.rpartition("/")[2],
        library_name="binwrn-jax",
        pipeline_tag="image-classification",
        tags=["1-bit", "binary-weights", "wide-resnet", "jax", "flax", PAPER],
        datasets=HUB_DATASETS.get(str(dataset)),
        metrics=["accuracy"],
        license=license or ("other" if text else None),
        license_name=str(text) if text and not license else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _introduction(facts: Facts) -> str:
    height, width, channels = facts.description["image_shape"]
    classes = facts.description["num_classes"]
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    network = facts.description.get("model") or {}
    name = (
        f"a wide residual network {network['depth']}-{network['width']:g}"
        if {"depth", "width"} <= set(network)
        else "a network"
    )
    bits = 8 * facts.file_bytes / facts.weights if facts.weights else 0
    return (
        f"This is {name} whose {facts.weights:,} convolution weights are one bit each: +1 or -1. It tells "
        f"{classes} classes of {kind} images of {height} x {width} pixels apart. The file `{MODEL}` has "
        f"{facts.file_bytes:,} bytes, all of the network counted in ({bits:.3f} bits per weight)."
    )


def _results(facts: Facts) -> str:
    test, dataset = facts.description.get("test") or {}, facts.description.get("dataset")
    if test.get("error") is None:
        return "## Results\n\nNo error has been measured."
    lines = [
        "## Results",
        "",
        "| measured on | images | error in percent | 95 % interval |",
        "|---|---:|---:|---|",
    ]
    interval = (
        f"{test['error_low']:.2f} to {test['error_high']:.2f}" if test.get("error_low") is not None else "-"
    )
    count = f"{test['n']:,}" if test.get("n") else "-"
    where = f"{dataset or 'unknown data'}, {test.get('split', 'test')}"
    lines.append(f"| {where} | {count} | {test['error']:.2f} | {interval} |")
    if test.get("ece") is not None:
        lines += ["", f"Expected calibration error: {test['ece']:.2f} %. The interval is Wilson's."]
    return "\n".join(lines)


def _use(facts: Facts) -> str:
    shape = ", ".join(map(str, facts.description["image_shape"]))
    return f"""## Use

```sh
pip install 'binwrn-jax[hub]'
binwrn predict hf:{facts.repository} photo.png
binwrn export hf:{facts.repository} --format web --output page    # a page that runs it in the browser
```

```python
import binwrn_jax

model = binwrn_jax.open_model("hf:{facts.repository}")
logits = model(images)  # uint8 [N, {shape}], values 0..255
```

To train on from it: `binwrn train --config.init_from=hf:{facts.repository} ...`. The file has the
safetensors format; `binwrn_jax/deploy/numpy_reader.py` runs it with NumPy, and the native runtime in C."""


def _training(facts: Facts) -> str:
    config, summary, dataset = facts.config, facts.summary, facts.description.get("dataset")
    if not config:
        source = facts.description.get("source")
        origin = f" It was imported: {source}." if source else ""
        return f"## Training\n\nData: {dataset or 'not stated'}.{origin}" if dataset or origin else ""
    known = DATASETS.get(str(dataset))
    size = (
        f", {known.splits[known.train_split]:,} images" if known and known.train_split in known.splits else ""
    )
    extra = {
        name.removeprefix("recipe."): value
        for name, value in config.items()
        if name.startswith("recipe.") and value and not name.startswith("recipe.teacher_")
    }
    rows = {
        "data": f"{dataset}{size}",
        "weight rule": config.get("model.weights"),
        "epochs": summary.get("epochs", config.get("epochs")),
        "batch size": config.get("batch_size"),
        "augmentation": config.get("augmentation"),
        "learning rate": f"{config.get('schedule.name')}, peak {config.get('schedule.peak')}",
        "momentum": config.get("optimizer.momentum"),
        "weight decay": config.get("optimizer.weight_decay"),
        "beside the paper's recipe": ", ".join(f"{k} {v}" for k, v in extra.items()),
        "started from": config.get("init_from"),
        "seed": config.get("seed"),
        "hardware": ", ".join(
            str(part)
            for part in (
                " ".join(summary.get("devices") or []) or None,
                summary.get("processor"),
                f"{summary['processes']} processes" if summary.get("processes", 1) > 1 else None,
            )
            if part
        ),
        "time in minutes": f"{summary['seconds'] / 60:.1f}" if summary.get("seconds") else None,
        "commit of binwrn-jax": summary.get("commit"),
    }
    lines = [
        f"| {name} | {_cell(value)} |" for name, value in rows.items() if value not in (None, "", "none")
    ]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def _license(facts: Facts) -> str:
    text = facts.description.get("license")
    return f"## Licence\n\n{text}" if text else "## Licence\n\nNone is stated."


def _cell(value: Any) -> str:
    """Text that may stand in a table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
