"""The native runtime as a program, `binwrn-run`, from several compilers and for several processors."""

import platform
import subprocess

import numpy as np
import pytest
from native_runtime import FOLDER, images_of, kernels, make, needs, reference, run, save
from packed_networks import any_network, wide_resnet
from version2_networks import FEATURES, random_file

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
