"""Lines for a person about own images, before anything is trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from binwrn_jax.data.own import OwnDataset
from binwrn_jax.errors import UserError, printable

_MOST_NAMED = 20  # broken images, groups of duplicates


def report(dataset: OwnDataset) -> Iterator[str]:
    """Classes, numbers, sizes, duplicates and broken images, a line each."""
    source = dataset.source
    yield printable(source.name)
    yield from (f"  {note}" for note in source.notes)
    yield from (f"  the {part} images have no labels and are left out" for part in dataset.unlabelled)
    yield f"  division: {dataset.rule}"
    yield from _table(dataset)
    yield from _sizes(dataset)
    yield from _duplicates(dataset)
    yield from _broken(dataset)


def _table(dataset: OwnDataset) -> Iterator[str]:
    names = [printable(name) for name in dataset.source.class_names]
    splits = [split for split in ("train", "validation", "test") if split in dataset.division]
    width = max(len("class"), *map(len, names), len("all"))
    yield f"  {'class':{width}}" + "".join(f" {split:>11}" for split in splits)
    counts = []
    for split in splits:
        part, indices = dataset.division[split]
        counts.append(np.bincount(dataset.surveys[part].labels[indices], minlength=len(names)))
    for label, name in enumerate(names):
        yield f"  {name:{width}}" + "".join(f" {count[label]:11,}" for count in counts)
    yield f"  {'all':{width}}" + "".join(f" {count.sum():11,}" for count in counts)


def _sizes(dataset: OwnDataset) -> Iterator[str]:
    surveys = list(dataset.surveys.values())
    sizes = np.concatenate([one.sizes[one.whole] for one in surveys])
    grey = np.concatenate([one.grey[one.whole] for one in surveys])
    low, middle, high = sizes.min(0), np.median(sizes, axis=0).astype(int), sizes.max(0)
    kind = (
        "all grey" if grey.all() else f"{int(grey.sum()):,} of them grey" if grey.any() else "all in colour"
    )
    yield (
        f"  height {low[0]} to {high[0]} (median {middle[0]}), width {low[1]} to {high[1]} (median "
        f"{middle[1]}); {kind}"
    )
    try:
        height, width, channels = dataset.info.image_shape
        what = "grey" if channels == 1 else "RGB" if channels == 3 else f"{channels} channels"
        place = "read from disk at each step" if dataset.info.streamed else "kept on the devices"
        yield f"  the network sees {height}x{width} {what} ({dataset.info.resize}), {place}"
    except UserError:
        yield "  they have several sizes: training needs --config.data.size=N (32 for example)"


def _duplicates(dataset: OwnDataset) -> Iterator[str]:
    """Images with the same bytes, and which splits and classes they are in."""
    places: dict[bytes, list[tuple[str, str, int, int]]] = defaultdict(list)
    for split, (part, indices) in dataset.division.items():
        one = dataset.surveys[part]
        for index in indices.tolist():
            places[one.digests[index].tobytes()].append((split, part, index, int(one.labels[index])))
    groups = [group for group in places.values() if len(group) > 1]
    if not groups:
        yield "  no duplicates"
        return
    within = sum(len(group) - len({split for split, *_ in group}) for group in groups)
    between = [group for group in groups if len({split for split, *_ in group}) > 1]
    contradicting = [group for group in groups if len({label for *_, label in group}) > 1]
    yield (
        f"  duplicates (the same bytes): {within:,} within a split, {len(between):,} images in several "
        f"splits, {len(contradicting):,} in several classes"
    )
    for group in sorted(groups, key=lambda group: group not in between)[:_MOST_NAMED]:
        named = " = ".join(
            f"{dataset.source.describe(part, index)} ({split})" for split, part, index, _ in group
        )
        yield f"    {named}"
    if len(groups) > _MOST_NAMED:
        yield f"    and {len(groups) - _MOST_NAMED:,} more"


def _broken(dataset: OwnDataset) -> Iterator[str]:
    broken = dataset.broken
    if not broken:
        yield "  all images can be decoded"
        return
    yield (
        f"  {len(broken):,} images cannot be decoded; training refuses the data set, or leaves them out with "
        "--config.data.skip_broken=True:"
    )
    for part, index in broken:
        yield f"    {dataset.source.describe(part, index)}: {dataset.surveys[part].broken[index]}"
