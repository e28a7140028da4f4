"""The native runtime as a program, `binwrn-run`, from several compilers and for several processors."""

import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest
from native_runtime import FOLDER, images_of, kernels, make, needs, reference, run, save
from packed_networks import any_network, wide_resnet
from version2_networks import FEATURES, random_file

import binwrn_jax
from binwrn_jax.deploy import native

pytestmark = pytest.mark.usefixtures("library")


def random_files(folder):
    """Files of both versions: any networks, and each feature of version 2 by itself and with all others."""
    for seed in range(25):
        yield save(any_network(np.random.default_rng(seed)), folder / f"version1_{seed}")
    for seed, features in enumerate([*([name] for name in FEATURES), *[None] * 12]):
        path = folder / f"version2_{seed}"
        path.write_bytes(random_file(seed, features)[0])
        yield path


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


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_builds_without_a_warning(compiler, path, tmp_path):
    needs(compiler, "make")
    assert run(make(tmp_path, compiler), path, "golden").returncode == 0


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The runtime as CMake installs it."""
    needs("cmake", "make")
    folder = tmp_path_factory.mktemp("installed")
    settings = [f"-DCMAKE_INSTALL_PREFIX={folder}", "-DCMAKE_INSTALL_LIBDIR=lib"]
    for command in (
        ["cmake", "-S", FOLDER, "-B", folder / "build", *settings],
        ["cmake", "--build", folder / "build"],
        ["cmake", "--install", folder / "build"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_cmake_installs_the_program(installed, path):
    assert run(installed / "bin" / "binwrn-run", path, "golden").returncode == 0


EXAMPLES = Path(__file__).parents[2] / "examples" / "native"


def check_classify(program, packed, path):
    best = int(packed.golden_logits.argmax())
    result = run(program, path)
    assert (result.returncode, result.stdout) == (0, f"{best} klass {best} ü\n"), result.stderr
    result = run(program, path.parent / "nowhere")
    assert result.returncode == 2 and "cannot be read" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_cpp_program_finds_the_cmake_package(installed, packed, path, tmp_path):
    needs("c++")
    for command in (
        ["cmake", "-S", EXAMPLES, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}"],
        ["cmake", "--build", tmp_path / "build"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    check_classify(tmp_path / "build" / "classify", packed, path)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["cmake", "make"])
def test_a_cpp_program_finds_the_library_by_pkg_config(by, installed, packed, path, tmp_path, monkeypatch):
    needs("c++", "make", "pkg-config")
    if by == "make":
        installed = tmp_path / "installed"
        make(tmp_path / "build", native.find_compiler(), "install", f"PREFIX={installed}")
    monkeypatch.setenv("PKG_CONFIG_PATH", f"{installed}/lib/pkgconfig")
    assert run("pkg-config", "--modversion", "binwrn").stdout.strip() == binwrn_jax.__version__
    flags = run("pkg-config", "--cflags", "--libs", "binwrn").stdout.split()
    warnings = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    built = run("c++", *warnings, EXAMPLES / "classify.cpp", *flags, "-o", tmp_path / "classify")
    assert built.returncode == 0, built.stderr
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{installed}/lib")
    check_classify(tmp_path / "classify", packed, path)


@pytest.mark.slow
def test_a_rust_program_links_the_static_library(installed, packed, path, tmp_path):
    needs("rustc")
    options = ["-L", installed / "lib", "-l", "static=binwrn", "-D", "warnings"]
    built = run("rustc", EXAMPLES / "classify.rs", *options, "-o", tmp_path / "classify")
    assert built.returncode == 0, built.stderr
    check_classify(tmp_path / "classify", packed, path)


@pytest.mark.slow
def test_neon_under_qemu(tmp_path):
    """The whole runtime as an AArch64 program, with any networks."""
    needs("aarch64-linux-gnu-gcc", "qemu-aarch64", "make")
    program = make(tmp_path, "aarch64-linux-gnu-gcc", "CFLAGS=-O2 -static", f"{tmp_path}/binwrn-run")
    for number, path in enumerate(random_files(tmp_path)):
        for kernel in ("neon", "plain"):
            options = ["--kernel", kernel, "--threads", 1 + number % 3]
            result = run("qemu-aarch64", program, *options, path, "golden")
            assert result.returncode == 0, (path, result.stdout, result.stderr)
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
    for number, path in enumerate(random_files(tmp_path)):
        for kernel in names.split():
            options = ["--kernel", kernel, "--threads", 1 + number % 3]
            result = run(*([emulator] if emulator else []), program, *options, path, "golden")
            assert result.returncode == 0, (path, result.stdout, result.stderr)
            assert f"kernel {kernel}," in result.stderr
