"""``binwrn verify FILE``: is a packed (or ONNX) file what it says? A line per check, exit code 0 or 1."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from binwrn_jax.cli.output import print_line
from binwrn_jax.cli.sizes import count
from binwrn_jax.deploy.export import TOLERANCE, compare, exact_arithmetic
from binwrn_jax.deploy.formats import Format, format_of, read_model_file
from binwrn_jax.deploy.numpy_runtime import NumpyPredictor
from binwrn_jax.deploy.packed import PackedModel
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import Predictor
from binwrn_jax.hub.huggingface import resolve

# Bits, row padding and header together may be so much larger than the ideal. Multiply-adds, which the
# network needs whatever its weights are, and the golden image are listed, and are not counted here.
MAX_RATIO = 1.03
MAX_HEADER = 64 << 10
# Twice the largest network of the paper, 20-20 with 1.6e10; the format allows networks that take minutes.
MAX_MULTIPLY_ADDS = 1 << 35


class Check(NamedTuple):
    """One line of the report."""

    ok: bool
    what: str
    found: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("file", type=Path, help="packed or ONNX file")
    parser.add_argument(
        "--max-multiply-adds", type=count, default=MAX_MULTIPLY_ADDS, metavar="NUMBER",
        help="that an image may take, such as 1e11; default %(default).1e",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Checks and prints."""
    path = resolve(arguments.file)
    known = format_of(path)
    if known is None or known.read is None:
        kind = known.name if known else "folder"
        raise UserError(
            f"{path}: a packed or ONNX file can be verified, not a {kind}: `binwrn export` makes one"
        )
    try:
        packed, runtimes = open_all(path, known)
    except UserError as error:
        print_line(f"FAILED structure: {error}")
        return 1
    if packed.multiply_adds > arguments.max_multiply_adds:
        raise UserError(
            f"{path} needs {packed.multiply_adds:.2e} multiply-adds for one image, more than "
            f"{arguments.max_multiply_adds:.2e}: allow more by --max-multiply-adds"
        )
    failed = 0
    for check in checks(packed, path.stat().st_size, runtimes):
        print_line(f"{'ok    ' if check.ok else 'FAILED'} {check.what}: {check.found}")
        failed += not check.ok
    print_line(f"{path}: {f'{failed} of the checks failed' if failed else 'all that it says holds'}")
    return int(failed > 0)


def open_all(path: Path, known: Format) -> tuple[PackedModel, dict[str, Predictor]]:
    """The content of a file, and the runtimes that can compute its logits, by name."""
    packed = read_model_file(path, known)
    with exact_arithmetic():
        runtimes = {name: opener(path) for name, opener in known.proofs.items()}
    return packed, {**runtimes, "NumPy": NumpyPredictor(packed)}


def checks(packed: PackedModel, size: int, runtimes: dict[str, Predictor]) -> Iterator[Check]:
    """All checks in turn. The structure and the checksum were checked by reading it.

    Args:
      packed: the file's content.
      size: of the file in bytes.
      runtimes: by name, to compute the golden logits with.
    """
    floats = sum(part.size for affine in packed.affines.values() for part in affine)
    yield _weights(packed, floats)
    yield _values(packed)
    bits = sum(tensor.nbytes for tensor in packed.bits.values())
    kernels = sum(tensor.nbytes for tensor in packed.kernels.values())
    golden = packed.golden_image.nbytes + packed.golden_logits.nbytes
    header = size - bits - kernels - 4 * floats - golden
    ratio = size / max(packed.ideal_bytes, 1)  # there may be no convolution
    yield Check(
        bits + header <= MAX_RATIO * packed.ideal_bytes + MAX_HEADER,
        "size",
        f"{size:,} bytes, {ratio:.4f} x the ideal of {packed.ideal_bytes:,}: {bits:,} of "
        f"weights, {f'{kernels:,} of float32 kernels, ' if kernels else ''}"
        f"{4 * floats:,} of multiply-adds, {golden:,} golden, {header:,} of header",
    )
    covers = "the whole file has" if packed.checksum else "the bits have"
    stated = packed.checksum or packed.metadata["sha256"]
    yield Check(True, "checksum", f"{covers} the SHA-256 stated, {stated[:16]}...")
    for name, runtime in runtimes.items():
        with exact_arithmetic():
            logits = runtime(packed.golden_image[None])
        error, different = compare(packed.golden_logits[None], logits)
        yield Check(
            error <= TOLERANCE and not different,
            f"golden image by {name}",
            f"class {int(logits.argmax())}, logits within {error:.1e} of the largest ({TOLERANCE:g} allowed)",
        )


def _weights(packed: PackedModel, floats: int) -> Check:
    """How many weights are one bit, and which convolutions have others."""
    rest = {name: packed.kernel_shape(name) for name in packed.kernels}
    one_bit = sum(math.prod(packed.kernel_shape(name)) for name in packed.bits)
    total = one_bit + sum(math.prod(shape) for shape in rest.values())
    listed = [f"{name} {'x'.join(map(str, shape))} ({math.prod(shape):,})" for name, shape in rest.items()]
    return Check(
        all(bits.dtype == np.uint8 for bits in packed.bits.values()),
        "weights",
        f"{one_bit:,} of {total:,} weights are one bit, those of {len(packed.bits)} convolutions; "
        + (f"float32 are {', '.join(listed)}; " if listed else "")
        + f"the {floats:,} {'other ' if listed else ''}float32 numbers are {len(packed.affines)} "
        "multiply-adds, one per channel",
    )


def _values(packed: PackedModel) -> Check:
    """Whether each 1-bit convolution has both values, as each of the paper's networks does."""
    plus = {name: packed.count_plus(name) for name in packed.bits}
    other = [name for name, n in plus.items() if not 0 < n < math.prod(packed.kernel_shape(name))]
    own = packed.metadata.get("network") is None  # whose small kernels may have one value
    found = f"-1 and +1 in each of {len(plus)}"
    if other and own:
        found = f"-1 and +1 in all but {len(other)} of {len(plus)}"
    elif other:
        found = f"{other[0]} has the value {'+1' if plus[other[0]] else '-1'} only"
    return Check(own or not other, "two values per convolution", found)
