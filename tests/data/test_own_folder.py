"""2,000 images from a folder to predictions, by the commands of docs/own-data.md and an installed wheel."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_folder_of_2000_images_by_an_installed_wheel(tmp_path):
    command = [sys.executable, "benchmarks/own_folder.py", "--here", "--output", str(tmp_path / "all")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("\nall as documented\n"), done.stdout + done.stderr
