"""Writing: the old content or the new one at each instant, nothing left over, nobody else's file touched."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from binwrn_jax.system import files
from binwrn_jax.system.files import RecordFile, find_folder, read_records, replace_file, replace_folder

EARLIER = [".x.1234.tmp", ".x.1234.unverified", ".x.tmp.png", ".x.new", ".x.old"]
OURS = [".x.0123456789abcdef.tmp", "..x.0123456789abcdef.tmp.0123456789abcdef.tmp"]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fill(text: str):
    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "a").write_text(text)
        (folder / "inner" / "b").write_text(text)

    return write


def read(folder: Path) -> str:
    """The content, once it is proven whole."""
    contents = snapshot(folder)
    assert set(contents) == {"a", "inner/b"} and len(set(contents.values())) == 1
    return contents["a"].decode()


def test_a_file_is_replaced_by_text_bytes_or_a_function(tmp_path):
    path = tmp_path / "x"
    for content in ("é", b"\xff", lambda temporary: temporary.write_text("made")):
        replace_file(path, content)
    assert path.read_text() == "made"
    replace_file(str(path), "again")
    assert os.listdir(tmp_path) == ["x"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_function_that_fails_leaves_the_old_file(tmp_path):
    def fails(temporary: Path) -> None:
        temporary.write_text("half")
        raise ZeroDivisionError

    replace_file(tmp_path / "x", "old")
    with pytest.raises(ZeroDivisionError):
        replace_file(tmp_path / "x", fails)
    with pytest.raises(IsADirectoryError):
        (tmp_path / "y").mkdir()
        replace_file(tmp_path / "y", "new")
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "nowhere" / "x", "new")
    assert snapshot(tmp_path) == {"x": b"old"}


def test_a_folder_is_replaced_whole(tmp_path):
    for text in ("one", "two", "three"):
        replace_folder(tmp_path / "x", fill(text))
        assert read(find_folder(tmp_path / "x")) == text
    assert os.listdir(tmp_path) == ["x"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError):
        replace_folder(tmp_path / "file", fill("four"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["rename", "fsync"])
@pytest.mark.parametrize("number", range(12))
def test_a_folder_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, name, number):
    replace_folder(tmp_path / "x", fill("old"))
    real, calls = getattr(os, name), []

    def full(*arguments, **options):
        calls.append(arguments)
        if len(calls) == number + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(files.os, name, full)
    try:
        replace_folder(tmp_path / "x", fill("new"))
        wanted = "new"  # the call was not needed, or a folder cannot tell
    except OSError:
        wanted = "old"
    monkeypatch.undo()
    assert read(tmp_path / "x") == wanted
    files.remove_leftovers(tmp_path, {"x"})
    assert os.listdir(tmp_path) == ["x"]


# Runs in an interpreter of its own, which forks a writer for each call that one is killed at: its first, its
# second, and so on, until it gets through. Prints what is found then, and how the writer ended.
KILLS = """
import itertools, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_files as t

def write(target, text):
    if sys.argv[3] == "file":
        t.replace_file(target, text)
    else:
        t.replace_folder(target, t.fill(text))

def killed_at(number):
    calls = itertools.count(1)
    def hook(event, arguments):
        if event.split(".")[0] in ("open", "os", "shutil", "fcntl") and next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

for number in itertools.count(1):
    target = Path(sys.argv[2], str(number), "x")
    target.parent.mkdir()
    write(target, "old")
    child = os.fork()
    if not child:
        killed_at(number)
        write(target, "new")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print("killed" if status else "done")
    if not status:
        break
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_at_any_call_leaves_old_or_new_and_the_next_writer_cleans(tmp_path, kind):
    here = str(Path(__file__).parent)
    child = subprocess.run(
        [sys.executable, "-c", KILLS, here, str(tmp_path), kind], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    ends = child.stdout.split()
    assert ends[-1] == "done" and len(ends) > (5 if kind == "file" else 20)
    seen = set()
    for number, end in enumerate(ends, start=1):
        target = tmp_path / str(number) / "x"
        content = find_folder(target)
        assert content
        found = content.read_text() if kind == "file" else read(content)
        assert found in ("old", "new") and (found == "new" or end == "killed")
        seen.add((found, end))
        if kind == "file":
            replace_file(target, "newer")
        else:
            replace_folder(target, fill("newer"))
            assert read(target) == "newer"
        assert os.listdir(target.parent) == ["x"]
    assert {("old", "killed"), ("new", "done")} <= seen


@pytest.mark.parametrize("alone", [True, False])
def test_leftovers_of_this_and_earlier_versions_are_removed_and_nothing_else(tmp_path, alone):
    replace_folder(tmp_path / "x", fill("kept"))
    kept = [".y.1234.tmp", ".x.tmp", "x.tmp", ".x.zz.old", ".xx.0123456789abcdef.tmp", ".gitignore"]
    for name in [*EARLIER, *OURS, *kept]:
        if name.endswith(("new", "old")):
            (tmp_path / name).mkdir()
            fill("left")(tmp_path / name)
        else:
            (tmp_path / name).write_text("left")
    files.remove_leftovers(tmp_path, {"x"}, alone)
    assert set(os.listdir(tmp_path)) == {"x", *kept}
    assert read(tmp_path / "x") == "kept"


def test_an_old_folder_without_a_new_one_gets_its_name_back(tmp_path):
    """As version 0.1.0 left it when it was killed between its two renames."""
    fill_old = tmp_path / ".x.old"
    fill_old.mkdir()
    fill("old")(fill_old)
    assert read(find_folder(tmp_path / "x")) == "old"
    assert os.listdir(tmp_path) == [".x.old"]  # a reader changes nothing
    files.remove_leftovers(tmp_path, {"x"})
    assert read(tmp_path / "x") == "old"


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    def write(folder: Path) -> None:
        fill("mine")(folder)
        files.remove_leftovers(tmp_path, {"x"})  # flock tells descriptors apart, not processes
        replace_file(tmp_path / "z", "another")

    replace_folder(tmp_path / "x", write)
    assert read(tmp_path / "x") == "mine"
    replace_file(tmp_path / "y", lambda path: (path.write_text("1"), files.remove_leftovers(tmp_path, {"y"})))
    assert (tmp_path / "y").read_text() == "1"


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("theirs")
    digits = iter(["0" * 16, "1" * 16])
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: next(digits))
    monkeypatch.setattr(files, "remove_leftovers", lambda *_: None)
    (tmp_path / f".x.{'0' * 16}.tmp").symlink_to(tmp_path / "secret")
    (tmp_path / f".x.{os.getpid()}.tmp").symlink_to(tmp_path / "secret")
    replace_file(tmp_path / "x", "ours")
    assert (tmp_path / "x").read_text() == "ours" and not (tmp_path / "x").is_symlink()
    assert (tmp_path / "secret").read_text() == "theirs"
    monkeypatch.undo()
    replace_file(tmp_path / "x", "again")
    assert (tmp_path / "secret").read_text() == "theirs"
    assert sorted(os.listdir(tmp_path)) == ["secret", "x"]


def test_records_are_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    log = RecordFile(path)
    log.append({"a": 3})
    real = os.write
    monkeypatch.setattr(files.os, "write", lambda descriptor, data: real(descriptor, data[:5]))
    log.append({"long": "x" * 100})  # in small pieces

    def full(descriptor, data):
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:5])

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        log.append({"long": "y" * 100})
    monkeypatch.undo()
    log.sync()
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == read_records(path)
    assert read_records(path) == [{"a": 1}, {"a": 3}, {"long": "x" * 100}]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder in which no file can be made")
def test_a_folder_in_which_nothing_can_be_made_ends_in_an_error():
    for write in (lambda: replace_file("/proc/x", "x"), lambda: replace_folder("/proc/x", Path.mkdir)):
        with pytest.raises(FileNotFoundError) as error:
            write()
        assert error.value.filename == "/proc/x"
