"""The native runtime: the same logits as the definition of the format, for any network and any damage."""

import json
import math
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import packed_corpus
import pytest
from packed_networks import Network, any_network, residual, wide_resnet

from binwrn_jax.cli.main import main
from binwrn_jax.data.open import load
from binwrn_jax.deploy import native, numpy_reader
from binwrn_jax.deploy.c_source.generate import generate
from binwrn_jax.deploy.c_source.program import open_c, write_c
from binwrn_jax.deploy.formats import open_model
from binwrn_jax.deploy.packed import PackedModel, read_packed, serialise
from binwrn_jax.errors import UserError

FOLDER = native.FOLDER
PEDANTIC = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
TOLERANCE = 2e-6  # of the largest logit


@pytest.fixture(scope="session", autouse=True)
def library(tmp_path_factory):
    """Built once, into a folder of its own."""
    try:
        native.find_compiler()
    except UserError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("native")))
        native._library.cache_clear()
        yield native._library()
        native._library.cache_clear()


def kernels():
    """Those that this processor has."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = []
    found = ["plain"]
    if {"avx2", "fma"} <= set(flags):
        found.append("avx2")
    if "avx512f" in flags:
        found.append("avx512")
    if platform.machine() == "aarch64":
        found.append("neon")
    return found


def save(packed, path):
    path.write_bytes(serialise(packed))
    return path


def images_of(packed, count, seed=1):
    shape = packed.metadata["input"]["shape"]
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def reference(packed, images):
    return numpy_reader.Model(packed.metadata, packed.tensors)(images)


def assert_close(logits, wanted):
    assert logits.dtype == np.float32
    assert logits.shape == wanted.shape
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=TOLERANCE * max(np.abs(wanted).max(), 1e-3))


@pytest.fixture(scope="module")
def packed():
    return residual(np.random.default_rng(0))


@pytest.fixture
def path(packed, tmp_path):
    return save(packed, tmp_path / "model.packed")


# --- the same numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("threads", [1, 3])
def test_agrees_with_the_definition(packed, path, kernel, threads):
    images = images_of(packed, 5)
    model = native.load(path, threads=threads, kernel=kernel)
    assert model.description["native"]["kernel"] == kernel
    assert_close(model.predict(images), reference(packed, images))
    assert_close(model.predict(packed.golden_image[None]), packed.golden_logits[None])


def test_golden_file_of_the_format(tmp_path):
    path = Path(__file__).parents[1] / "golden" / "packed_v1.safetensors"
    golden = read_packed(path)
    image, wanted = golden.golden_image[None], golden.golden_logits[None]
    for kernel in kernels():
        assert_close(native.load(path, kernel=kernel).predict(image), wanted)
    write_c(golden, tmp_path / "golden.c")
    assert_close(open_c(tmp_path / "golden.c")(image), wanted)


@pytest.mark.parametrize("seed", range(40))
def test_any_network_of_the_format(seed, tmp_path):
    packed = any_network(np.random.default_rng(seed))
    path, images = save(packed, tmp_path / "m"), images_of(packed, 2)
    wanted = reference(packed, images)
    for kernel in kernels():
        assert_close(native.load(path, threads=1 + seed % 3, kernel=kernel).predict(images), wanted)


@pytest.mark.parametrize(
    ("window", "stride", "shape"),
    [((7, 7), (2, 2), (32, 30, 3)), ((64, 64), (64, 64), (70, 70, 1)), ((1, 9), (3, 7), (5, 40, 21))],
)
def test_large_windows_and_strides(window, stride, shape, tmp_path):
    n = Network(np.random.default_rng(0), shape)
    pads = [[side // 2, side // 2] for side in window]
    packed = n.finish(n.affine(n.conv(n.affine("image", None), 33, window, stride, pads)))
    path, images = save(packed, tmp_path / "m"), images_of(packed, 2)
    for kernel in kernels():
        model = native.load(path, threads=2, kernel=kernel)
        assert_close(model.predict(images), reference(packed, images))


def test_any_number_of_images_and_none(packed, path):
    model = native.load(path, threads=2)
    images = images_of(packed, 9)
    whole = model.predict(images)
    assert model.predict(images[:0]).shape == (0, 5)
    for i in range(9):
        np.testing.assert_array_equal(model.predict(images[i : i + 1]), whole[i : i + 1])
    np.testing.assert_array_equal(model.predict(images[::2]), whole[::2])  # not contiguous


def test_thread_counts_give_the_same_bits(packed, path):
    images = images_of(packed, 3)
    one = native.load(path, threads=1).predict(images)
    for threads in (2, 5, 16):
        np.testing.assert_array_equal(native.load(path, threads=threads).predict(images), one)


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


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images", [np.zeros((1, 12, 10, 3)), np.zeros((12, 10, 3), np.uint8), np.zeros((2, 10, 12, 3), np.uint8)]
)
def test_wrong_images(path, images):
    with pytest.raises(UserError, match=r"the model takes uint8 \(N, 12, 10, 3\)"):
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


def header_of(content):
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return packed_corpus.seal(packed_corpus.container(text, data))


def edited(content, edit):
    """The file after `edit(metadata, header)`."""
    header, data = header_of(content)
    metadata = json.loads(header["__metadata__"]["binwrn"])
    edit(metadata, header)
    header["__metadata__"]["binwrn"] = json.dumps(metadata)
    return with_header(header, data)


def conv(metadata, index=0):
    return [op for op in metadata["operations"] if op["op"] == "conv"][index]


EDITS = {
    "format": lambda m, h: m.update(format="other"),
    "no operations": lambda m, h: m.update(operations=[]),
    "operations of another type": lambda m, h: m.update(operations={"0": {}}),
    "unknown op": lambda m, h: m["operations"][0].update(op="softmax"),
    "unknown field": lambda m, h: m["operations"][0].update(bias=1),
    "field of another op": lambda m, h: m["operations"][0].update(window=[1, 1]),
    "image of 2^12 sides": lambda m, h: m["input"].update(shape=[4096, 4096, 4096]),
    "image side 0": lambda m, h: m["input"].update(shape=[0, 10, 3]),
    "image side 2^63": lambda m, h: m["input"].update(shape=[2**63, 10, 3]),
    "float input": lambda m, h: m["input"].update(dtype="float32"),
    "range": lambda m, h: m["input"].update(range=[0, 1]),
    "window 0": lambda m, h: conv(m).update(window=[0, 3]),
    "window too large": lambda m, h: conv(m).update(window=[65, 3]),
    "window of 3": lambda m, h: conv(m).update(window=[3, 3, 1]),
    "stride 0": lambda m, h: conv(m).update(stride=[0, 1]),
    "stride negative": lambda m, h: conv(m).update(stride=[1, -1]),
    "stride a float": lambda m, h: conv(m).update(stride=[1.0, 1]),
    "stride true": lambda m, h: conv(m).update(stride=[True, 1]),
    "pads of the window": lambda m, h: conv(m).update(pads=[[3, 0], [1, 1]]),
    "pads that make the terms of a sum differ": lambda m, h: conv(m, 1).update(pads=[[2, 1], [1, 1]]),
    "channels in": lambda m, h: conv(m)["channels"].__setitem__(0, 4),
    "channels out": lambda m, h: conv(m)["channels"].__setitem__(1, 17),
    "channels 2^31": lambda m, h: conv(m)["channels"].__setitem__(1, 2**31),
    "input of later": lambda m, h: conv(m).update({"in": ["v9"]}),
    "input missing": lambda m, h: conv(m).update({"in": []}),
    "output twice": lambda m, h: m["operations"][1].update(out="v0"),
    "output called image": lambda m, h: m["operations"][0].update(out="image"),
    "output without name": lambda m, h: m["operations"][0].update(out=""),
    "tensor absent": lambda m, h: conv(m).update(tensor="conv99"),
    "tensor of another": lambda m, h: conv(m).update(tensor="conv1"),
    "tensor a number": lambda m, h: conv(m).update(tensor=7),
    "min a string": lambda m, h: m["operations"][0].update(min="0"),
    "min huge": lambda m, h: m["operations"][0].update(min=1e39),
    "no global average": lambda m, h: m["operations"].pop(),
    "global average twice": lambda m, h: m["operations"].insert(
        1, {"op": "global_average", "in": ["v0"], "out": "w"}
    ),
    "classes": lambda m, h: m.update(num_classes=6),
    "class names": lambda m, h: m.update(class_names=["a"]),
    "class names of numbers": lambda m, h: m.update(class_names=[1, 2, 3, 4, 5]),
    "checksum": lambda m, h: m.update(sha256="0" * 64),
    "no checksum": lambda m, h: m.pop("sha256"),
    "dtype": lambda m, h: h["conv0"].update(dtype="I8"),
    "shape": lambda m, h: h["conv0"].update(shape=[4, 4]),
    "offsets swapped": lambda m, h: h["conv0"].update(data_offsets=h["conv0"]["data_offsets"][::-1]),
    "offsets beyond": lambda m, h: h["conv0"].update(data_offsets=[10**6, 10**6 + 64]),
    "offsets overlap": lambda m, h: h["conv1"].update(data_offsets=h["conv0"]["data_offsets"]),
    "unused tensor": lambda m, h: h.update({"x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}),
    "missing tensor": lambda m, h: h.pop("golden.logits"),
}


def verdicts(content, path):
    """Whether the definition of the format and the native runtime accept a file."""
    path.write_bytes(content)
    result = []
    for read in (numpy_reader.read, lambda p: native.load(p, threads=1)):
        try:
            read(path)
            result.append(True)
        except (numpy_reader.PackedFileError, UserError) as error:
            assert "\n" not in str(error)
            result.append(False)
    return result


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_refuses_what_the_format_forbids(packed, tmp_path, edit):
    assert verdicts(edited(serialise(packed), edit), tmp_path / "m") == [False, False]


@pytest.mark.parametrize(
    "edit",
    [
        lambda m, h: m["operations"][0].update(min=-3),
        lambda m, h: m["operations"][0].pop("min"),
        lambda m, h: m.update(class_names=[]),
        lambda m, h: m.update(extra={"a": [1.5e3, -0, True, None, "\ud83d\ude00\\\n"]}),
        lambda m, h: m.update(nested=[[[[[[[[[[]]]]]]]]]]),
    ],
)
def test_accepts_what_the_format_allows(packed, tmp_path, edit):
    assert verdicts(edited(serialise(packed), edit), tmp_path / "m") == [True, True]


def test_versions(packed, tmp_path):
    path = tmp_path / "m"
    path.write_bytes(edited(serialise(packed), lambda m, h: m.update(version=3)))
    with pytest.raises(UserError, match="version 3, but this program reads versions 1 and 2: update it"):
        native.load(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"{}",
        b"[]",
        b'{"__metadata__":{"binwrn":"{}"}}',
        b'{"__metadata__":{"binwrn":"' + b"[" * 5000 + b'"}}',
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"a":1,"a":2}',
        b'{"__metadata__":{"binwrn":"{\\"a\\":1,\\"a\\":2}"}}',
        b'{"a":NaN}',
        b'{"a":01}',
        b'{"a":1.}',
        b'{"a":"\\x"}',
        b'{"a":"\\u12"}',
        b'{"a":"\xff"}',
        b'{"a":"\xc0\x80"}',
        b'{"a":"\n"}',
        b'{"a":1}x',
        b'{"a":' + b"9" * 4000 + b"e" + b"9" * 4000 + b"}",
    ],
)
def test_headers_that_are_no_packed_model(header, tmp_path):
    assert verdicts(with_header(header, b""), tmp_path / "m") == [False, False]


def test_truncated_and_longer_files(packed, tmp_path):
    content = serialise(packed)
    for end in [*range(0, 64, 3), *range(64, len(content), len(content) // 60), len(content) - 1]:
        assert verdicts(content[:end], tmp_path / "m") == [False, False], end
    assert verdicts(content + b"\0", tmp_path / "m") == [False, False]
    assert verdicts(content, tmp_path / "m") == [True, True]


def test_numbers_that_are_not_finite(packed, tmp_path):
    content = serialise(packed)
    header, data = header_of(content)
    for name in ("affine0.scale", "golden.logits"):
        for value in (np.nan, np.inf, -np.inf):
            begin = header[name]["data_offsets"][0]
            bad = data[:begin] + np.float32(value).tobytes() + data[begin + 4 :]
            assert verdicts(with_header(header, bad), tmp_path / "m") == [False, False]


def test_damaged_bytes_get_the_verdict_of_the_definition(packed, tmp_path):
    """In an older file, without a checksum that finds all damage."""
    header, data = header_of(serialise(packed))
    del header["__metadata__"]["file_sha256"]
    content, rng = with_header(header, data), np.random.default_rng(0)
    (length,) = struct.unpack("<Q", content[:8])
    accepted = 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at = (
                int(rng.integers(0, length + 8)) if rng.random() < 0.8 else int(rng.integers(0, len(content)))
            )
            damaged[at] = rng.choice(list(b'0123456789"[]{},:-.eE\\u truefalsn\x00\xff'))
        definition, found = verdicts(bytes(damaged), tmp_path / "m")
        assert definition == found, bytes(damaged[: length + 8])
        accepted += found
    assert 0 < accepted < 400


# --- the program --------------------------------------------------------------------------------------------


def make(folder, compiler, *settings):
    subprocess.run(
        ["make", "-s", "-C", str(FOLDER), f"CC={compiler}", f"BUILD={folder}", *settings], check=True
    )
    return folder / "binwrn-run"


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    if not shutil.which("make"):
        pytest.skip("needs make")
    return make(tmp_path_factory.mktemp("program"), native.find_compiler(), "CFLAGS=-O1")


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)


def logits_in(output):
    """The logits of lines such as `image.ppm[0] 3 klass 3 ü 0.1 0.2 0.3 0.4 0.5`."""
    lines = [line.split() for line in output.splitlines() if "] " in line]
    return np.float32([[float(word) for word in line[-5:]] for line in lines])


def test_program(program, packed, path, tmp_path):
    images = images_of(packed, 3)
    wanted = reference(packed, images)
    (tmp_path / "three.raw").write_bytes(images.tobytes())
    (tmp_path / "one.ppm").write_bytes(b"P6 # comment\n10 12\n255\n" + images[1].tobytes())
    result = run(program, "--threads", 2, path, tmp_path / "three.raw", tmp_path / "one.ppm", "golden")
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(
        logits_in(result.stdout), [*wanted, wanted[1], packed.golden_logits], rtol=1e-4, atol=1e-5
    )
    best = int(wanted[0].argmax())
    assert result.stdout.startswith(f"{tmp_path / 'three.raw'}[0] {best} klass {best} ü ")


def test_program_says_what_is_wrong(program, path, tmp_path):
    (tmp_path / "small.ppm").write_bytes(b"P6 5 5 255\n" + bytes(75))
    (tmp_path / "short.ppm").write_bytes(b"P6 10 12 255\n" + bytes(7))
    for arguments, message in [
        ([path], "usage"),
        ([path, tmp_path / "small.ppm"], "its size is not the model's"),
        ([path, tmp_path / "short.ppm"], "truncated"),
        ([path, tmp_path / "absent"], "cannot be read"),
        ([tmp_path / "small.ppm", "golden"], "not a packed model"),
        (["--threads", "999", path, "golden"], "999 threads"),
        (["--threads", "two", path, "golden"], "usage"),
    ]:
        result = run(program, *arguments)
        assert result.returncode == 2
        assert message in result.stderr
        assert result.stdout == ""


# --- C for microcontrollers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_generated_c_of_any_network(seed, tmp_path):
    packed = any_network(np.random.default_rng(100 + seed))
    images = images_of(packed, 2)
    write_c(packed, tmp_path / "m.c")
    logits = open_c(tmp_path / "m.c")(images)
    wanted = reference(packed, images)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * max(np.abs(wanted).max(), 1e-3))


def test_generated_c_keeps_foreign_text_in_its_comments(packed, tmp_path):
    names = ["*/ int x;", "??/", "/* a", "ü??/\n", "\\"]
    strange = {"license": "MIT */ #error /* ??/", "class_names": names}
    named = PackedModel(
        {**packed.metadata, **strange}, packed.bits, packed.affines, packed.golden_image, packed.golden_logits
    )
    write_c(named, tmp_path / "m.c")
    assert "MIT ./ #error /. ../" in (tmp_path / "m.c").read_text()
    logits = open_c(tmp_path / "m.c")(named.golden_image[None])
    np.testing.assert_allclose(logits, named.golden_logits[None], rtol=1e-5, atol=1e-5)


def test_export_of_c(packed, path, tmp_path, capsys):
    output = tmp_path / "tiny-net.c"
    arguments = ["export", str(path), "--format", "c", "--output", str(output), "--data-dir", str(tmp_path)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "predictions identical" in said
    source, header = output.read_text(), (tmp_path / "tiny-net.h").read_text()
    ram, flash = (
        int(number.replace(",", "")) for number in re.findall(r"RAM (\S+) bytes, flash (\S+)", said)[0]
    )
    assert f"RAM    {ram} bytes" in source
    assert f"RAM    {ram} bytes" in header
    assert "void tiny_net_predict(const uint8_t *image, float *logits);" in header
    # What the linker sees is what is announced.
    unit = tmp_path / "unit.o"
    subprocess.run(
        [native.find_compiler(), "-std=c99", "-O1", "-c", str(output), "-o", str(unit)], check=True
    )
    if size := shutil.which("size"):
        _, data, bss = map(int, run(size, unit).stdout.splitlines()[1].split()[:3])
        assert data == 0 or data < 2048  # relocated pointers
        assert ram <= bss < ram + 64
    assert ram == 4 * (2 * 12 * 10 * 16 + 32 + 1)  # two values of the first scale, and the sums
    assert sum(bits.nbytes for bits in packed.bits.values()) < flash < 20000


def test_export_of_c_with_a_bad_name(path, tmp_path, capsys):
    assert main(["export", str(path), "--format", "c", "--output", str(tmp_path / "x.txt")]) == 2
    assert "the name of a C file ends in .c" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.packed"]


BOARD = Path(__file__).parents[1] / "cortex_m"
CORTEX_M4 = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]


@pytest.mark.slow
def test_generated_c_on_a_cortex_m4(tmp_path):
    """A 20-1 network on QEMU's MPS2 board: the predictions of NumPy, and the memory that was announced."""
    tools = ("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        pytest.skip(f"needs {', '.join(missing)}: apt install gcc-arm-none-eabi qemu-system-arm")
    packed = wide_resnet(20, 1)
    program = generate(packed, "net")
    images = images_of(packed, 2)
    (tmp_path / "net.c").write_text(program.source)
    (tmp_path / "net.h").write_text(program.header)
    rows = ",\n".join("{" + ",".join(map(str, image.ravel())) + "}" for image in images)
    (tmp_path / "images.h").write_text(
        '#include "net.h"\n#define IMAGES 2\n#define CLASSES NET_CLASSES\n#define predict net_predict\n'
        f"static const uint8_t images[2][{images[0].size}] = {{{rows}}};\n"
    )
    flags = [*PEDANTIC, *CORTEX_M4, "-O2"]
    subprocess.run(["arm-none-eabi-gcc", *flags, "-c", "net.c"], cwd=tmp_path, check=True)
    # -nostartfiles and no -Werror for the board: it talks to hardware.
    link = [*CORTEX_M4, "-O2", "-nostartfiles", "--specs=nosys.specs", f"-T{BOARD / 'board.ld'}", "-I."]
    command = ["arm-none-eabi-gcc", *link, str(BOARD / "board.c"), "net.o", "-o", "net.elf"]
    subprocess.run(command, cwd=tmp_path, check=True)

    text, data, bss = map(
        int, run("arm-none-eabi-size", tmp_path / "net.o").stdout.splitlines()[1].split()[:3]
    )
    assert data == 0
    assert program.ram <= bss < program.ram + 64
    assert program.flash < text < program.flash + 4096
    assert program.flash < 1.35 * packed.ideal_bytes

    board = ["-M", "mps2-an386", "-nographic", "-semihosting", "-kernel", tmp_path / "net.elf"]
    result = run("qemu-system-arm", *board)
    assert result.returncode == 0, result.stderr
    words = [int(word, 16) for word in (result.stdout + result.stderr).split()]
    logits = np.array(words, np.uint32).view(np.float32).reshape(2, 10)
    wanted = reference(packed, images)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert (logits.argmax(1) == wanted.argmax(1)).all()


# --- other compilers, other processors, sanitizers ----------------------------------------------------------


def needs(*tools):
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        pytest.skip(f"needs {', '.join(missing)}")


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_builds_without_a_warning(compiler, path, tmp_path):
    needs(compiler, "make")
    assert run(make(tmp_path, compiler), path, "golden").returncode == 0


@pytest.mark.slow
def test_cmake(path, tmp_path):
    needs("cmake", "make")
    subprocess.run(["cmake", "-S", FOLDER, "-B", tmp_path / "b"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", tmp_path / "b"], check=True, capture_output=True)
    assert run(tmp_path / "b" / "binwrn-run", path, "golden").returncode == 0


@pytest.mark.slow
def test_neon_under_qemu(tmp_path):
    """The whole runtime as an AArch64 program, with any networks."""
    needs("aarch64-linux-gnu-gcc", "qemu-aarch64", "make")
    program = make(tmp_path, "aarch64-linux-gnu-gcc", "CFLAGS=-O2 -static", f"{tmp_path}/binwrn-run")
    for seed in range(25):
        packed = any_network(np.random.default_rng(seed))
        path = save(packed, tmp_path / "m")
        for kernel in ("neon", "plain"):
            options = ["--kernel", kernel, "--threads", 1 + seed % 3]
            result = run("qemu-aarch64", program, *options, path, "golden")
            assert result.returncode == 0, (seed, result.stdout, result.stderr)
            assert f"kernel {kernel}," in result.stderr
    packed = wide_resnet(20, 1)
    images = images_of(packed, 2)
    (tmp_path / "images.raw").write_bytes(images.tobytes())
    result = run(
        "qemu-aarch64", program, "--threads", 2, save(packed, tmp_path / "m"), tmp_path / "images.raw"
    )
    wanted = reference(packed, images)
    logits = [[float(word) for word in line.split()[-10:]] for line in result.stdout.splitlines()]
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


EMULATED = {  # both with 32-bit addresses, one of them big-endian
    "i686": ("i686-linux-gnu-gcc", None, "avx2 plain", "LDLIBS="),
    "powerpc": ("powerpc-linux-gnu-gcc", "qemu-ppc", "plain", "LDLIBS=-latomic"),
}


@pytest.mark.slow
@pytest.mark.parametrize("machine", EMULATED)
def test_other_processors(machine, tmp_path):
    compiler, emulator, names, libraries = EMULATED[machine]
    needs(compiler, "make", *([emulator] if emulator else []))
    if machine == "i686" and (platform.machine() != "x86_64" or "avx2" not in kernels()):
        pytest.skip("needs an x86-64 processor with AVX2")
    program = make(tmp_path, compiler, "CFLAGS=-O2 -static", libraries, f"{tmp_path}/binwrn-run")
    for seed in range(25):
        path = save(any_network(np.random.default_rng(seed)), tmp_path / "m")
        for kernel in names.split():
            options = ["--kernel", kernel, "--threads", 1 + seed % 3]
            result = run(*([emulator] if emulator else []), program, *options, path, "golden")
            assert result.returncode == 0, (seed, result.stdout, result.stderr)
            assert f"kernel {kernel}," in result.stderr


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


def test_libraries_show_only_names_of_their_own(program):
    """A program that has its own `json_parse` or `sha256_update` can link the static library too."""
    needs("nm")
    shared = run("nm", "-D", "--defined-only", native.build())
    exported = {line.split()[2] for line in shared.stdout.splitlines()}
    declared = re.findall(r"^BINWRN_API .*?(binwrn_\w+)\(", (FOLDER / "binwrn.h").read_text(), re.MULTILINE)
    assert exported - {"_init", "_fini"} == set(declared) and len(declared) == 6
    static = run("nm", "-g", "--defined-only", program.parent / "libbinwrn.a")
    names = [line.split()[2] for line in static.stdout.splitlines() if len(line.split()) == 3]
    assert len(names) > 20 and all(name.startswith("binwrn_") for name in names)


@pytest.mark.slow
def test_header_in_cpp(tmp_path):
    needs("g++")
    (tmp_path / "a.cpp").write_text(
        '#include "binwrn.h"\nint main() { return binwrn_describe(nullptr) != nullptr; }\n'
    )
    flags = ["-std=c++11", *PEDANTIC[1:], f"-I{FOLDER}", "-fsyntax-only"]
    result = run("g++", *flags, tmp_path / "a.cpp")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers(sanitizers, packed, tmp_path):
    """All kernels, damaged files and several threads, with the checks of the compiler."""
    compiler = native.find_compiler()
    program = tmp_path / "replay"
    flags = ["-std=c99", "-g", "-O1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-DREPLAY"]
    fuzz = Path(__file__).parents[1] / "fuzz"
    sources = [FOLDER / name for name in native.SOURCES]
    build = [
        compiler,
        *flags,
        f"-I{FOLDER}",
        *sources,
        fuzz / "fuzz_load.c",
        "-o",
        program,
        *native.LIBRARIES,
    ]
    if run(*build).returncode:
        pytest.skip(f"{compiler} has no -fsanitize={sanitizers}")
    content, rng = serialise(packed), np.random.default_rng(0)
    files = [*sorted((fuzz / "corpus").iterdir()), save(packed, tmp_path / "whole")]
    for verdict in ("ACCEPTED", "REFUSED", "REFUSED_WHEN_RUN"):
        for i, made in enumerate(getattr(packed_corpus, verdict).values()):
            files.append(tmp_path / f"{verdict}{i}")
            files[-1].write_bytes(made())
    for seed in range(30):
        files.append(save(any_network(np.random.default_rng(seed)), tmp_path / f"any{seed}"))
    for i in range(200):
        damaged = bytearray(content[: rng.integers(8, len(content) + 1)])
        damaged[rng.integers(0, len(damaged))] = rng.integers(256)
        files.append(tmp_path / f"damaged{i}")
        files[-1].write_bytes(damaged)
    result = run(program, *files)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{len(files)} files\n"


@pytest.mark.slow
def test_fuzzing(tmp_path):
    """A short run from the seeds; docs/native.md has the long one."""
    needs("clang")
    fuzz, program = Path(__file__).parents[1] / "fuzz", tmp_path / "fuzz"
    flags = ["-std=c99", "-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    sources = [*(FOLDER / name for name in native.SOURCES), fuzz / "fuzz_load.c"]
    define = "-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION"
    built = run("clang", *flags, define, f"-I{FOLDER}", *sources, "-o", program, *native.LIBRARIES)
    if built.returncode:
        pytest.skip(f"clang has no libFuzzer: {built.stderr[:200]}")
    (tmp_path / "corpus").mkdir()
    options = ["-runs=30000", "-seed=1", "-max_len=16384", f"-dict={fuzz / 'packed.dict'}"]
    result = run(program, *options, f"-artifact_prefix={tmp_path}/", tmp_path / "corpus", fuzz / "corpus")
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
def test_released_network(tmp_path, capsys):
    """The 20-10 network for CIFAR-10: the predictions of JAX on 200 images, in little memory."""
    folder, data = os.environ.get("BINWRN_OFFICIAL_DIR"), os.environ.get("TFDS_DATA_DIR")
    if not folder or not data:
        pytest.skip("needs BINWRN_OFFICIAL_DIR and TFDS_DATA_DIR")
    model, packed = tmp_path / "model", tmp_path / "model.packed"
    assert main(["import", f"{folder}/keras_cifar10_allparams.mat", "--output", str(model)]) == 0
    assert main(["export", str(model), "--format", "packed", "--output", str(packed)]) == 0
    images = load("cifar10", "test[:200]").images
    wanted, logits = open_model(model)(images), open_model(packed, runtime="native")(images)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert (logits.argmax(1) == wanted.argmax(1)).all()
    capsys.readouterr()
    options = ["--dataset", "cifar10", "--limit", "200", "--runtime", "native", "--json"]
    assert main(["evaluate", str(packed), *options]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 200
    description = native.load(packed, threads=2).description["native"]
    assert description["multiply_adds"] == 4_015_636_480
    assert description["total_bytes"] < 6e6
