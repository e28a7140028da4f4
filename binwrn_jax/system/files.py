"""The three ways in which this program writes to disk: replace a file, replace a folder, append a record.

At each instant a reader that uses this module finds the whole old content or the whole new one, whenever
the writer is killed or the machine stops:

* The new content gets a temporary name, `.NAME.<16 hex digits>.tmp`, beside its final one. The digits are
  random, the name is created exclusively, and its creator holds a lock on it (`flock`), which ends with the
  process.
* The content, and the folders that hold it, reach the disk before the name changes.
* A folder cannot take the place of another in one step everywhere. The old one is renamed to
  `.NAME.<16 hex digits>.old`, then the new one gets its name, then the old one is removed. Between the first
  and the second step `find_folder` answers with the old one.
* What a kill leaves behind is removed by the next writer of the same name (`remove_leftovers`), and by the
  next start of a run, which holds the lock of the whole folder. Temporary names of earlier versions are too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

_OURS = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.(?P<kind>tmp|old)")
# Of version 0.1.0: `.NAME.PID.tmp`, `.NAME.PID.unverified`, `.NAME.tmp.png`; of folders `.NAME.new` and
# `.NAME.old`.
_EARLIER = re.compile(r"\.(?P<name>.+?)\.(?:\d+\.(?:tmp|unverified)|tmp\.png|(?P<kind>new|old))")


def replace_file(path: str | Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Writes a file so that a reader sees the old content or the new one, never a part.

    Args:
      path: of the file; its folder exists.
      content: text (UTF-8), bytes, or a function that writes to the path it is given and may check what it
        wrote: if it raises, the old file stays.

    Raises:
      OSError: the file cannot be written; the old one is as it was.
    """
    path = Path(path).absolute()
    remove_leftovers(path.parent, {path.name})
    temporary, descriptor = _create(path, folder=False)
    try:
        if callable(content):
            content(temporary)
        else:
            _write(descriptor, content.encode() if isinstance(content, str) else content)
        _sync(temporary)
        os.replace(temporary, path)
        _sync_names(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def replace_files(path: str | Path, write: Callable[[Path], object]) -> None:
    """Replaces a file and its companions beside it, each whole; the file itself comes last.

    Args:
      path: of the file; its folder exists.
      write: fills the empty folder that it is given with a file of the name of ``path`` and its companions,
        and may check what it wrote: if it raises, the old files stay.

    Raises:
      OSError: a file cannot be written; those that have not been replaced are as they were.
    """
    path = Path(path).absolute()
    remove_leftovers(path.parent, {path.name})
    fresh, descriptor = _create(path, folder=True)
    try:
        write(fresh)
        sync_folder(fresh)
        for name in sorted(os.listdir(fresh), key=lambda name: name == path.name):
            os.replace(fresh / name, path.parent / name)
        _sync_names(path.parent)
    finally:
        _discard(fresh)
        os.close(descriptor)


def replace_folder(path: str | Path, write: Callable[[Path], object]) -> None:
    """Writes a folder so that `find_folder` finds the old one or the new one, never a part.

    Args:
      path: of the folder; its parent exists. An older folder there is replaced whole.
      write: fills the empty folder that it is given.

    Raises:
      OSError: it cannot be written, or ``path`` is a file; what was there is as it was.
    """
    path = Path(path).absolute()
    remove_leftovers(path.parent, {path.name})
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(path))
    fresh, descriptor = _create(path, folder=True)
    try:
        write(fresh)
        sync_folder(fresh)
        with _moved_aside(path) as old:
            os.rename(fresh, path)
            _sync_names(path.parent)
    except BaseException:  # a full disk, for example
        _discard_when_quiet(fresh)
        raise
    finally:
        os.close(descriptor)
    if old:
        with contextlib.suppress(OSError):  # the new folder is in place; the next writer removes the old one
            _discard(old)


def find_folder(path: Path) -> Path | None:
    """The path at which a folder written by `replace_folder` can be read; None if there is none.

    It is ``path`` itself, except between two renames or after a kill between them.
    """
    if path.exists():
        return path
    for entry, name, kind in _leftovers(path.absolute().parent):
        if name == path.name and kind == "old":
            return entry
    return path if path.exists() else None


def sync_folder(folder: Path) -> None:
    """Returns when all files below a folder, and their names, are on the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync_names(Path(parent))


class RecordFile:
    """Appends records to a file of JSON lines; each is whole in the file, or absent.

    Args:
      path: created if absent. A torn last line, which a kill or a full disk left, is dropped.
    """

    def __init__(self, path: str | Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        content = Path(path).read_bytes()
        if not content.endswith(b"\n"):
            os.ftruncate(self._descriptor, content.rfind(b"\n") + 1)

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one record; it survives the end of this process, and that of the machine after `sync`."""
        size = os.fstat(self._descriptor).st_size
        try:
            _write(self._descriptor, json.dumps(record, allow_nan=False).encode() + b"\n")
        except BaseException:
            os.ftruncate(self._descriptor, size)
            raise

    def sync(self) -> None:
        """Returns when all records are on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; lines that are no JSON object are left out."""
    records: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def remove_leftovers(folder: Path, names: Collection[str], alone: bool = False) -> None:
    """Removes what killed writers of ``folder/NAME`` left, or gives an old folder its name back.

    Args:
      folder: where to look; not below it.
      names: of the files and folders that this program writes there.
      alone: no other process writes in ``folder``, since the caller holds its lock. Otherwise what another
        process is writing is left alone, and so is all where the file system has no locks.
    """
    for entry, name, kind in _leftovers(folder):
        if name not in names or not (alone or _abandoned(entry)):
            continue
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if kind == "old" and not os.path.lexists(folder / name):
                os.rename(entry, folder / name)
            else:
                _discard(entry)


def _leftovers(folder: Path) -> list[tuple[Path, str, str]]:
    """Path, final name and kind, ``tmp`` or ``old``, of each temporary file and folder."""
    found = []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    for entry in names:
        name, kind = entry, ""
        while match := _OURS.fullmatch(name) or _EARLIER.fullmatch(name):  # of a temporary file of another
            name, kind = match["name"], kind or match["kind"] or "tmp"
        if kind:
            found.append((folder / entry, name, kind))
    return found


def _abandoned(path: Path) -> bool:
    """Whether no living process holds the lock of a temporary file or folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return path.is_symlink()  # never made by a writer of this version
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _create(path: Path, folder: bool) -> tuple[Path, int]:
    """A new temporary file or folder for ``path`` and a descriptor that holds its lock."""
    for last in [False] * 50 + [True]:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            if folder:
                temporary.mkdir()
                descriptor = os.open(temporary, os.O_RDONLY)
            else:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            _lock(descriptor)
            if os.path.samestat(os.fstat(descriptor), os.stat(temporary)):
                return temporary, descriptor
            os.close(descriptor)
        except FileExistsError:
            continue
        except FileNotFoundError as error:
            # Another process took it for a leftover before it was locked; or there is no such folder, or
            # one where no file can be made (/proc).
            if last or not path.parent.is_dir():
                raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    raise FileExistsError(17, "File exists", str(path))


def _lock(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # some network file systems have no locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _moved_aside(path: Path) -> Iterator[Path | None]:
    """Renames an existing folder for the time of the block, and back if the block fails."""
    if not os.path.lexists(path):
        yield None
        return
    old = path.with_name(f".{path.name}.{secrets.token_hex(8)}.old")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor)  # or another process may give it its name back
        os.rename(path, old)
        try:
            yield old
        except BaseException:
            os.rename(old, path)
            raise
    finally:
        os.close(descriptor)


def _discard_when_quiet(folder: Path) -> None:
    """Removes a folder which threads of a write that has failed may be making anew."""
    for _ in range(10):
        _discard(folder)
        time.sleep(0.2)
        if not folder.exists():
            return


def _discard(path: Path) -> None:
    """Removes a file or a folder of any content; a folder is never seen half removed under an `.old` name."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if path.name.endswith(".old"):
        name = (_OURS.fullmatch(path.name) or _EARLIER.fullmatch(path.name))["name"]  # type: ignore[index]
        path = path.rename(path.with_name(f".{name}.{secrets.token_hex(8)}.tmp"))
    # Threads of Orbax may be writing still, and make folders anew; on a busy machine for seconds.
    for seconds in (0.0, 0.1, 0.4, 1.0, 2.0, 4.0, 8.0):
        time.sleep(seconds)
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync(path: Path) -> None:
    """Returns when a file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_names(folder: Path) -> None:
    """Returns when the names in a folder are on the disk, where the file system can tell."""
    with contextlib.suppress(OSError):
        _sync(folder)
