"""The native runtime under the checks of compilers: damaged files, several threads, a fuzzer."""

from pathlib import Path

import numpy as np
import packed_corpus
import pytest
from native_runtime import FOLDER, needs, run, save
from packed_networks import any_network
from version2_networks import FEATURES, random_file

from binwrn_jax.deploy import native
from binwrn_jax.deploy.packed import serialise

pytestmark = pytest.mark.usefixtures("library")


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
        features = None if seed % 3 == 0 else FEATURES[seed % len(FEATURES) :][:2]
        files.append(tmp_path / f"version2_{seed}")
        files[-1].write_bytes(random_file(seed, features)[0])
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
    for i, name in enumerate(FEATURES):
        (tmp_path / "corpus" / name).write_bytes(random_file(i, [name])[0])
    options = ["-runs=30000", "-seed=1", "-max_len=16384", f"-dict={fuzz / 'packed.dict'}"]
    result = run(program, *options, f"-artifact_prefix={tmp_path}/", tmp_path / "corpus", fuzz / "corpus")
    assert result.returncode == 0, result.stderr[-2000:]
