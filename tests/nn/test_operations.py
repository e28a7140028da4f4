"""Convolutions, pools and sums, by our CPU calls and XLA, against NumPy in float64; what is chosen where."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binwrn_jax.nn import cpu
from binwrn_jax.nn import operations as chosen
from binwrn_jax.nn.layers import spatial_pads


@pytest.fixture(scope="module")
def library():
    if not cpu.available():
        pytest.skip("no oneDNN here, or no C++ compiler")


DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])


def skip_without(dtype):
    if not cpu.available(dtype):
        pytest.skip("this processor does not multiply bfloat16")


def patches(x, window, stride, pads):
    """``[N, H2, W2, F, F, C]``, a view of the padded images."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(x, (window, window), (1, 2))
    return views[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


def exact(x, kernel, g, stride, pads):
    """The convolution and its two gradients for the cotangent ``g``, in float64."""
    x, kernel, g = (np.asarray(a, np.float64) for a in (x, kernel, g))
    window = kernel.shape[0]
    seen = patches(x, window, stride, pads)
    padded = np.zeros(np.pad(x, ((0, 0), *pads, (0, 0))).shape)
    _, height, width, _ = g.shape
    for i in range(window):
        for j in range(window):
            at = np.s_[:, i : i + stride * height : stride, j : j + stride * width : stride]
            padded[at] += g @ kernel[i, j].T
    (top, _), (left, _) = pads
    dx = padded[:, top : top + x.shape[1], left : left + x.shape[2]]
    return np.einsum("nhwijc,ijco->nhwo", seen, kernel), dx, np.einsum("nhwijc,nhwo->ijco", seen, g)


def draw(n, size, c_in, c_out, window, stride, padding):
    rng = np.random.default_rng(0)
    pads = spatial_pads(size, window, stride, padding)
    shapes = (n, *size, c_in), (window, window, c_in, c_out), (n, *(-(-s // stride) for s in size), c_out)
    x, kernel, g = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return x, kernel, g, pads


SHAPES = {
    "first, 3 channels": (5, (8, 8), 3, 16, 3, 1, "symmetric"),
    "first, 1 channel": (3, (8, 8), 1, 8, 3, 1, "symmetric"),
    "one image": (1, (8, 8), 16, 16, 3, 1, "same"),
    "stride 2 of MATLAB": (9, (8, 8), 16, 32, 3, 2, "symmetric"),
    "stride 2 of Keras": (9, (8, 8), 16, 32, 3, 2, "same"),
    "odd and not square": (4, (9, 7), 5, 7, 3, 2, "same"),
    "odd, symmetric": (4, (9, 7), 5, 7, 3, 2, "symmetric"),
    "1x1 to classes": (4, (8, 8), 64, 10, 1, 1, "symmetric"),
    "7x7 of ImageNet": (2, (32, 32), 3, 20, 7, 2, "symmetric"),
    "7x7, same": (2, (32, 32), 3, 20, 7, 2, "same"),
    "wide": (17, (8, 8), 96, 64, 3, 1, "symmetric"),
}


@DTYPES
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients(library, name, dtype):
    skip_without(dtype)
    x, kernel, g, pads = draw(*SHAPES[name])
    x, kernel, g = (a.astype(dtype) for a in (x, kernel, g))
    stride = SHAPES[name][5]

    @functools.partial(jax.jit, static_argnums=0)
    def run(convolve, x, kernel, g):
        y, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, (stride, stride), pads), x, kernel)
        return y, *pull(g)

    wanted = exact(x, kernel, g, stride, pads)
    for convolve in (chosen.onednn_convolution, chosen.xla_convolution):
        for found, true in zip(run(convolve, x, kernel, g), wanted, strict=True):
            assert found.dtype == dtype and found.shape == true.shape
            # A few units in the last place of the largest sum; of bfloat16 half a unit, summed in float32.
            tolerance = 2e-6 if dtype == jnp.float32 else 2**-8
            found = np.asarray(found, np.float64)
            np.testing.assert_allclose(found, true, rtol=0, atol=tolerance * np.abs(true).max())


def test_same_bits_each_time_and_donated(library):
    """A resumed run equals an uninterrupted one only if nothing depends on the order of the threads."""
    x, kernel, g, pads = draw(33, (16, 16), 16, 16, 3, 1, "symmetric")

    @functools.partial(jax.jit, donate_argnums=1)
    def step(x, kernel):
        gradient = jax.grad(lambda k: (chosen.onednn_convolution(x, k, (1, 1), pads) * g).sum())(kernel)
        return kernel - 1e-3 * gradient

    def run():
        value = jnp.copy(kernel)
        for _ in range(5):
            value = step(x, value)
        return np.asarray(value)

    first = run()
    assert np.isfinite(first).all() and all(np.array_equal(first, run()) for _ in range(5))


def test_an_image_does_not_depend_on_its_batch(library):
    x, kernel, _, pads = draw(21, (8, 8), 16, 32, 3, 1, "symmetric")
    run = jax.jit(lambda x: chosen.onednn_convolution(x, kernel, (1, 1), pads))
    np.testing.assert_array_equal(run(x)[:5], run(x[:5]))


def test_many_programs_at_once(library):
    """Eight devices run the same call at a time: no deadlock, no mixed-up buffer."""
    x, kernel, _, pads = draw(16, (8, 8), 16, 16, 3, 1, "symmetric")
    run = jax.jit(lambda x: chosen.onednn_convolution(x, kernel, (1, 1), pads))
    wanted = np.asarray(run(x))
    inputs = [jax.device_put(x, device) for device in jax.devices()]
    for _ in range(20):
        for result in [run(value) for value in inputs]:
            np.testing.assert_array_equal(result, wanted)


def test_empty_batch(library):
    x, kernel, g, pads = draw(0, (8, 8), 3, 4, 3, 1, "symmetric")
    y, pull = jax.vjp(
        lambda x, k: chosen.onednn_convolution(x, k, (1, 1), pads), jnp.asarray(x), jnp.asarray(kernel)
    )
    dx, dk = pull(jnp.asarray(g))
    assert y.shape == g.shape and dx.shape == x.shape and not np.asarray(dk).any()


# --- pooling ------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize(
    ("shape", "padding"),
    [
        ((5, 8, 8, 16), "symmetric"),
        ((5, 8, 8, 16), "same"),
        ((3, 9, 7, 5), "symmetric"),
        ((1, 7, 7, 3), "same"),
    ],
)
def test_average_pool(library, shape, padding, dtype):
    skip_without(dtype)
    rng = np.random.default_rng(0)
    pads = spatial_pads(shape[1:3], 3, 2, padding)
    x = jnp.asarray(rng.normal(size=shape), dtype)
    inside = patches(np.ones(shape), 3, 2, pads)
    true = patches(np.asarray(x, np.float64), 3, 2, pads).sum((3, 4)) / inside.sum((3, 4))
    g = jnp.asarray(rng.normal(size=true.shape), dtype)
    shares = np.asarray(g, np.float64) / inside.sum((3, 4))
    gradient = np.zeros(np.pad(np.ones(shape), ((0, 0), *pads, (0, 0))).shape)
    for i in range(3):
        for j in range(3):
            gradient[:, i : i + 2 * shares.shape[1] : 2, j : j + 2 * shares.shape[2] : 2][
                :, : shares.shape[1], : shares.shape[2]
            ] += shares
    (top, _), (left, _) = pads
    gradient = gradient[:, top : top + shape[1], left : left + shape[2]]
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-6  # XLA sums bfloat16 in bfloat16
    for pool in (chosen.onednn_average_pool, chosen.xla_average_pool):
        y, pull = jax.vjp(jax.jit(lambda x, pool=pool: pool(x, (3, 3), (2, 2), pads)), x)
        for found, wanted in ((y, true), (pull(g)[0], gradient)):
            assert found.dtype == dtype
            np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=0, atol=4 * tolerance)


# --- sums of batch norm -------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_x", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("of_g", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((20, 8, 8, 16), 1),
        ((15, 7, 9, 3), 3),  # rows that are not whole blocks
        ((4, 32, 32, 40), 1),
        ((2, 1, 1, 5), 2),
        ((2, 3, 3, 20000), 1),  # more channels than a block has values
    ],
)
def test_sums(library, shape, groups, of_g, of_x):
    rng = np.random.default_rng(0)
    offset, scale = 100 * rng.normal(size=shape[-1]), 10.0 ** rng.integers(-1, 3, shape[-1])
    x = jnp.asarray(rng.normal(size=shape) * scale + offset, of_x)
    g = jnp.asarray(rng.normal(size=shape), of_g)
    exact, weights = (np.asarray(a, np.float64).reshape(groups, -1, shape[-1]) for a in (x, g))
    mean = exact.mean(1)
    squares = np.square(exact - mean[:, None]).mean(1)
    for moments, products in ((cpu.moments, cpu.products), (chosen.xla_moments, chosen.xla_products)):
        found, variance = jax.jit(moments, static_argnums=1)(x, groups)
        assert found.shape == variance.shape == (groups, 1, 1, shape[-1])
        # In units of the values' spread, to which a float32 of the offset's size is not exact.
        spread = np.sqrt(squares) + 1e-6 * np.abs(mean)
        assert (np.abs(found[:, 0, 0] - mean) <= 1e-5 * spread + 1e-6 * np.abs(mean)).all()
        atol = 1e-6 * float(np.abs(mean).max()) ** 2
        np.testing.assert_allclose(variance[:, 0, 0], squares, rtol=1e-4, atol=atol)
        sums = jax.jit(products)(g, x, found)
        gaps = exact - np.asarray(found, np.float64)[:, 0]
        for got, true in zip(sums, (weights, weights * gaps), strict=True):
            assert (np.abs(got[:, 0, 0] - true.sum(1)) <= 3e-6 * np.abs(true).sum(1)).all()


def test_sums_have_the_same_bits_each_time(library):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 16, 16, 16)), jnp.float32)
    run = jax.jit(lambda x: (*cpu.moments(x, 1), *cpu.products(x, x + 1, x[:1, :1, :1])))
    first = [np.asarray(a) for a in run(x)]
    for _ in range(10):
        jax.tree.map(np.testing.assert_array_equal, first, [np.asarray(a) for a in run(x)])


# --- the choice ---------------------------------------------------------------------------------------------


def program_of(dtype):
    x, kernel, _, pads = draw(2, (8, 8), 3, 4, 3, 1, "symmetric")
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    return jax.jit(lambda x, k: chosen.convolution(x, k, (1, 1), pads)).lower(x, kernel).as_text()


def test_onednn_is_chosen_for_one_cpu_device_only(library, monkeypatch):
    assert "binwrn_conv" not in program_of(jnp.float32)  # eight devices here
    monkeypatch.setattr(chosen.jax, "device_count", lambda: 1)
    assert "binwrn_conv_forward" in program_of(jnp.float32)
    assert ("binwrn_conv_forward" in program_of(jnp.bfloat16)) == cpu.available(jnp.bfloat16)
    assert "binwrn_conv" not in program_of(jnp.float16)
    with chosen.portable():
        assert "binwrn_conv" not in program_of(jnp.float32)
    backend = jax.jit(lambda x, k: chosen.convolution(x, k, (1, 1), ((1, 1), (1, 1))))
    for_tpu = backend.trace(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))).lower(lowering_platforms=("tpu",))
    assert "binwrn_conv" not in for_tpu.as_text() and "convolution" in for_tpu.as_text()
    monkeypatch.setattr(chosen.jax, "default_backend", lambda: "gpu")
    assert "binwrn_conv" not in program_of(jnp.float32)


SCRIPT = """
import logging
logging.basicConfig(format="%(message)s"); logging.getLogger("binwrn_jax").setLevel("INFO")
import jax, jax.numpy as jnp
from binwrn_jax.nn.operations import convolution
x, k = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
run = jax.jit(lambda x, k: convolution(x, k, (1, 1), ((1, 1), (1, 1))))
print("binwrn_conv_forward" in run.lower(x, k).as_text(), float(run(x, k).sum()))
"""
SUM = 2 * 4 * 3 * (22 * 22)  # each axis sees 3 pixels in 6 windows, 2 in two


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CXX": "no-such-compiler"}, "CXX=no-such-compiler is no program"),
        ({"CXX": "false"}, "the compiler /"),
        ({"XDG_CACHE_HOME": "/proc/none"}, "No such file"),
    ],
)
def test_xla_convolves_without_onednn_and_one_line_says_why(tmp_path, variables, message):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **variables}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["False", str(float(SUM))], done.stderr
    lines = [line for line in done.stderr.splitlines() if "oneDNN" in line]
    assert len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.rglob("*.so"))
