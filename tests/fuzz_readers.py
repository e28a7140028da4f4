"""A differential fuzz of the readers of packed files: NumPy, JAX and C.

PYTHONPATH=.:tests python -m fuzz_readers --minutes 10 --seed 1

Files are made by changing parts of well-formed ones, with all checksums right, so that the changes reach the
rules behind them. For each file the readers must give the same verdict, with one line and no traceback; for
each image they must give logits within 1e-4 of the largest value inside the network, or all refuse it.
The program ends with exit code 1 at the first difference, and leaves that file in the current folder.
"""

import argparse
import collections
import dataclasses
import json
import logging
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coded_corpus
import numpy as np
from packed_corpus import ACCEPTED, ZEROS, Parts, assemble, chain, container, golden_parts, seal
from packed_networks import any_network
from version2_networks import FEATURES, random_model

from binwrn_jax.deploy import native, numpy_reader
from binwrn_jax.deploy.jax_runtime import load_packed
from binwrn_jax.errors import UserError

TOLERANCE = 1e-4
MOST_WORK = 30_000_000  # multiply-adds of a file that is run, so that ten minutes see many files
JAX_SHARE = 0.15  # of the accepted files: XLA compiles each for a second

ODD_TEXTS = (
    "",
    "image",
    "logits",
    "golden.logits",
    "conv0",
    "\x1b[2J",
    "\n",
    "\0",
    "\x85",
    "ü" * 65,
    "\U0001f600",
)
ODD_NUMBERS = (
    *(
        0,
        1,
        -1,
        2,
        63,
        64,
        65,
        255,
        256,
        4096,
        4097,
        65536,
        65537,
        2**28,
        2**31,
        2**53,
        2**63,
        10**20,
        10**40,
    ),
    *(0.0, -0.0, 0.5, 1.0, 255.0, -3.0, 1e-320, 3e38, 3.1e38, -3e38, 1e300),
)
ODD_TOKENS = (
    *(
        b"NaN",
        b"-Infinity",
        b"01",
        b"1.",
        b"+1",
        b"1e5",
        b"-0",
        b"9" * 4300,
        b"9" * 4301,
        b"1." + b"1" * 4299,
    ),
    *(
        b'"\\ud800"',
        b'"\\ud83d\\ude00"',
        b'"\\udc00\\ud800"',
        b'"\\u0000"',
        b'"\\x"',
        b'"\xff"',
        b'"\xc3\xbc"',
    ),
    *(
        b"[" * 62 + b"]" * 62,
        b"[" * 65 + b"]" * 65,
        b"tru",
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":1}',
        b"\t[ ]\n",
    ),
)


class Difference(AssertionError):
    """The readers do not agree."""


def magnitude(rng: np.random.Generator) -> float:
    """A float32 of any size, mostly moderate."""
    exponent = rng.uniform(-3, 3) if rng.random() < 0.6 else rng.uniform(-44, 38.5)
    return float(np.float32(rng.choice([-1, 1]) * min(10.0**exponent, 3.4e38)))


def odd_value(rng: np.random.Generator) -> Any:
    """Any value that JSON can hold."""
    match rng.integers(0, 8):
        case 0:
            return rng.choice([None, True, False])
        case 1:
            return [odd_value(rng) for _ in range(rng.integers(0, 4))]
        case 2:
            return {str(rng.choice(ODD_TEXTS[:5])): odd_value(rng) for _ in range(rng.integers(0, 3))}
        case 3:
            return ODD_TEXTS[rng.integers(len(ODD_TEXTS))]
        case 4:
            return magnitude(rng)
        case _:
            return ODD_NUMBERS[rng.integers(len(ODD_NUMBERS))]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each place within a JSON value that can hold another: pairs of container and key."""
    found = []
    if isinstance(value, dict | list):
        for key in sorted(value) if isinstance(value, dict) else range(len(value)):
            found += [(value, key), *places(value[key])]
    return found


def change_place(rng: np.random.Generator, value: Any) -> None:
    """Puts something else into one place of a JSON value, takes it out, or changes a number a little."""
    found = places(value)
    if not found:
        return
    holder, key = found[rng.integers(len(found))]
    old, kind = holder[key], rng.random()
    if kind < 0.15:
        del holder[key]
    elif kind < 0.55 and type(old) is int:
        holder[key] = old + int(rng.integers(-2, 3))
    elif kind < 0.7:
        other, name = found[rng.integers(len(found))]
        holder[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(name, int) else None
    else:
        holder[key] = odd_value(rng)


def change_tensor(rng: np.random.Generator, parts: Parts) -> None:
    """Other numbers of any size in one float tensor, or other bits."""
    name = rng.choice(list(parts.tensors))
    array = parts.tensors[name].copy()
    if array.dtype == np.uint8 and array.size:
        array.flat[rng.integers(array.size)] = rng.integers(256)
    elif array.size and array.dtype == np.float32:
        for _ in range(rng.integers(1, 4)):
            array.flat[rng.integers(array.size)] = magnitude(rng)
        if rng.random() < 0.3:
            with np.errstate(over="ignore"):  # infinity is one of the changes
                array *= np.float32(min(abs(magnitude(rng)), 1e30))
    parts.tensors[name] = array


def change_operations(rng: np.random.Generator, parts: Parts) -> None:
    """Takes an operation out, doubles it, exchanges two, or renames a tensor with what it holds."""
    operations = parts.operations
    if not isinstance(operations, list) or not operations:
        return
    i, j = rng.integers(len(operations), size=2)
    match rng.integers(0, 4):
        case 0:
            del operations[i]
        case 1:
            operations.insert(j, json.loads(json.dumps(operations[i])))
        case 2:
            operations[i], operations[j] = operations[j], operations[i]
        case _:
            old = operations[i].get("tensor") if isinstance(operations[i], dict) else None
            if isinstance(old, str):
                new = str(rng.choice([*ODD_TEXTS, "golden.image", "x.scale", '"file_sha256":"']))
                operations[i]["tensor"] = new
                parts.tensors = {
                    new + name[len(old) :] if name in (old, old + ".scale", old + ".offset") else name: value
                    for name, value in parts.tensors.items()
                }


def random_parts(rng: np.random.Generator) -> Parts:
    """A well-formed file to start from."""
    if rng.random() < 0.2:
        return golden_parts()
    packed = any_network(rng)
    if rng.random() < 0.5:
        features = [name for name in FEATURES if name != "entropy" and rng.random() < 0.4]
        packed = random_model(int(rng.integers(1 << 31)), features)
    tensors = {name: tensor.copy() for name, tensor in packed.tensors.items()}
    return Parts(json.loads(json.dumps(packed.metadata)), {}, tensors, {numpy_reader.CHECKSUM: ZEROS})


def random_coded_file(rng: np.random.Generator) -> bytes:
    """A file of version 2, with coded kernels, and none to two changes."""
    parts = coded_corpus.coded_parts(*rng.choice(["conv0", "conv1"], rng.integers(1, 3), replace=False))
    coded = [name for name in parts.tensors if name.endswith(".coded")]
    for _ in range(rng.integers(0, 3)):
        match rng.integers(0, 4):
            case 0:
                change_place(rng, parts.metadata)
            case 1:
                change_tensor(rng, parts)
            case 2:
                words = parts.tensors[rng.choice(coded)]
                most = len(words) if rng.random() < 0.5 else min(len(words), 140)  # the head, mostly
                words[rng.integers(most)] = rng.integers(1 << 16)
            case _:
                name = rng.choice(coded)
                parts.tensors[name] = parts.tensors[name][: rng.integers(1, len(parts.tensors[name]))]
    return coded_corpus.lay(parts)


def require_what_is_used(rng: np.random.Generator, parts: Parts) -> None:
    """Mostly, so that changes reach the rules behind that of the features."""
    if "requires" in parts.metadata and isinstance(parts.metadata.get("operations"), list):
        used = numpy_reader.features(parts.metadata)
        if rng.random() < 0.8:
            parts.metadata["requires"] = used


def extreme_file(rng: np.random.Generator) -> bytes:
    """A well-formed file with multiply-adds of any size: by itself each of them may be harmless."""
    parts = random_parts(rng)
    largest = rng.uniform(0, 16) if rng.random() < 0.8 else 30
    for name, array in parts.tensors.items():
        if name.endswith((".scale", ".offset")):
            parts.tensors[name] = np.float32(array * 10.0 ** rng.uniform(0, largest))
    return seal(assemble(parts, parts.lay()))


def random_file(rng: np.random.Generator) -> bytes:
    """A file with none to three changes."""
    kind = rng.random()
    if kind < 0.03:
        return ACCEPTED[str(rng.choice([name for name in ACCEPTED if "4096" not in name]))]()
    if kind < 0.08:
        return chain(int(rng.integers(2, 45)), float(10 ** rng.uniform(-1, 6)))
    if kind < 0.16:
        return change_text(rng, random_coded_file(rng))
    if kind < 0.26:
        return extreme_file(rng)
    parts = random_parts(rng)
    parts.lay()
    if rng.random() < 0.2:
        parts.outer.clear()  # an older file
    laid = True
    for _ in range(rng.integers(0, 4)):
        match rng.integers(0, 8):
            case 0 | 1:
                change_place(rng, parts.metadata)
            case 2:
                change_place(rng, parts.operations if isinstance(parts.operations, list) else [])
            case 3 | 4:
                change_tensor(rng, parts)
            case 5:
                change_operations(rng, parts)
            case 6 if rng.random() < 0.3:
                change_place(rng, parts.header)
                laid = False
            case 7 if rng.random() < 0.2:
                parts.outer[str(rng.choice(["file_sha256", "format", "binwrn"]))] = odd_value(rng)
        if not isinstance(parts.metadata.get("operations"), list):
            break
    require_what_is_used(rng, parts)
    try:
        data = parts.lay() if laid else parts.data()
    except (TypeError, AttributeError):  # operations that are none: there is no checksum of their bits
        data = parts.data()
    return change_text(rng, assemble(parts, data))


def change_text(rng: np.random.Generator, content: bytes) -> bytes:
    """Sometimes another token in the place of a number of the header, or some bytes; sealed again."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = content[8:start].rstrip()
    if rng.random() < 0.1:
        digits = [i for i, c in enumerate(header) if c in b"0123456789" and header[i - 1] in b":[,"]
        if digits:
            at = digits[rng.integers(len(digits))]
            end = next((i for i in range(at, len(header)) if header[i] not in b"0123456789.-"), at)
            token = ODD_TOKENS[rng.integers(len(ODD_TOKENS))]
            header = header[:at] + token + header[end:]
    if rng.random() < 0.05:
        damaged = bytearray(header)
        damaged[rng.integers(len(damaged))] = rng.choice(list(b'0123456789"[]{},:-.eE\\u truefalsn\x00\xff'))
        header = bytes(damaged)
    return seal(container(header, content[start:]))


class Watched(numpy_reader.Model):
    """NumPy's reader, which notes the largest value inside the network."""

    largest = 0.0

    def _apply(self, operation: dict[str, Any], inputs: list[np.ndarray]) -> np.ndarray:
        result = super()._apply(operation, inputs)
        self.largest = max(self.largest, float(np.abs(result).max()))
        return result


@dataclasses.dataclass
class Fuzz:
    """Compares the readers, and counts what they said."""

    path: Path
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    worst: float = 0.0

    def check(self, rng: np.random.Generator, content: bytes) -> None:
        """One file.

        Raises:
          Difference: the readers do not agree, or one of them breaks.
        """
        self.path.write_bytes(content)
        self.counts["files"] += 1
        contents, reason = self._verdict(numpy_reader.read, numpy_reader.PackedFileError)
        model, other = self._verdict(lambda path: native.load(path, threads=1), UserError)
        if (contents is None) != (model is None):
            raise Difference(f"NumPy: {reason or 'accepts'}; C: {other or 'accepts'}")
        if contents is None:
            self.counts["refused"] += 1
            self.counts["refused for values that can become too large"] += "what float32 holds" in reason
            return
        self.counts["accepted"] += 1
        self.counts["accepted without a known bound"] += not numpy_reader.is_bounded(
            contents.metadata, contents.tensors
        )
        if model.description["native"]["multiply_adds"] > MOST_WORK or contents_size(contents) > 1 << 22:
            self.counts["too large to run here"] += 1
            return
        self._compare(rng, contents, model)

    def _verdict(self, read: Any, kind: type[Exception]) -> tuple[Any, str]:
        try:
            return read(self.path), ""
        except kind as error:
            line = str(error)
            if "\n" in line or len(line) > 600 or not line.isprintable():
                raise Difference(f"not one line: {line!r}") from error
            return None, line

    def _compare(self, rng: np.random.Generator, contents: Any, model: Any) -> None:
        shape = contents.metadata["input"]["shape"]
        images = rng.integers(0, 256, (2, *shape), np.uint8)
        images[0] = contents.tensors["golden.image"]
        watched = Watched(contents.metadata, contents.tensors)
        runs = {"C": model.predict}
        if rng.random() < JAX_SHARE and len(contents.metadata["operations"]) < 100:
            runs["JAX"] = load_packed(self.path)
            self.counts["run by JAX"] += 1
        with np.errstate(over="raise", invalid="raise"):  # nothing that is accepted overflows
            try:
                wanted = watched(images, chunk=1)
            except numpy_reader.PackedFileError:
                wanted = None
                self.counts["images refused"] += 1
        if wanted is not None and not np.isfinite(wanted).all():
            raise Difference(f"NumPy gives the logits {wanted}")
        if 0.999 < watched.largest / numpy_reader.MAX_VALUE < 1.001 and not watched._bounded:
            return  # rounding decides
        for name, run in runs.items():
            try:
                logits = np.asarray(run(images))
            except UserError as error:
                if wanted is not None:
                    raise Difference(f"{name} refuses an image that NumPy computes: {error}") from error
                continue
            if wanted is None:
                raise Difference(f"{name} computes an image that NumPy refuses")
            error = float(np.abs(logits - wanted).max()) / max(watched.largest, 1e-30)
            if not error <= TOLERANCE:
                raise Difference(f"{name}: logits differ by {error:.1e} of the largest value")
            self.worst = max(self.worst, error)


def contents_size(contents: Any) -> int:
    """Numbers of all values of one image."""
    tensors = {name: (x.dtype, x.shape) for name, x in contents.tensors.items()}
    return sum(math.prod(s) for s in numpy_reader.value_shapes(contents.metadata, tensors).values())


def fuzz(
    path: Path,
    seed: int,
    files: int | None = None,
    seconds: float | None = None,
    make: Callable[[np.random.Generator], bytes] = random_file,
) -> Fuzz:
    """Checks files until there are so many, or the time is over. File i depends on the seed and i alone."""
    run, begin, index = Fuzz(path), time.monotonic(), 0
    while (files is None or index < files) and (seconds is None or time.monotonic() - begin < seconds):
        rng = np.random.default_rng([seed, index])
        try:
            run.check(rng, make(rng))
        except Exception as error:
            raise Difference(f"file {index} of seed {seed}: {type(error).__name__}: {error}") from error
        index += 1
    return run


def main() -> int:
    """Fuzzes for some minutes and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    logging.getLogger("binwrn_jax").setLevel("ERROR")  # older files are among them
    path = Path("fuzzed.safetensors")
    try:
        run = fuzz(path, arguments.seed, seconds=60 * arguments.minutes)
    except Difference as error:
        print(f"DIFFERENCE: {error}\nthe file is {path}", file=sys.stderr)
        return 1
    path.unlink()
    print(f"seed {arguments.seed}: " + ", ".join(f"{n:,} {what}" for what, n in run.counts.items()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"largest difference {run.worst:.1e} of the largest value; peak memory {peak:,} MB, JAX among it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
