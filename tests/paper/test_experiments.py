"""The paper's numbers by name: the registry, running what is missing, and the report from workdirs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from binwrn_jax.training.config import check, to_json
from binwrn_jax.training.records import read_records
from binwrn_jax.training.schedules import cycle_ends
from paper import __main__ as cli
from paper import experiments, figures, runs
from paper.experiments import COMPARISONS, EXPERIMENTS, Experiment, select
from paper.report import readme_results
from paper.runs import collect_measurements, covers, read_run
from paper.statistics import Difference

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "paper" / "results" / "runs"
# Seconds to train.
TINY = Experiment(
    name="tiny",
    scale="cpu",
    file="digits.py",
    spec="8-0.25,1bit",
    overrides=(("epochs", 2), ("checkpoint.every_steps", 10), ("log.every_steps", 5)),
    images=1437,
    tags=("tiny",),
    paper={"error": 1.5},
)


def make_run(
    workdir: Path,
    name: str,
    errors: dict[int, float],
    seed: int = 1,
    result: dict | None = None,
    **fields: object,
) -> Path:
    """A workdir as a run of an experiment leaves it, with these errors; finished if it has its last."""
    config = EXPERIMENTS[name].config()
    config.seed = seed
    config.update_from_flattened_dict(fields)
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(to_json(config))
    same = {"kind": "eval", "top5_error": 1.0, "loss": 1.0, "seconds": 1.0, "cycle_end": True}
    records = [
        {**same, "step": epoch, "epoch": epoch, "error": error, **(result or {})}
        for epoch, error in errors.items()
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if config.epochs in errors:
        (workdir / "summary.json").write_text(json.dumps({"test_error": errors[config.epochs]}))
    return workdir


# --- the registry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_is_a_valid_command(name):
    one = EXPERIMENTS[name]
    check(one.config())
    assert set(one.tags) and one.gflop_per_image > 0


def test_has_every_number_of_the_papers_tables():
    counts = {tag: sum(len(e.paper) for e in select([tag])) for tag in ("table1", "table2", "mnist", "nobn")}
    assert counts == {"table1": 26, "table2": 2 + 7 * 2 + 2 * 4, "mnist": 5, "nobn": 8}


@pytest.mark.parametrize("name", [e.name for e in select(["table1", "table2", "mnist"])])
def test_paper_values_are_those_that_the_config_files_name(name):
    one = EXPERIMENTS[name]
    text = (ROOT / "configs" / one.file).read_text().split('"""')[1]
    for value in one.paper.values():
        assert f"{value:.2f}" in text


def test_each_experiment_of_a_scale_is_another_training():
    seen: dict[str, str] = {}
    for one in EXPERIMENTS.values():
        key = to_json(one.config())
        assert key not in seen, (one.name, seen[key])
        seen[key] = one.name


@pytest.mark.parametrize("tag", ["fig1", "fig6", "fig7", "rules", "cutout"])
def test_small_arms_differ_in_what_is_compared_and_nothing_else(tag):
    allowed = {
        "fig1": {"model.weights"},
        # Section 3.2.1: moments are computed anew where scale and offset are not learned.
        "fig6": {"schedule.name", "schedule.drops", "model.affine", "moments"},
        "fig7": {"model.plain"},
        "rules": {"model.weights"},
        "cutout": {"augmentation"},
    }[tag]
    pairs = [c for c in COMPARISONS if c.tag == tag and EXPERIMENTS[c.worse].scale == "cpu"]
    assert pairs
    for pair in pairs:
        worse, better = (runs._fields(name) for name in (pair.worse, pair.better))
        assert {f for f in worse if worse[f] != better[f]} <= allowed, pair
        assert worse != better


def test_steps_drop_at_thirds():
    for name in ("c10-1bit-step", "c100-1bit-20-4-step-254epochs"):
        config = EXPERIMENTS[name].config()
        drops = [drop / config.epochs for drop in config.schedule.drops]
        assert drops == pytest.approx([1 / 3, 2 / 3], abs=0.03)


# --- names ----------------------------------------------------------------------------------------------


def test_selects_by_name_group_and_small_twin():
    assert [e.name for e in select(["c10-1bit-20-10-cutout"])] == ["c10-1bit-20-10-cutout"]
    assert [e.name for e in select(["c10-1bit-20-10-cutout"], "cpu")] == ["c10-1bit-cutout"]
    assert len(select(["fig6"], "cpu")) == 8
    assert len(select(["fig6", "fig7"], "cpu")) == 10
    assert len(select([], "full")) + len(select([], "cpu")) == len(EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "c10-1bt-20-4"], "did you mean 'c10-1bit-20-4'?"),
        (["run", "c10-1bit"], "exists at --scale cpu only"),
        (["run", "c100-1bit-20-4", "--scale", "cpu"], "exists at --scale full only"),
        (["run"], "name an experiment"),
        (["run", "fig6", "--seeds", "1,x"], "--seeds is '1,x'"),
        (["list", "figg6"], "did you mean 'fig6'?"),
        (["list", "--root", "/nowhere"], "no folder /nowhere"),
    ],
)
def test_mistakes_are_one_line(arguments, words, capsys):
    assert cli.main([*arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1


def test_lists(capsys, tmp_path):
    make_run(tmp_path / "a", "mnist-1bit-20-4-14epochs", {2: 0.9, 6: 0.5, 14: 0.4})
    assert cli.main(["list", "mnist", "--json", "--root", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["mnist-1bit-20-4-6epochs"]["measured"][0]["error"] == [0.5]
    assert rows["mnist-1bit-20-4-1epoch"]["measured"] == []
    row = rows["mnist-1bit-20-4-14epochs"]
    assert row["paper"] == {"error": 0.27} and row["images"] == 14 * 60_000
    assert row["measured"][0]["logs"] == [str(tmp_path / "a" / "metrics.jsonl")]
    # 6 x the multiply-adds of 20-4 on 28x28, counted by hand in test_cost for the 32x32 networks.
    assert row["estimated_hours"]["CPU"] == pytest.approx(14 * 60_000 * row["gflop_per_image"] / 300 / 3600)
    assert cli.main(["list", "--root", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "0.40 (n=1)" in output and all(re.search(rf"^{name} ", output, re.M) for name in EXPERIMENTS)


def test_lists_spread_of_seeds_crops_and_each_dtype(capsys, tmp_path):
    for seed, error in ((1, 31.0), (2, 32.0)):
        crops = {"top5_error": error - 20, "crops_error": error - 5, "crops_top5_error": error - 23}
        make_run(tmp_path / str(seed), "imagenet-1bit-18-2.5", {62: error}, seed=seed, result=crops)
    exact = {"model.dtype": "float32"}
    make_run(tmp_path / "f", "imagenet-1bit-18-2.5", {62: 30.5}, result={"top5_error": 10.5}, **exact)
    command = ["list", "imagenet-1bit-18-2.5", "--root", str(tmp_path)]
    assert cli.main([*command, "--json"]) == 0
    exact, half = json.loads(capsys.readouterr().out)[0]["measured"]
    assert half["error"] == [31.0, 32.0] and half["top5"] == [11.0, 12.0]
    assert half["error_25_crops"] == [26.0, 27.0] and half["top5_25_crops"] == [8.0, 9.0]
    assert exact["top5"] == [10.5] and exact["error_25_crops"] == []
    assert cli.main(command) == 0
    line = capsys.readouterr().out.splitlines()[1]
    wanted = "31.50 +- 0.71 / 11.50 +- 0.71, 25 crops 26.50 +- 0.71 / 8.50 +- 0.71 (n=2, bfloat16)"
    assert f"30.50 / 10.50 (n=1); {wanted}" in line


def test_hours_on_a_cpu_are_those_of_its_measured_steps():
    for name, seconds in (("c10-1bit-20-1-cutout", 0.204), ("c10-1bit-20-4", 1.6), ("c10-1bit-20-10", 9.907)):
        one = EXPERIMENTS[name]  # docs/performance.md, batch 125
        assert one.hours()["CPU"] == pytest.approx(one.images_in_all / 125 * seconds / 3600, rel=0.02)


# --- runs -----------------------------------------------------------------------------------------------


def test_a_longer_run_with_the_same_cycles_gives_the_shorter_row(tmp_path):
    long = read_run(make_run(tmp_path / "a", "c10-1bit-20-10", {126: 5.0, 254: 4.7}))
    assert covers(long, EXPERIMENTS["c10-1bit-20-10"])
    assert not covers(long, EXPERIMENTS["c10-1bit-20-10-cutout"])
    assert not covers(long, EXPERIMENTS["c10-32bit-20-10"])
    six = read_run(make_run(tmp_path / "b", "mnist-1bit-20-4-6epochs", {2: 1.0, 6: 0.4}))
    assert not covers(six, EXPERIMENTS["mnist-1bit-20-4-14epochs"])
    assert not covers(six, EXPERIMENTS["mnist-1bit-20-4-1epoch"])  # its only cycle is shorter
    step = read_run(make_run(tmp_path / "c", "c100-1bit-20-4-step-254epochs", {85: 30.0}, epochs=100))
    assert not covers(step, EXPERIMENTS["c100-1bit-20-4-step-254epochs"])


def test_measures_by_dtype_and_takes_one_run_for_each_seed(tmp_path):
    name = "mnist-1bit-20-4-6epochs"
    make_run(tmp_path / "one", name, {2: 1.0, 6: 0.4})
    make_run(tmp_path / "two", name, {2: 1.0, 6: 0.5}, seed=2)
    make_run(tmp_path / "two_again", name, {2: 1.0, 6: 0.6}, seed=2)
    make_run(tmp_path / "half", name, {2: 1.0}, seed=3)
    make_run(tmp_path / "bf16", name, {2: 1.0, 6: 0.7}, **{"model.dtype": "bfloat16"})
    existing, problems = runs.scan([tmp_path])
    assert not problems
    found = {m.dtype: m for m in collect_measurements(EXPERIMENTS[name], existing)}
    assert found["float32"].by_seed() == {1: 0.4, 2: 0.5}
    assert found["bfloat16"].by_seed() == {1: 0.7}


def test_a_run_of_an_older_version_has_the_defaults_of_fields_it_did_not_know(tmp_path):
    workdir = make_run(tmp_path / "a", "c10-1bit-20-4", {126: 6.0})
    config = json.loads((workdir / "config.json").read_text())
    del config["schedule"]["warmup_epochs"], config["accumulate"]
    (workdir / "config.json").write_text(json.dumps(config))
    assert covers(read_run(workdir), EXPERIMENTS["c10-1bit-20-4"])


# --- real training --------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setitem(EXPERIMENTS, "tiny", TINY)
    monkeypatch.setenv("XLA_FLAGS", "")
    runs._fields.cache_clear()
    yield tmp_path / "runs"
    runs._fields.cache_clear()


@pytest.mark.slow
def test_runs_what_is_missing_goes_on_and_never_repeats(tiny, capfd):
    arguments = ["run", "tiny", "--scale", "cpu", "--seeds", "1,2", "--workdir", str(tiny)]
    # The program in a process of its own, with the tiny experiment in the registry.
    program = (
        "import sys; sys.path[:0] = ['.', 'tests', 'tests/paper']; import test_experiments as t;"
        "from paper import __main__ as cli;"
        "t.EXPERIMENTS['tiny'] = t.TINY; sys.exit(cli.main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=ROOT, env={**os.environ})
    first = tiny / "cpu" / "tiny" / "seed1"
    deadline = time.monotonic() + 120
    while not any(r["step"] >= 15 for r in read_records(first / "metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not (first / "summary.json").exists() and not (first.parent / "seed2").exists()
    stopped_at = max(int(p.name) for p in (first / "checkpoints").iterdir() if p.name.isdigit())
    assert stopped_at >= 15
    capfd.readouterr()

    assert cli.main(arguments) == 0
    output = capfd.readouterr().out
    assert f"resumed at step {stopped_at}" in output and output.count("done: test error") == 2
    assert json.loads((first / "summary.json").read_text())["epochs"] == 2
    command = json.loads((first / "environment.json").read_text())["command"]
    assert command[:3] == ["train.py", "--config=configs/digits.py:8-0.25,1bit", "--config.epochs=2"]

    times = [path.stat().st_mtime_ns for path in sorted(tiny.rglob("*"))]
    assert cli.main(arguments) == 0
    assert capfd.readouterr().out.count(": done, in ") == 2
    assert times == [path.stat().st_mtime_ns for path in sorted(tiny.rglob("*"))]

    # A failure does not keep the others from running, and is told at the end.
    (tiny / "cpu" / "tiny" / "seed3").mkdir()
    (tiny / "cpu" / "tiny" / "seed3" / "config.json").write_text("{")
    assert cli.main([*arguments[:4], "--seeds", "3,1", "--workdir", str(tiny)]) == 2
    captured = capfd.readouterr()
    assert "1 of 2 runs failed (tiny seed 3)" in captured.err and "seed 1: done" in captured.out


# --- the report -----------------------------------------------------------------------------------------


def report(capsys, *arguments: object) -> str:
    assert cli.main(["report", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_report_of_runs_from_anywhere(capsys, tmp_path):
    roots = tmp_path / "cluster", tmp_path / "laptop" / "deep"
    for seed, error in ((1, 4.0), (2, 4.2), (3, 4.4)):
        errors = {2: 30.0, 6: 20.0, 126: 5.0, 254: error}
        make_run(roots[0] / str(seed), "c10-1bit-20-10-cutout", errors, seed=seed)
        make_run(roots[1] / str(seed), "c10-32bit-20-10-cutout", {254: error - 0.5}, seed=seed)
    crops = {"top5_error": 10.0, "crops_error": 26.5, "crops_top5_error": 8.5}
    make_run(roots[1] / "imagenet", "imagenet-1bit-18-2.5", {62: 31.5}, result=crops)
    make_run(roots[1] / "stopped", "c100-1bit-20-4", {2: 70.0, 6: 60.0})
    make_run(roots[1] / "foreign", "c10-1bit-20-4", {126: 6.0}, batch_size=7)
    (roots[0] / "broken").mkdir()
    (roots[0] / "broken" / "config.json").write_text("{")
    before = sorted(p for root in roots for p in root.rglob("*"))

    output = tmp_path / "out"
    assert "9 runs, 8 finished; 3 experiments measured, 1 other" in report(
        capsys, *roots, "--output", output, "--keep-runs"
    )
    text = (output / "report.md").read_text()
    assert "| `c10-1bit-20-10-cutout` | 254 | 3.92 | 4.20 +- 0.20 | 3 |" in text
    assert "| `c10-1bit-20-4` | 126 | 6.13 | not run | | | |" in text
    assert "| 62 | 31.03 / 11.51 | 31.50 / 10.00 (bfloat16) | 1 |" in text
    assert "| 62 | 26.04 / 8.48 | 26.50 / 8.50 (bfloat16, n = 1) |" in text
    row = next(line for line in text.splitlines() if "| one bit costs" in line)
    assert "| 0.46 | 0.50 | 0.50 to 0.50 | 3 | agrees |" in row
    assert "[stopped](runs/stopped): stopped or under way at epoch 6.0 of 126" in text
    assert "| [foreign](runs/foreign) | cifar10" in text
    assert "broken/config.json cannot be read" in text
    for figure in ("fig1", "fig5", "fig6", "fig7"):
        assert (output / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (output / f"{figure}.svg").read_text()
    assert before == sorted(p for root in roots for p in root.rglob("*"))  # only read

    for name in ("1", "1_2"):  # of one name in both roots
        assert (output / "runs" / name).is_dir()

    # What was kept gives the same report again.
    report(capsys, output / "runs", "--output", output)
    assert (output / "report.md").read_text().startswith(text[: text.index("## Left out")].rstrip())


@pytest.mark.parametrize(
    ("low", "high", "equal", "verdict"),
    [
        (0.1, 0.9, False, "agrees"),
        (-0.9, -0.1, False, "disagrees"),
        (-0.1, 0.9, False, "not resolved"),
        (0.1, 0.9, True, "disagrees"),
        (-0.9, -0.1, True, "disagrees"),
        (-0.1, 0.9, True, "no difference seen, +- 0.50"),
    ],
)
def test_a_verdict_is_the_claims(low, high, equal, verdict):
    found = Difference(mean=(low + high) / 2, sd=0.2, low=low, high=high, n=3)
    assert found.verdict(equal) == verdict
    assert found._replace(n=2).verdict(equal) == "too few seeds"
    assert found._replace(low=None, high=None, n=1).verdict(equal) == "too few seeds"


def test_report_tells_claims_of_the_paper_from_our_questions(capsys, tmp_path):
    errors = {"1bit": 60.0, "1bit-matlab": 62.0, "32bit": 64.0, "bwn": 66.0, "bwn-layer": 66.0}
    for variant, error in errors.items():
        for seed, noise in ((1, 0.0), (2, 0.1), (3, -0.1)):
            error += noise * (variant == "bwn-layer")
            make_run(tmp_path / f"{variant}{seed}", f"c10-{variant}", {62: error}, seed=seed)
    report(capsys, tmp_path, "--output", tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    papers, ours = text.split("## The paper's claims")[1].split("## Questions of this project")
    ours = ours.split("## Figures")[0]

    def verdict(part: str, pair: str) -> str:
        return next(line for line in part.splitlines() if pair in line).split("|")[-2].strip()

    assert verdict(papers, "`c10-1bit` - `c10-32bit`") == "disagrees"
    assert verdict(papers, "`c10-bwn-layer` - `c10-bwn`").startswith("no difference seen, +- ")
    assert verdict(ours, "`c10-1bit-matlab` - `c10-1bit`") == "disagrees"
    assert verdict(ours, "`c10-bwn-layer` - `c10-1bit`") == "agrees"
    assert "beats bwn" not in papers and "matlab" not in papers
    differences = json.loads((tmp_path / "out" / "report.json").read_text())["differences"]
    assert {(d["worse"], d["verdict"]) for d in differences if d["ours"]} == {
        ("c10-1bit-matlab", "disagrees"), ("c10-bwn", "agrees"), ("c10-bwn-layer", "agrees"),
    }  # fmt: skip
    # Whose choice data and network of the figures are stands where they are read.
    for name in ("Fig. 6", "Fig. 7"):
        section = text.split(f"## {name}")[1].split("|")[0]
        assert "20-4: our choice" in section and "this project's choice" in section


def test_figures_mark_the_ends_of_the_small_settings_cycles():
    (*_, small), (*_, plain) = (
        figure.axes for figure in (figures._cycles_figure([]), figures._plain_figure([]))
    )
    last = experiments.CPU_EPOCHS
    for axis in (small, plain):
        ticks = [int(tick) for tick in axis.get_xticks()]
        assert ticks == list(cycle_ends(last)) and ticks[-1] == last


def test_report_without_runs_says_so(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    report(capsys, tmp_path / "empty", "--output", tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) >= len(EXPERIMENTS) and all("not run" in row for row in rows)


def test_report_needs_a_folder(capsys, tmp_path):
    assert cli.main(["report", str(tmp_path / "none"), "--output", str(tmp_path)]) == 2
    assert "no folder" in capsys.readouterr().err


def test_the_projects_own_report_is_what_its_runs_give(capsys, tmp_path):
    if not RUNS.is_dir():
        pytest.skip("no results in this copy of the project")
    report(capsys, RUNS, "--output", tmp_path)
    assert not [line for line in (tmp_path / "report.md").read_text().splitlines() if "Left out" in line]
    ours = json.loads((ROOT / "paper" / "results" / "report.json").read_text())
    assert json.loads((tmp_path / "report.json").read_text()) == ours


def test_the_readmes_table_is_what_the_results_give(capsys):
    """`python -m paper readme` prints it; README has it between two comments."""
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("<!-- results -->\n")[2].partition("<!-- end -->")[0]
    assert cli.main(["readme"]) == 0
    assert table == capsys.readouterr().out == "\n".join(readme_results()) + "\n"


def test_the_readmes_table_follows_the_runs(tmp_path):
    kept = {2: 30.0, 6: 20.0, 14: 10.0, 30: 8.0, 62: 7.0, 126: 6.5}
    make_run(tmp_path / "a", "c10-1bit-20-4", kept)
    make_run(tmp_path / "b", "c10-1bit-20-4", {**kept, 126: 6.3}, seed=2)
    row = readme_results(tmp_path)[2]
    assert row.startswith("| CIFAR-10, 1-bit 20-4, 126 epochs, 2 seeds | 6.13 | **6.40 +- 0.14** |")
