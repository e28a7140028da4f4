"""The report: the paper's tables and figures with measured values beside them, read from workdirs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from binwrn_jax.errors import UserError
from binwrn_jax.system.files import replace_file
from paper import experiments, figures
from paper.experiments import CHECKOUT, COMPARISONS, EXPERIMENTS, Comparison, Experiment
from paper.runs import Measurement, Run, collect_measurements, covers, scan
from paper.statistics import Difference, difference, spread
from paper.tables import KERAS, RELEASED_CURVES

REPORT_FILE = "report.md"
KEPT_FILES = ("config.json", "environment.json", "summary.json")

SECTIONS = (
    ("Table 1", "table1", "full"),
    ("Table 2", "table2", "full"),
    ("MNIST", "mnist", "full"),
    (figures.CAPTIONS["fig6"], "fig6", "full"),
    (figures.CAPTIONS["fig7"], "fig7", "full"),
    ("Other 1-bit rules", "rules", "full"),
    ("Follow-up without batch norm, and its Keras baseline", "nobn", "full"),
    ("Not in the paper: 20-1 on all of CIFAR-10", "small", "full"),
    ("CPU scale", "", "cpu"),
)
NOT_AT_HAND = (
    "The data behind the paper's figure were not at hand: the data set, the network and its epochs are this "
    "project's choice, and need not be the figure's."
)
NOTES = {"fig6": NOT_AT_HAND, "fig7": NOT_AT_HAND}


def write_report(roots: Sequence[Path], output: Path, keep_runs: bool = False) -> dict[str, Any]:
    """Writes ``report.md``, ``report.json`` and the figures ``fig1``, ``fig5``, ``fig6``, ``fig7``.

    Args:
      roots: folders that hold workdirs of train.py at any depth.
      output: created where it is not there.
      keep_runs: copy of each run what the report needs into ``output/runs``, without its networks and with
        one record for each epoch: small enough for a repository, and enough to write the report again. The
        report is then of all runs that have ever been kept there.

    Returns:
      Counts: ``runs``, ``finished``, ``experiments`` (with a measured value), ``other``.

    Raises:
      UserError: a root is no folder, or the output cannot be written.
    """
    runs, problems = scan(roots)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error
    if keep_runs:
        for place, run in _places(roots, runs).items():
            keep_run(run, output / "runs", place)
        runs, _ = scan([output / "runs"])  # with what has been kept earlier
    measured = {name: collect_measurements(one, runs) for name, one in EXPERIMENTS.items()}
    differences = {c: difference(measured[c.worse], measured[c.better]) for c in COMPARISONS}
    figures.draw_all(output, runs, differences)
    text = _markdown(runs, problems, measured, differences, output)
    replace_file(output / REPORT_FILE, text)
    replace_file(output / "report.json", json.dumps(_json(measured, differences), indent=1) + "\n")
    return {
        "runs": len(runs),
        "finished": sum(run.finished for run in runs),
        "experiments": sum(bool(found) for found in measured.values()),
        "other": len(_other(runs)),
    }


def _places(roots: Sequence[Path], runs: Iterable[Run]) -> dict[Path, Run]:
    """Where to keep each run: its path below its root; one of the same path and configuration only once."""
    places: dict[Path, Run] = {}
    for run in runs:
        root = next(root for root in roots if run.path.is_relative_to(root))
        place = run.path.relative_to(root) if run.path != root else Path(root.name)
        number = 1
        while place in places and places[place].config != run.config:
            number += 1
            place = place.with_name(f"{place.name.removesuffix(f'_{number - 1}')}_{number}")
        if place not in places or (run.finished and not places[place].finished):
            places[place] = run
    return places


def keep_run(run: Run, folder: Path, place: Path) -> None:
    """Copies what a report needs of a run to ``folder/place``: small files, a record for each epoch."""
    target = folder / place
    if target.resolve() == run.path.resolve():
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT_FILES:
        file = run.path / name
        if not file.exists():
            continue
        content = json.loads(file.read_text())
        if name == "environment.json":  # where it ran on that machine is nobody's business
            content["command"] = [
                f"--workdir=runs/{place}" if a.startswith("--workdir=") else a
                for a in content.get("command", [])
            ]
        replace_file(target / name, json.dumps(content, indent=2) + "\n")
    records = [json.dumps(r) + "\n" for r in run.records if r["kind"] in ("epoch", "eval")]
    replace_file(target / "metrics.jsonl", "".join(records))


def _other(runs: Iterable[Run]) -> list[Run]:
    """Runs that are none of an experiment."""
    return [run for run in runs if not any(covers(run, e) for e in EXPERIMENTS.values())]


# --- Markdown -------------------------------------------------------------------------------------------


def _markdown(
    runs: Sequence[Run],
    problems: Sequence[str],
    measured: dict[str, list[Measurement]],
    differences: dict[Comparison, Difference | None],
    output: Path,
) -> str:
    lines = [
        "# Paper against ours",
        "",
        f"Written by `python -m paper report` from {len(runs)} runs, "
        f"{sum(run.finished for run in runs)} finished.",
        "Test error in percent, mean and standard deviation over n seeds (network initialisation, order and",
        "augmentation), at the last epoch. What stands as *not run* has not been run.",
    ]
    for title, tag, scale in SECTIONS:
        lines += ["", f"## {title}", ""]
        if scale == "cpu":
            lines += [_cpu_setting(), ""]
        elif tag in NOTES:
            lines += [NOTES[tag], ""]
        chosen = [e for e in EXPERIMENTS.values() if e.scale == scale and (not tag or tag in e.tags)]
        lines += _table(chosen, measured)
    lines += ["", "## The paper's claims as differences", "", *CLAIMS_TEXT, ""]
    lines += _claims({c: d for c, d in differences.items() if not c.ours})
    lines += ["", "## Questions of this project as differences", "", OURS_TEXT, ""]
    lines += _claims({c: d for c, d in differences.items() if c.ours})
    lines += ["", "## Figures", "", "Panels of which nothing has been run are left out.", ""]
    for name, caption in figures.CAPTIONS.items():
        lines += [f"![{caption}]({name}.png)", "", f"{caption} ([SVG]({name}.svg))", ""]
    lines += _leftovers(runs, problems, output)
    return "\n".join(lines).rstrip() + "\n"


def _cpu_setting() -> str:
    return (
        f"Network {experiments.CPU_NETWORK}, the first {experiments.CPU_IMAGES:,} training and 5,000 test "
        f"images, {experiments.CPU_EPOCHS} epochs, batches of 50, the same in every arm; `digits` whole, as "
        "its config has it. These errors have no counterpart in the paper; their differences do, below."
    )


def _table(chosen: Sequence[Experiment], measured: dict[str, list[Measurement]]) -> list[str]:
    lines = [
        "| experiment | epochs | paper | ours | n | hardware | commit |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for one in chosen:
        paper = " / ".join(f"{one.paper[key]:.2f}" for key in ("error", "top5") if key in one.paper)
        head = f"| `{one.name}` | {one.config().epochs} | {paper or '-'} |"
        for found in measured[one.name]:
            ours = spread(found.errors)
            if "top5" in one.paper and found.top5:
                ours += f" / {spread(found.top5)}"
            if found.dtype != "float32":
                ours += f" ({found.dtype})"
            hardware = "; ".join(dict.fromkeys(run.hardware for run in found.runs))
            commit = ", ".join(dict.fromkeys(run.commit for run in found.runs))
            lines.append(f"{head} {ours} | {len(found.errors)} | {hardware} | {commit} |")
        if not measured[one.name]:
            lines.append(f"{head} not run | | | |")
        if "error_25_crops" in one.paper:
            crops = f"{one.paper['error_25_crops']:.2f} / {one.paper['top5_25_crops']:.2f}"
            ours = "; ".join(
                f"{spread(found.crops)} / {spread(found.crops_top5)} ({found.dtype}, n = {len(found.crops)})"
                for found in measured[one.name]
                if found.crops
            )
            lines.append(
                f"| the same, 25 crops | {one.config().epochs} | {crops} | {ours or 'not run'} | | | |"
            )
    return lines


CLAIMS_TEXT = (
    "Paired by seed: error of the first minus error of the second, in percentage points, with the 95 %",
    "interval of its mean (Student's t over the seeds; the test images are the same for all). *Agrees*:",
    "the interval lies above zero; *disagrees*: below it; *not resolved*: it holds zero. Where the claim is",
    "that two are equal: *disagrees*: it does not hold zero; *no difference seen*: it does, with half its",
    "width. Fewer than three seeds decide nothing; of twenty such intervals one misses the truth by chance.",
)
OURS_TEXT = "The paper does not claim what stands here; the columns and words are the same."


def _claims(differences: dict[Comparison, Difference | None]) -> list[str]:
    lines = [
        "| claim | first - second | paper | ours | 95 % interval | n | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    missing = 0
    for comparison, found in differences.items():
        pair = [EXPERIMENTS[name].paper.get("error") for name in (comparison.worse, comparison.better)]
        paper = f"{pair[0] - pair[1]:.2f}" if pair[0] is not None and pair[1] is not None else "-"
        if found is None:
            missing += 1
            continue
        interval = "-" if found.low is None else f"{found.low:.2f} to {found.high:.2f}"
        names = f"`{comparison.worse}` - `{comparison.better}`"
        lines.append(
            f"| {comparison.claim} | {names} | {paper} | {found.mean:.2f} | {interval} | {found.n} "
            f"| {found.verdict(comparison.equal)} |"
        )
    return [*lines, "", f"{missing} more of the registry have not been run."]


def _leftovers(runs: Sequence[Run], problems: Sequence[str], output: Path) -> list[str]:
    lines: list[str] = []
    other = [run for run in _other(runs) if run.finished]
    if other:
        lines += ["## Other runs", "", "Runs of configurations that are no experiment of the registry.", ""]
        lines += ["| run | data | network | weights | epochs | seed | error at cycle ends (epoch) |"]
        lines += ["|---|---|---|---|---:|---:|---|"]
        for run in other:
            c = run.config
            errors = ", ".join(f"{r['error']:.2f} ({epoch})" for epoch, r in run.evaluations().items())
            network = f"{c['model.depth']}-{c['model.width']:g}"
            where = _link(run, output)
            lines.append(
                f"| {where} | {c['data.name']} {c['data.train_split']} | {network} | {c['model.weights']}, "
                f"{c['augmentation']} | {c['epochs']} | {run.seed} | {errors} |"
            )
        lines.append("")
    unfinished = [run for run in runs if not run.finished]
    if unfinished:
        lines += ["## Unfinished runs", ""]
        for run in unfinished:
            total = run.config["epochs"]
            lines.append(f"- {_link(run, output)}: stopped or under way at epoch {run.epoch:.1f} of {total}")
        lines.append("")
    if problems:
        lines += ["## Left out", "", *(f"- {problem}" for problem in problems), ""]
    return lines


def _link(run: Run, output: Path) -> str:
    """Of a run inside the report's folder a link, of others the name."""
    if run.path.resolve().is_relative_to(output.resolve()):
        place = run.path.resolve().relative_to(output.resolve())
        return f"[{'/'.join(place.parts[1:])}]({place})"
    return f"`{'/'.join(run.path.parts[-2:])}`"


def _json(
    measured: dict[str, list[Measurement]], differences: dict[Comparison, Difference | None]
) -> dict[str, Any]:
    return {
        "experiments": {
            name: {
                "paper": dict(EXPERIMENTS[name].paper),
                "measured": [
                    {
                        "dtype": found.dtype,
                        "error_by_seed": found.by_seed(),
                        **{key: values for key, values in found.optional().items() if values},
                        "hardware": sorted({run.hardware for run in found.runs}),
                        "commit": sorted({run.commit for run in found.runs}),
                    }
                    for found in values
                ],
            }
            for name, values in measured.items()
            if values
        },
        "differences": [
            {**comparison._asdict(), **found._asdict(), "verdict": found.verdict(comparison.equal)}
            for comparison, found in differences.items()
            if found
        ],
    }


# --- the README's table -----------------------------------------------------------------------------------

RESULTS = CHECKOUT / "paper" / "results"
RELEASED = CHECKOUT / "docs" / "results" / "released"
DATA_NAMES = {
    "c10": "CIFAR-10",
    "c100": "CIFAR-100",
    "mnist": "MNIST",
    "svhn": "SVHN",
    "imagenet": "ImageNet",
}
# The author's released networks: file of our evaluation, what it is, the error that he reports.
RELEASED_NETWORKS = (
    ("keras-float32-10000.json", "Keras", KERAS["c10"]["1bit"][0]),
    ("matlab-float32-10000.json", "MATLAB", RELEASED_CURVES["c10-1bit-20-10-cutout"][-1]),
)


def readme_results(root: Path = RESULTS / "runs", released: Path = RELEASED) -> list[str]:
    """The README's results table as lines of Markdown: the paper's test errors beside ours.

    Args:
      root: folder of kept runs, see `write_report`.
      released: folder of our evaluations of the author's networks.
    """
    runs, _ = scan([root])
    lines = ["| test error in percent | paper or author | ours | how |", "|---|---:|---:|---|"]
    for one in EXPERIMENTS.values():
        if one.scale != "full":
            continue
        for found in collect_measurements(one, runs):
            paper = f"{one.paper['error']:.2f}" if "error" in one.paper else "not in the paper"
            seeds = f", {len(found.errors)} seeds" if len(found.errors) > 1 else ", one run"
            lines.append(
                f"| {_in_words(one, found.dtype)}{seeds} | {paper} | **{spread(found.errors)}** "
                "| [training.md](docs/results/training.md) |"
            )
    for file, version, reported in RELEASED_NETWORKS:
        result = json.loads((released / file).read_text())
        lines.append(
            f"| CIFAR-10, the author's released 1-bit 20-10 ({version}), all {result['n']:,} test images "
            f"| {reported:.2f} | **{result['error']:.2f}** | [released.md](docs/results/released.md) |"
        )
    return lines


def _in_words(one: Experiment, dtype: str) -> str:
    config = one.config()
    data = DATA_NAMES.get(one.name.partition("-")[0], config.data.name)
    weights = config.model.weights.replace("bit", "-bit")
    cutout = " with cutout" if "cutout" in config.augmentation else ""
    epochs = f"{config.epochs} epoch" + "s" * (config.epochs > 1)
    rounded = "" if dtype == "float32" else f", {dtype}"
    return f"{data}, {weights} {config.model.depth}-{config.model.width:g}{cutout}, {epochs}{rounded}"
