"""``folder:PATH``: image files, one folder for each class, with or without folders for the splits.

    flowers/daisy/1.jpg                 flowers/train/daisy/1.jpg
    flowers/rose/more/2.png             flowers/test/rose/2.png

Files in folders inside the folder of a class belong to the class. A single folder that holds all the others,
as in many archives, is entered.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from binwrn_jax.data.dataset import Example
from binwrn_jax.data.source import PARTS
from binwrn_jax.errors import UserError, printable

# Files of these names are images; others are left out and counted.
_KINDS = "apng avif bmp dds gif ico jfif jp2 jpe jpeg jpg pbm pcx pgm png pnm ppm qoi tga tif tiff webp"
SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())
_MOST_LEVELS = 3  # of folders that hold nothing but one folder


class FolderSource:
    """A `binwrn_jax.data.source.Source` of image files.

    Args:
      path: the folder.

    Raises:
      UserError: it cannot be read, or has no classes; the message says what it has instead.
    """

    def __init__(self, path: str) -> None:
        self.name = f"folder:{path}"
        top = Path(os.path.expanduser(path))
        self.folder = str(top)
        _check_folder(top)
        self._ignored: Counter[str] = Counter()
        self._nested = 0
        self._top = _enter(top)
        parts = _split_folders(self._top) or {"train": self._top}
        self._has_splits = parts["train"] != self._top
        found = {part: self._classes(folder) for part, folder in parts.items()}
        self.class_names = tuple(sorted(found["train"]))
        self._check_classes(found)
        self._files: dict[str, list[tuple[str, int]]] = {
            part: [
                (file, label) for label, name in enumerate(self.class_names) for file in classes.get(name, [])
            ]
            for part, classes in found.items()
        }
        self.sizes: Mapping[str, int] = {part: len(files) for part, files in self._files.items()}
        self.notes: Sequence[str] = self._notes(list(parts))
        self.fingerprint = self._fingerprint()

    def read(self, part: str, indices: Sequence[int]) -> Iterator[Example]:
        """See `Source`."""
        for index in indices:
            file, label = self._files[part][index]
            yield Example((self._top / file).read_bytes(), label)

    def describe(self, part: str, index: int) -> str:
        """See `Source`."""
        return printable(str(self._top / self._files[part][index][0]))

    def _classes(self, folder: Path) -> dict[str, list[str]]:
        """Class names and the files of each, as paths relative to the top folder, sorted."""
        found: dict[str, list[str]] = {}
        for class_folder in _visible_folders(folder):
            # macOS writes accents as characters of their own, others as one with the letter.
            name = unicodedata.normalize("NFC", class_folder.name)
            try:
                name.encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"the name of the folder {printable(str(class_folder))} is no UTF-8: rename it"
                ) from None
            files = sorted(os.path.relpath(file, self._top) for file in self._images_below(class_folder))
            if files:
                found.setdefault(name, []).extend(files)
        return found

    def _images_below(self, class_folder: Path) -> Iterator[str]:
        seen: set[tuple[int, int]] = set()
        for folder, folders, files in os.walk(class_folder, followlinks=True, onerror=_raise):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # a link that leads back
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
            for file in files:
                suffix = os.path.splitext(file)[1].lower()
                if file.startswith("."):
                    continue
                if suffix not in SUFFIXES:
                    self._ignored[suffix or "without a suffix"] += 1
                    continue
                self._nested += folder != str(class_folder)
                yield os.path.join(folder, file)

    def _check_classes(self, found: Mapping[str, Mapping[str, list[str]]]) -> None:
        where = printable(self.folder)
        if len(self.class_names) < 2:
            what = f"one class, {printable(self.class_names[0])!r}" if self.class_names else "no images"
            raise UserError(f"{where} holds {what}: give a folder with one folder of images for each class")
        for part, classes in found.items():
            foreign = sorted(set(classes) - set(self.class_names))
            if foreign:
                raise UserError(
                    f"{where}: the {part} images have a class {printable(foreign[0])!r} that the training "
                    "images have not: rename or remove its folder"
                )

    def _notes(self, parts: list[str]) -> list[str]:
        notes = [f"one folder for each class in {printable(str(self._top))}"]
        if self._has_splits:
            notes = [
                f"folders for {', '.join(parts)} in {printable(str(self._top))}, one for each class in them"
            ]
        if self._nested:
            notes.append(f"{self._nested:,} images are in folders inside those of the classes")
        if self._ignored:
            kinds = ", ".join(f"{count} {printable(kind)}" for kind, count in sorted(self._ignored.items()))
            notes.append(f"left out, as their names are not those of images: {kinds}")
        return notes

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(os.path.realpath(self._top).encode(errors="surrogateescape"))
        for part, files in self._files.items():
            for file, _ in files:
                status = _status(self._top / file)
                line = f"{part}\0{file}\0{status.st_size}\0{status.st_mtime_ns}\n"
                digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()


def _raise(error: OSError) -> None:
    raise error


def _status(file: Path) -> os.stat_result:
    """What the system says of a file.

    Raises:
      UserError: a broken link, a pipe or a device: reading it would fail, or never end.
    """
    try:
        status = os.stat(file)
    except OSError as error:
        raise UserError(
            f"cannot read {printable(str(file))} ({error.strerror}): mend or remove it"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{printable(str(file))} has the name of an image and is no file: remove it")
    return status


def _check_folder(top: Path) -> None:
    if not top.is_dir():
        why = "is no folder" if top.exists() else "does not exist"
        raise UserError(f"{printable(str(top))} {why}: give the folder of the images, folder:PATH")


def _visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name; hidden ones left out.

    Raises:
      UserError: the folder cannot be listed.
    """
    try:
        return sorted(
            path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
        )
    except OSError as error:
        raise UserError(f"cannot read the folder {printable(str(folder))} ({error.strerror})") from error


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES and path.is_file() for path in folder.iterdir())


def _enter(top: Path) -> Path:
    """The folder in which the classes or splits are: ``top``, or the only one in it."""
    for _ in range(_MOST_LEVELS):
        folders = _visible_folders(top)
        if not folders and _has_images(top):
            raise UserError(
                f"{printable(str(top))} holds images and no folders: put those of each class into a folder "
                "that has the name of the class"
            )
        if len(folders) != 1 or _has_images(top) or not _visible_folders(folders[0]):
            return top
        if folders[0].name.lower() in PARTS:
            return top
        top = folders[0]
    return top


def _split_folders(top: Path) -> dict[str, Path]:
    """The folders that are named as splits, if all are and one of them is for training."""
    folders = _visible_folders(top)
    found = {PARTS[folder.name.lower()]: folder for folder in folders if folder.name.lower() in PARTS}
    if "train" not in found:
        return {}
    others = [folder.name for folder in folders if folder.name.lower() not in PARTS]
    if _has_images(found["train"]) and not _visible_folders(found["train"]):
        return {}  # a class that is called train
    if others:
        raise UserError(
            f"{printable(str(top))} holds folders for splits ({', '.join(sorted(found))}) and others "
            f"({printable(others[0])}): leave only train, val and test"
        )
    if len(found) < len(folders):
        raise UserError(
            f"{printable(str(top))} holds two folders for one split: leave only train, val and test"
        )
    return found
