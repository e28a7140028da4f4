"""A folder of 2,000 images from its first look to predictions, by the commands of an installed wheel.

    python benchmarks/own_folder.py --output /tmp/own-folder

Makes JPEGs and PNGs of 5 classes whose names have spaces and letters of other scripts, one folder down and
some of them two, three of them broken and one a copy of another; builds the wheel, installs it into a virtual
environment of its own (with ``--here`` beside the packages of this environment, which saves the download),
and gives there the commands of docs/own-data.md. Exits with 1 where one of them does not do what that
document says.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from common import machine

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from own_images import CLASSES, make_folder  # noqa: E402


def install(folder: Path, here: bool) -> Path:
    """The program ``binwrn`` of a new virtual environment with this checkout's wheel."""
    pip = [sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    install = [python, "-m", "pip", "-q", "install"]
    if here:
        subprocess.run([*install, "--no-deps", str(wheel)], check=True)
        (site,) = environment.glob("lib/python*/site-packages")
        # A line of a .pth file adds a folder, and not what that folder's own .pth files add: no checkout.
        (site / "here.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    else:
        constraints = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([*install, *constraints, f"binwrn-jax[data,plot,cpu] @ {wheel.as_uri()}"], check=True)
    return environment / "bin" / "binwrn"


class Session:
    """Commands in an empty folder, printed with their output, exit codes and seconds."""

    def __init__(self, binwrn: Path, folder: Path) -> None:
        self._binwrn, self.folder = binwrn, folder
        folder.mkdir()
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        self.environment["XDG_CACHE_HOME"] = str(folder / "cache")
        self.wrong: list[str] = []

    def __call__(self, code: int, expected: str, *arguments: str) -> str:
        """Runs ``binwrn`` and notes where the exit code is another, or the output lacks a text."""
        start = time.perf_counter()
        done = subprocess.run(
            [str(self._binwrn), *arguments], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        said = "\n".join(line for line in done.stdout.splitlines() if "\r" not in line)
        print(f"$ binwrn {' '.join(arguments)}\n{said}")
        print(f"[exit code {done.returncode}, {time.perf_counter() - start:.0f} s]\n", flush=True)
        if done.returncode != code or expected not in said:
            what = f"exit code {done.returncode} and not {code}, or no {expected!r}"
            self.wrong.append(f"binwrn {arguments[0]}: {what}")
        return said


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--here", action="store_true", help="use the packages of this environment")
    arguments = parser.parse_args()
    folder = arguments.output.absolute()
    folder.mkdir(parents=True)
    print(json.dumps(machine()) + "\n", flush=True)
    broken = make_folder(folder / "work of others" / "my images", arguments.images // len(CLASSES))
    binwrn = Session(install(folder, arguments.here), folder / "empty")
    images = str(folder / "work of others")
    name = f"--config.data.name=folder:{images}"
    said = binwrn(2, "", "data", f"folder:{images}")
    for words in (*CLASSES, *(path.name for path in broken), "a copy.png"):
        if words not in said:
            binwrn.wrong.append(f"binwrn data does not say {words!r}")
    train = ["train", "--config=own_images:8-1", name, "--config.data.size=16", "--workdir=run"]
    train.append(f"--config.epochs={arguments.epochs}")
    binwrn(2, "skip_broken", *train)
    binwrn(0, "done: test error", *train, "--config.data.skip_broken=True")
    binwrn(0, "all that it says holds", "verify", "run/model.safetensors")
    binwrn(2, "3 not readable", "predict", "run/model.safetensors", images, "--csv", "predictions.csv")
    with open(folder / "empty" / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    top = folder / "work of others" / "my images"
    right = sum(Path(row["path"]).relative_to(top).parts[0] == row["class"] for row in rows)
    print(f"predictions.csv: {len(rows)} lines, {right} with the class of their folder")
    if len(rows) != arguments.images + 1 or right < 0.9 * len(rows):
        binwrn.wrong.append("predictions.csv has other lines than there are images, or wrong classes")
    print("\n".join(binwrn.wrong) or "all as documented")
    return 1 if binwrn.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
