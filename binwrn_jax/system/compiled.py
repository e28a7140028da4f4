"""Shared libraries: compiled on this computer, kept in the user's cache, loaded only if unchanged and ours.

A library is loaded only if its file belongs to this user, nobody else may write it, and its content has the
hash that its name states; any other file is compiled anew. So a file that was cut, replaced or planted is
never run.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from binwrn_jax.errors import UserError
from binwrn_jax.system.cache import user_cache
from binwrn_jax.system.files import replace_file

_log = logging.getLogger("binwrn_jax")
_SCRATCH = ".build-"
_OTHER_FOLDER = "set XDG_CACHE_HOME to a folder"


@dataclasses.dataclass(frozen=True)
class Library:
    """How to compile a library.

    Attributes:
      title: what it is, for messages: "the native runtime".
      name: of its file, and of its folder in the cache.
      compiler: the path of the program.
      arguments: of the compiler, without ``-o``.
      inputs: the sources and headers: a change of their names or content compiles anew.
      versions: of other things, a change of which compiles anew.
      symbols: functions that the library must have.
      suffix: of its file.
    """

    title: str
    name: str
    compiler: str
    arguments: tuple[str, ...]
    inputs: tuple[Path, ...]
    versions: tuple[str, ...]
    symbols: tuple[str, ...]
    suffix: str = ".so"

    def key(self) -> str:
        """A hash of all that the library is made of, the compiler's version and the computer's kind among it.

        Raises:
          UserError: the compiler does not run.
        """
        try:
            version = subprocess.run([self.compiler, "--version"], capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"the compiler {self.compiler} does not run ({error})") from error
        digest = hashlib.sha256(version)
        for part in (self.compiler, *self.arguments, *self.versions, sys.platform, platform.machine()):
            digest.update(part.encode() + b"\0")
        for path in sorted(self.inputs):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:24]


def find_compiler(variable: str, names: tuple[str, ...]) -> str | None:
    """The program that an environment variable names, or the first that there is of `names`; else None."""
    chosen = os.environ.get(variable)
    return next((path for name in ([chosen] if chosen else names) if (path := shutil.which(name))), None)


def load(library: Library) -> ctypes.CDLL:
    """Loads the library, compiled if need be; see `build` for what it raises.

    Raises:
      UserError: also if the system does not load it, or it lacks a function.
    """
    path = build(library)
    try:
        loaded = ctypes.CDLL(str(path.absolute()))
    except OSError as error:  # for example a folder from which the system runs no programs
        raise UserError(f"cannot load {path} ({error}): {_OTHER_FOLDER} on another disk") from error
    missing = [name for name in library.symbols if not hasattr(loaded, name)]
    if missing:
        raise UserError(f"{path}, as {library.compiler} made it, has no function {missing[0]}: reinstall it")
    return loaded


def build(library: Library, folder: Path | None = None) -> Path:
    """Compiles the library unless it is there already.

    The file appears at once under a name with two hashes, of what it is made of and of its content. One
    process compiles at a time, others wait for it.

    Args:
      library: what to build.
      folder: to keep it in; None for the cache.

    Returns:
      The path of a file that belongs to this user and has the content that the compiler wrote.

    Raises:
      UserError: the compiler fails, or the folder cannot be written or belongs to somebody else.
    """
    key = library.key()
    try:
        if folder is None:
            folder = user_cache(library.name)
            _make_private(folder.parent)
        _make_private(folder)
        good, bad, leftovers = _look(folder, f"{library.name}-{key}-", library.suffix)
        if good and not leftovers:
            return good
        with _locked(folder, wait=good is None) as alone:
            if alone:
                _remove_leftovers(folder)
            if good:
                return good
            # Another process may have made it.
            good, bad, _ = _look(folder, f"{library.name}-{key}-", library.suffix)
            if good:
                return good
            for path, reason in bad[:1]:
                _log.warning("%s is compiled anew: %s %s", library.title, path, reason)
            for path, _ in bad:
                path.unlink(missing_ok=True)
            return _compile(library, key, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {folder} ({reason}): {_OTHER_FOLDER} that can be written") from error


def _make_private(folder: Path) -> None:
    """Creates the folder for this user alone, or checks an existing one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(0, "it is no folder")
    if found.st_uid != os.geteuid():
        raise PermissionError(0, f"it belongs to another user, number {found.st_uid}")
    if found.st_mode & 0o077:
        try:
            folder.chmod(0o700)
        except OSError:
            if found.st_mode & 0o022:  # that others can read it does no harm
                raise


def _look(folder: Path, prefix: str, suffix: str) -> tuple[Path | None, list[tuple[Path, str]], bool]:
    """The library, files of its name that are not to be used with the reason, whether there are leftovers."""
    good, bad, leftovers = None, [], False
    for name in sorted(os.listdir(folder)):
        leftovers = leftovers or name.startswith(_SCRATCH)
        if name.startswith(prefix) and name.endswith(suffix):
            reason = _fault(folder / name, name.removeprefix(prefix).removesuffix(suffix))
            if reason:
                bad.append((folder / name, reason))
            else:
                good = folder / name
    return good, bad, leftovers


def _fault(path: Path, content_hash: str) -> str | None:
    """Why a file must not be loaded, or None."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            return "is no file"
        if found.st_uid != os.geteuid():
            return f"belongs to another user, number {found.st_uid}"
        if found.st_mode & 0o022:
            return "can be written by other users"
        if _hash(file.read()) != content_hash:
            return "is damaged"
    return None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


@contextlib.contextmanager
def _locked(folder: Path, wait: bool) -> Iterator[bool]:
    """Holds the folder's lock, if it can, and gives whether it does. A lock ends with its process."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            alone = True
        except OSError:  # busy, or a disk without locks: two processes may then compile side by side
            alone = False
        yield alone
    finally:
        os.close(handle)


def _remove_leftovers(folder: Path) -> None:
    """Removes what processes left that were killed while they compiled; the caller holds the lock."""
    for name in os.listdir(folder):
        if name.startswith(_SCRATCH):
            shutil.rmtree(folder / name, ignore_errors=True)


def _compile(library: Library, key: str, folder: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
        made = Path(scratch, "made" + library.suffix)
        command = [library.compiler, *library.arguments, "-o", str(made)]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if result.returncode or not made.is_file():
            lines = result.stderr.splitlines()
            reason = next((line for line in lines if "error" in line), (lines or ["it writes no file"])[0])
            raise UserError(
                f"the compiler {library.compiler} cannot build {library.title}: {reason.strip()[:300]}"
            )
        made.chmod(0o700)
        path = folder / f"{library.name}-{key}-{_hash(made.read_bytes())}{library.suffix}"
        replace_file(path, lambda temporary: os.replace(made, temporary))
    return path
