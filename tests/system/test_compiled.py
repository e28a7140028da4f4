"""Libraries compiled here are loaded only if they are ours and whole; the cache is never a folder `~`."""

import ctypes
import dataclasses
import fcntl
import logging
import os
import pwd
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from binwrn_jax.deploy import native
from binwrn_jax.errors import UserError
from binwrn_jax.nn import cpu
from binwrn_jax.system import compiled
from binwrn_jax.system.cache import user_cache

COMPILER = compiled.find_compiler("CC", ("cc", "gcc", "clang"))
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
SOURCE = "int answer(void) { return %d; }\n"


@pytest.fixture
def library(tmp_path):
    """A library of one function that gives 42."""
    source = tmp_path / "answer.c"
    source.write_text(SOURCE % 42)
    arguments = ("-fPIC", "-shared", str(source))
    return compiled.Library("the answer", "answer", COMPILER, arguments, (source,), (), ("answer",))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "binwrn_jax" / "answer"


def other_library(library, path, source):
    """Compiles something else into the place of a library."""
    library.inputs[0].with_name("other.c").write_text(source)
    other = str(library.inputs[0].with_name("other.c"))
    subprocess.run([COMPILER, "-fPIC", "-shared", other, "-o", str(path)], check=True)


def replaced_by_link(library, path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def owned_by_another(library, path):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 54321, 54321)


DAMAGES = {
    "cut": (lambda library, path: os.truncate(path, 3000), "is damaged"),
    "empty": (lambda library, path: os.truncate(path, 0), "is damaged"),
    "one bit flipped": (
        lambda library, path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
        "is damaged",
    ),
    "without symbols": (lambda library, path: other_library(library, path, "int x;"), "is damaged"),
    "planted": (lambda library, path: other_library(library, path, SOURCE % 13), "is damaged"),
    "mode 777": (lambda library, path: path.chmod(0o777), "can be written by other users"),
    "symbolic link": (replaced_by_link, "cannot be read"),
    "another owner": (owned_by_another, "belongs to another user, number 54321"),
}


@needs_compiler
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_library_is_compiled_again(library, cache, caplog, damage):
    change, reason = DAMAGES[damage]
    path = compiled.build(library)
    content = path.read_bytes()
    change(library, path)
    with caplog.at_level(logging.INFO, "binwrn_jax"):
        assert compiled.build(library) == path
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.lstat().st_mode) == 0o700 and path.lstat().st_uid == os.geteuid()
    assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0] and reason in caplog.messages[0]
    assert ctypes.CDLL(str(path)).answer() == 42
    caplog.clear()
    assert compiled.build(library) == path and not caplog.messages


@needs_compiler
def test_a_changed_source_is_compiled_again(library, cache):
    first = compiled.load(library)
    library.inputs[0].write_text(SOURCE % 43)
    second = compiled.load(library)
    assert (first.answer(), second.answer()) == (42, 43)
    assert len(list(cache.iterdir())) == 2


@needs_compiler
def test_a_library_without_its_function_is_refused(library, cache):
    with pytest.raises(UserError, match="has no function question"):
        compiled.load(dataclasses.replace(library, symbols=("answer", "question")))


@needs_compiler
def test_folders_are_private(library, cache):
    os.umask(os.umask(0o022))
    compiled.build(library)
    modes = [stat.S_IMODE(folder.stat().st_mode) for folder in (cache, cache.parent)]
    assert modes == [0o700, 0o700]
    cache.chmod(0o777)
    compiled.build(library)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@needs_compiler
def test_a_folder_of_another_user_is_refused(library, cache):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    compiled.build(library)
    os.chown(cache, 54321, 54321)
    with pytest.raises(UserError, match=r"belongs to another user, number 54321.*: set XDG_CACHE_HOME"):
        compiled.build(library)


@needs_compiler
def test_leftovers_of_a_killed_compilation_are_removed(library, cache):
    compiled.build(library)
    leftover = cache / ".build-killed"
    leftover.mkdir()
    (leftover / "made.so").write_bytes(b"x")
    handle = os.open(cache, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # a process that compiles now: its folder stays
    compiled.build(library)
    assert leftover.exists()
    os.close(handle)
    path = compiled.build(library)
    assert list(cache.iterdir()) == [path]


@needs_compiler
def test_a_killed_compilation_leaves_nothing_that_is_loaded(library, cache, tmp_path):
    """The compiler kills the process that called it, halfway."""
    killer = tmp_path / "cc"
    killer.write_text("#!/bin/sh\n[ $1 = --version ] && exit\nshift 4\necho half > $1; kill -9 $PPID\n")
    killer.chmod(0o755)
    code = (
        "from pathlib import Path; from binwrn_jax.system import compiled;"
        f"compiled.build(compiled.Library('x', 'answer', {str(killer)!r}, ('a', 'b', 'c'), (), (), ()))"
    )
    done = subprocess.run([sys.executable, "-c", code])
    assert done.returncode == -9
    assert [path.name[:7] for path in cache.iterdir()] == [".build-"]
    assert compiled.load(library).answer() == 42
    assert [path.name[:7] for path in cache.iterdir()] == ["answer-"]


@needs_compiler
def test_one_of_several_compiles_and_the_others_wait(library, cache, tmp_path):
    slow = tmp_path / "cc"
    slow.write_text(
        f'#!/bin/sh\n[ $1 = --version ] || {{ echo >> {tmp_path}/calls; sleep 0.3; }}\nexec {COMPILER} "$@"\n'
    )
    slow.chmod(0o755)
    shared = dataclasses.replace(library, compiler=str(slow))
    threads = [threading.Thread(target=compiled.build, args=(shared,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "calls").read_text() == "\n" and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "describe",
    [
        pytest.param(native._description, id="native runtime"),
        pytest.param(cpu._description, id="oneDNN calls", marks=pytest.mark.slow),
    ],
)
def test_the_real_libraries_are_proven(describe, monkeypatch, tmp_path):
    """Both of the package's libraries come from the same place; a cut one is compiled anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        path = compiled.build(describe())
    except UserError as error:
        pytest.skip(str(error))
    size = path.stat().st_size
    os.truncate(path, 3000)
    assert compiled.build(describe()) == path and path.stat().st_size == size


def test_places_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert user_cache("a") == Path("/x/binwrn_jax/a")
    for relative in ("", "~/.cache", "cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        monkeypatch.setenv("HOME", "/home/somebody")
        assert user_cache("a") == Path("/home/somebody/.cache/binwrn_jax/a")
    for home in ("", "~", None):
        monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
        assert user_cache("a") == Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache/binwrn_jax/a"

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert user_cache("a") == tmp_path / f"binwrn_jax-{os.getuid()}" / "a"


@needs_compiler
def test_a_user_without_home_and_name(tmp_path):
    """User 54321 has neither HOME nor an entry in the password file: as in many containers."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == 0 and folder != Path("/tmp"):
            folder.chmod(0o755)
    (tmp_path / "temporary").mkdir()
    (tmp_path / "temporary").chmod(0o777)
    source = tmp_path / "answer.c"
    source.write_text(SOURCE % 42)
    code = f"""
import os, sys, ctypes
from pathlib import Path
from binwrn_jax.system import compiled
os.chdir("/")
os.setgid(54321); os.setuid(54321)
arguments = ("-fPIC", "-shared", {str(source)!r})
answer = compiled.Library("x", "answer", {COMPILER!r}, arguments, (), (), ("answer",))
print(compiled.load(answer).answer(), compiled.build(answer).parent)
"""
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    environment["TMPDIR"] = str(tmp_path / "temporary")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == f"42 {tmp_path}/temporary/binwrn_jax-54321/answer\n", done.stderr
