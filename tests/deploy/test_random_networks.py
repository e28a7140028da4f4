"""Networks drawn at random from what can be exported: every reader gives their logits."""

from pathlib import Path

import jax
import numpy as np
import pytest
from packed_readers import READERS
from random_networks import Draw, random_network

from binwrn_jax.deploy.export import TOLERANCE, compare, exact_arithmetic
from binwrn_jax.deploy.formats import get_format
from binwrn_jax.deploy.packed import pack_graph, write_packed
from binwrn_jax.graph.simplify import simplify
from binwrn_jax.graph.trace import trace
from binwrn_jax.store.description import Description

pytestmark = pytest.mark.usefixtures("library")


@pytest.fixture(autouse=True)
def broadcasting():
    """Networks of other people broadcast as they like."""
    with jax.numpy_rank_promotion("allow"):
        yield


def check(folder: Path, seed: int, *readers: str) -> set[str]:
    """Compares readers with one network, on six images; gives the features that its file requires."""
    apply, variables, shape = random_network(seed)
    images = np.random.default_rng(seed).integers(0, 256, (6, *shape), dtype=np.uint8)
    graph = simplify(trace(apply, variables, shape))
    description = Description(image_shape=shape, num_classes=graph.shapes[graph.output][2])
    packed = pack_graph(graph, description, images[0])
    path = folder / "m.safetensors"
    write_packed(packed, path)
    with exact_arithmetic():
        expected = np.asarray(jax.jit(apply)(variables, images))
        for name in readers:
            known = get_format(name) if name not in READERS else None
            read, file = READERS.get(name), path
            if known is not None:
                assert known.write is not None
                read, file = next(iter(known.proofs.values())), folder / f"m{known.suffix}"
                known.write(packed, file)
            error, different = compare(expected, np.asarray(read(file)(images)))
            assert error <= TOLERANCE and not different, (seed, name, error, Draw(seed).layers())
    return set(packed.metadata.get("requires", []))


@pytest.mark.parametrize("seed", range(12))
def test_readers_give_the_logits_of_random_networks(tmp_path, seed):
    check(tmp_path, seed, "NumPy", "C")


@pytest.mark.slow
def test_all_readers_give_the_logits_of_500_random_networks(tmp_path):
    """JAX reads each of them, and each tenth is written in the other formats too. About half an hour."""
    pytest.importorskip("onnxruntime")
    seen: set[str] = set()
    for seed in range(500):
        more = ("onnx", "stablehlo", "c") if seed % 10 == 0 else ()
        seen |= check(tmp_path, 1000 + seed, "NumPy", "C", "JAX", *more)
        if seed % 20 == 19:
            jax.clear_caches()
    assert seen == {
        *("clip", "concat", "dilation", "elementwise", "float_kernels"),
        *("groups", "pad", "product", "resize"),
    }
