"""Folders of generated images for tests: classes of one colour each, of all kinds of files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image

CLASSES = ("café au lait", "grün", "red things", "日本 blue", "zebra")
COLOURS = ((150, 110, 70), (30, 160, 40), (200, 30, 30), (30, 40, 200), (230, 230, 230))


def picture(label: int, seed: int) -> PIL.Image.Image:
    """A noisy picture of a class's colour, 20 to 59 pixels high and wide."""
    rng = np.random.default_rng((label, seed))
    height, width = rng.integers(20, 60, 2)
    pixels = np.asarray(COLOURS[label]) + rng.normal(0, 25, (height, width, 3))
    return PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: PIL.Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return file.getvalue()


def make_folder(top: Path, images_per_class: int = 40) -> list[Path]:
    """Five classes of JPEGs and PNGs, some in an inner folder; three are broken, two are equal.

    Returns:
      The broken files.
    """
    broken = []
    for label, name in enumerate(CLASSES):
        for index in range(images_per_class):
            folder = top / name / ("more of them" if index % 4 == 3 else ".")
            folder.mkdir(parents=True, exist_ok=True)
            kind = "JPEG" if index % 2 else "PNG"
            file = folder / f"{name} {index}.{'jpg' if kind == 'JPEG' else 'png'}"
            file.write_bytes(encode(picture(label, index), kind))
            if index == label < 3:
                file.write_bytes(file.read_bytes()[:200] if label else b"no image")
                broken.append(file)
    first = top / CLASSES[4]
    (first / "a copy.png").write_bytes((first / f"{CLASSES[4]} 0.png").read_bytes())
    (top / CLASSES[0] / "notes.txt").write_text("not an image")
    return broken
