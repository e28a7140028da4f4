"""C for microcontrollers: generated programs compute what the definition of the format computes."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from integer_networks import random_integer_model
from native_runtime import PEDANTIC, images_of, needs, reference, run
from packed_networks import any_network, wide_resnet
from version2_networks import FEATURES, random_model

from binwrn_jax.cli.main import main
from binwrn_jax.deploy import native
from binwrn_jax.deploy.c_source.generate import generate
from binwrn_jax.deploy.c_source.program import open_c, write_c
from binwrn_jax.deploy.packed import PackedModel
from binwrn_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("library")


@pytest.mark.parametrize("seed", range(12))
def test_generated_c_of_any_network(seed, tmp_path):
    packed = any_network(np.random.default_rng(100 + seed))
    images = images_of(packed, 2)
    write_c(packed, tmp_path / "m.c")
    logits = open_c(tmp_path / "m.c")(images)
    wanted = reference(packed, images)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * max(np.abs(wanted).max(), 1e-3))


@pytest.mark.parametrize("seed", range(6))
def test_generated_c_of_any_network_of_version_2(seed, tmp_path):
    """The features one after another; all together in the last two."""
    packed = random_model(seed, None if seed > 3 else FEATURES[3 * seed : 3 * seed + 3])
    images = images_of(packed, 2)
    write_c(packed, tmp_path / "m.c")
    wanted = reference(packed, images)
    logits = open_c(tmp_path / "m.c")(images)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * max(np.abs(wanted).max(), 1e-3))


def test_networks_of_integers_are_refused(tmp_path):
    with pytest.raises(UserError, match="a network of integers: export it with --activations float32"):
        write_c(random_integer_model(0), tmp_path / "m.c")
    assert not list(tmp_path.iterdir())


def test_a_generated_program_can_be_linked_to_cpp(packed, tmp_path):
    needs("g++")
    write_c(packed, tmp_path / "net.c")
    (tmp_path / "main.cpp").write_text(
        '#include "net.h"\nint main() { static uint8_t image[NET_HEIGHT * NET_WIDTH * NET_CHANNELS];\n'
        "float logits[NET_CLASSES]; net_predict(image, logits); return logits[0] != logits[0]; }\n"
    )
    unit, program = tmp_path / "net.o", tmp_path / "program"
    assert run(native.find_compiler(), *PEDANTIC, "-c", tmp_path / "net.c", "-o", unit).returncode == 0
    result = run("g++", "-std=c++11", *PEDANTIC[1:], tmp_path / "main.cpp", unit, "-lm", "-o", program)
    assert result.returncode == 0, result.stderr
    assert run(program).returncode == 0


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
