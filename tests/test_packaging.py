"""What is installed: few mandatory packages, extras by purpose, config files found from any folder."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from binwrn_jax import UserError
from binwrn_jax.cli.flags import find_config, parse_flags, shipped_configs
from binwrn_jax.errors import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def test_mandatory_packages():
    mandatory = names(PROJECT["dependencies"])
    core = {"jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "ml-collections"}
    assert core <= mandatory and len(PROJECT["dependencies"]) <= 12


def test_extras():
    extras = PROJECT["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(extras)
    assert {"cuda", "tpu", "all", "dev"} <= set(extras)
    # Whatever a user can ask for is in `all`, and the tests have it.
    own = {extra for extra in EXTRAS.values()} - {"tpu"}
    assert own <= set(re.search(r"\[(.*)\]", extras["all"][0])[1].split(","))
    assert extras["dev"][0] == "binwrn-jax[all]"


def test_every_package_is_pinned_for_the_readme():
    pinned = names(line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    extras = PROJECT["optional-dependencies"]
    wanted = names(PROJECT["dependencies"]).union(*(names(extras[e]) for e in extras if e not in ("cuda",)))
    assert wanted - {"binwrn-jax"} <= pinned


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = shipped_configs() / "cifar10.py"
    for name in ("cifar10", "cifar10.py", "configs/cifar10.py"):
        assert find_config(name) == shipped
    line = parse_flags(["x", "--config=cifar10:20-10,32bit", "--config.seed=4"], "digits")
    assert line.config.model.width == 10 and line.config.model.weights == "32bit"
    assert line.source == f"{shipped}:20-10,32bit"
    assert line.workdir == Path("runs/cifar10_20-10_32bit-seed4")
    assert parse_flags(["x"], "digits").config.data.name == "digits"
    for name in ("nothing", "elsewhere/cifar10.py", "/configs/cifar10.py", ""):
        with pytest.raises(
            UserError, match=r"no config file .*: give a path, or one of cifar10, cifar100, digits"
        ):
            find_config(name)


def test_a_local_config_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local = Path("configs/cifar10.py")
    local.parent.mkdir()
    local.write_text(
        "from binwrn_jax import base_config\n\ndef get_config():\n    config = base_config()\n"
        "    config.seed = 77\n    return config\n"
    )
    for name in ("cifar10", "cifar10.py", "configs/cifar10.py", str(local.absolute())):
        line = parse_flags(["x", f"--config={name}"], "digits")
        assert line.config.seed == 77 and Path(line.source).samefile(local)
    assert [path.name for path in tmp_path.rglob("*")] == ["configs", "cifar10.py"]  # no __pycache__


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(tmp_path):
    """Built and unpacked beside the packages of this environment, from which the checkout is hidden."""
    pip = [sys.executable, "-m", "pip", "-q"]
    built = subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], capture_output=True)
    if built.returncode:
        pytest.skip(f"no wheel can be built here: {built.stderr[-200:]!r}")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "binwrn_jax" / "deploy" / "web").rglob("*.*"):
        assert path.suffix == ".pyc" or path.relative_to(ROOT).as_posix() in names
    site, empty = tmp_path / "site", tmp_path / "empty"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    empty.mkdir()

    def binwrn(*arguments: str) -> str:
        code = f"import sys; sys.path.insert(0, {str(site)!r}); from binwrn_jax.cli.main import main; "
        command = [sys.executable, "-c", code + "sys.exit(main())", *arguments]
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = binwrn("train", "--config=digits:8-0.5", "--config.epochs=2", "--workdir=run")
    assert said.startswith(f"config {site / 'binwrn_jax' / 'configs' / 'digits.py'}:8-0.5\n")
    assert "/seven.png: " in binwrn("predict", "run", str(ROOT / "docs" / "seven.png"))
    assert "identical" in binwrn("export", "run", "--format", "c", "--output", "net.c")
    assert "all that it says holds" in binwrn("verify", "run/model.safetensors")
    assert "fits" in binwrn("preflight", "--config=digits:8-0.5", "--topology", "cpu")
