"""The native runtime as a library: threads, memory, arguments, compilation, the names that it shows."""

import ctypes
import math
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from native_runtime import FOLDER, PEDANTIC, images_of, needs, run, save
from packed_networks import Network

import binwrn_jax
from binwrn_jax.deploy import native
from binwrn_jax.deploy.formats import open_model
from binwrn_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("library")


def test_models_are_reentrant(packed, path):
    """One model called from many threads, and several models side by side."""
    images = images_of(packed, 8)
    wanted = native.load(path, threads=1).predict(images)
    models, results = [native.load(path, threads=2) for _ in range(2)], []

    def work(model, i):
        for _ in range(20):
            results.append(np.array_equal(model.predict(images[i : i + 1]), wanted[i : i + 1]))

    threads = [threading.Thread(target=work, args=(models[i % 2], i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 160


def test_buffers_are_shared_by_liveness(tmp_path):
    """A deep chain needs no more memory than a short one."""
    sizes = []
    for depth in (2, 12):
        n = Network(np.random.default_rng(0), (16, 16, 3))
        x = n.conv(n.affine("image", None), 16)
        for _ in range(depth):
            x = n.add(n.conv(n.affine(n.conv(n.affine(x), 16)), 16), x)
        path = save(n.finish(n.affine(x)), tmp_path / "m")
        sizes.append(native.load(path, threads=1).description["native"])
    image, value = 16 * 16 * 3 * 4, 16 * 16 * 16 * 4
    assert sizes[0]["arena_bytes"] == sizes[1]["arena_bytes"] <= image + 2 * value
    assert sizes[0]["total_bytes"] < sizes[1]["total_bytes"]


def test_description(packed, path):
    model = open_model(path, runtime="native")
    assert model.description["num_classes"] == 5
    assert model.description["image_shape"] == [12, 10, 3]
    assert model.description["class_names"][1] == "klass 1 ü"
    assert model.description["dataset"] == "cifar10"
    shapes = packed.value_shapes
    wanted = sum(
        math.prod(shapes[op["out"]]) * math.prod(op["window"]) * op["channels"][0]
        for op in packed.operations
        if op["op"] == "conv"
    )
    assert model.description["native"]["multiply_adds"] == wanted


@pytest.mark.parametrize(
    "images", [np.zeros((1, 12, 10, 3)), np.zeros((12, 10, 3), np.uint8), np.zeros((2, 10, 12, 3), np.uint8)]
)
def test_wrong_images(path, images):
    with pytest.raises(UserError, match=r"not uint8|not \[N, H, W, C\]|the network takes \(12, 10, 3\)"):
        native.load(path).predict(images)


def test_wrong_arguments(path, tmp_path):
    with pytest.raises(UserError, match="0 threads: it must be 1 to 256"):
        native.load(path, threads=0)
    with pytest.raises(UserError, match="no kernel 'abacus'"):
        native.load(path, kernel="abacus")
    with pytest.raises(UserError, match=r"absent: the file cannot be read"):
        native.load(tmp_path / "absent")
    with pytest.raises(UserError, match="not a regular file"):
        native.load(tmp_path)


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(UserError, match="needs a C compiler, and there is none"):
        native.build(tmp_path)
    monkeypatch.setenv("CC", "no-such-cc")
    with pytest.raises(UserError, match="CC=no-such-cc is no program"):
        native.build(tmp_path)


def test_failing_compiler_leaves_nothing(monkeypatch, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] || { echo 'x.c:1: error: no luck' >&2; exit 1; }\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(UserError, match=r"cannot build the native runtime: .*no luck"):
        native.build(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        native.build(tmp_path / "file" / "cache")


def test_side_by_side_builds_and_a_damaged_library(monkeypatch, path, tmp_path):
    """Two processes that need the library at the same time; then one that was not written to its end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code = (
        "import sys; from binwrn_jax.deploy import native; print(native.load(sys.argv[1]).predict.__name__)"
    )
    command = [sys.executable, "-c", code, str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["predict\n"] * 2
    (made,) = (tmp_path / "cache" / "binwrn_jax" / "native").iterdir()
    made.write_bytes(b"no library")
    result = run(*command)
    assert (result.returncode, result.stdout) == (0, "predict\n")
    assert result.stderr.count("\n") == 1 and "is compiled anew" in result.stderr


def test_libraries_show_only_names_of_their_own(program):
    """A program that has its own `json_parse` or `sha256_update` can link the static library too."""
    needs("nm")
    shared = run("nm", "-D", "--defined-only", native.build())
    exported = {line.split()[2] for line in shared.stdout.splitlines()}
    declared = re.findall(r"^BINWRN_API .*?(binwrn_\w+)\(", (FOLDER / "binwrn.h").read_text(), re.MULTILINE)
    assert exported - {"_init", "_fini"} == set(declared) and len(declared) == 7
    static = run("nm", "-g", "--defined-only", program.parent / "libbinwrn.a")
    names = [line.split()[2] for line in static.stdout.splitlines() if len(line.split()) == 3]
    assert len(names) > 20 and all(name.startswith("binwrn_") for name in names)


def test_the_version_is_that_of_the_package(library):
    header = (FOLDER / "binwrn.h").read_text()
    parts = [
        re.findall(rf"^#define BINWRN_VERSION_{part} (\d+)$", header, re.M)
        for part in ("MAJOR", "MINOR", "PATCH")
    ]
    assert ".".join(part[0] for part in parts) == binwrn_jax.__version__
    library.binwrn_version.restype = ctypes.c_char_p
    assert library.binwrn_version().decode() == binwrn_jax.__version__


COUNTING = """
#include <stdio.h>
#include <stdlib.h>
#include "binwrn.h"

static int count;
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t m);
void *__real_realloc(void *p, size_t n);
int __real_posix_memalign(void **p, size_t a, size_t n);
void *__wrap_malloc(size_t n) { return count++, __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t m) { return count++, __real_calloc(n, m); }
void *__wrap_realloc(void *p, size_t n) { return count++, __real_realloc(p, n); }
int __wrap_posix_memalign(void **p, size_t a, size_t n) { return count++, __real_posix_memalign(p, a, n); }

static float logits[20][5];
static uint8_t images[20 * 12 * 10 * 3];

int main(int argc, char **argv) {
  int threads, loading, i;
  binwrn_model *model;
  for (threads = 1; threads < 4; threads += 2) {
    binwrn_options options = {0, NULL, 0};
    options.threads = threads;
    count = 0;
    if (argc != 2 || binwrn_load_file(argv[1], &options, &model, NULL) != BINWRN_OK) return 2;
    loading = count;
    for (i = 0; i < 50; i++)
      if (binwrn_run(model, images, 20, logits[0]) != BINWRN_OK) return 2;
    printf("%d %d\\n", loading > 0, count - loading);
    for (i = 1; i < 20; i++)
      if (logits[i][0] != logits[0][0]) return 3;
    binwrn_free(model);
  }
  return 0;
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("first_step", ["0", "((1ull<<40)-777)"])
def test_running_allocates_nothing(first_step, path, tmp_path):
    """Nor does it matter that the numbers of the steps come to their end, which is moved near here."""
    compiler = native.find_compiler()
    (tmp_path / "count.c").write_text(COUNTING)
    wraps = [f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "realloc", "posix_memalign")]
    flags = [*PEDANTIC, "-O1", f"-I{FOLDER}", f"-DBINWRN_FIRST_STEP={first_step}", *wraps]
    sources = [*(FOLDER / name for name in native.SOURCES), tmp_path / "count.c"]
    built = run(compiler, *flags, *sources, "-o", tmp_path / "count", *native.LIBRARIES)
    assert built.returncode == 0, built.stderr
    result = run(tmp_path / "count", path)
    assert (result.returncode, result.stdout) == (0, "1 0\n" * 2)


@pytest.mark.slow
def test_header_in_cpp(tmp_path):
    needs("g++")
    (tmp_path / "a.cpp").write_text(
        '#include "binwrn.h"\nint main() { return binwrn_describe(nullptr) != nullptr; }\n'
    )
    flags = ["-std=c++11", *PEDANTIC[1:], f"-I{FOLDER}", "-fsyntax-only"]
    result = run("g++", *flags, tmp_path / "a.cpp")
    assert result.returncode == 0, result.stderr
