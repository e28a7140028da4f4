"""Eq. 1 and the rules that it is compared with: values, gradients, and that wrong forms are found out."""

import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binwrn_jax import BinaryConv, UserError, he_scale, sign
from binwrn_jax.nn.rules import RULES, clips_latent, get_rule, is_one_bit
from binwrn_jax.nn.rules import one_bit as eq1

SHAPE = (3, 3, 5, 7)


def latent(seed: int, shape=SHAPE, dtype=np.float32) -> np.ndarray:
    """Normal weights over many magnitudes, with zeros of both signs, denormals and huge values among them."""
    rng = np.random.default_rng(seed)
    w = (rng.normal(size=shape) * 10.0 ** rng.integers(-30, 5, shape)).astype(np.float32)
    special = [0.0, -0.0, 1e-40, -1e-40, 1e-45, -1e-45, 3e38, -3e38]
    w.ravel()[: len(special)] = special
    return w.astype(dtype)


# --- the two values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("jitted", [False, True])
def test_exactly_two_values(dtype, jitted):
    function = jax.jit(eq1) if jitted else eq1
    for seed in range(3):
        w = latent(seed, dtype=dtype)
        w_hat = np.asarray(function(jnp.asarray(w)))
        assert w_hat.dtype == dtype and w_hat.shape == SHAPE
        s = np.asarray(math.sqrt(2 / (3 * 3 * 5))).astype(dtype)
        assert set(np.unique(w_hat).tolist()) == {-float(s), float(s)}
        usual = np.abs(w.astype(np.float32)) > 1e-37
        np.testing.assert_array_equal(w_hat[usual] > 0, w[usual] > 0)


def test_zero_is_positive():
    w = jnp.array([0.0, -0.0]).reshape(1, 1, 1, 2)
    assert eq1(w, 0.25).ravel().tolist() == [0.25, 0.25]
    assert sign(w).ravel().tolist() == [1.0, 1.0]


def test_the_scale_is_one_number_per_layer():
    """Two values also where the layer scale is no power of two and weights are tiny or of the other sign."""
    for shape in [(1, 1, 3, 4), (3, 3, 640, 2), (7, 7, 3, 5)]:
        w_hat = np.unique(np.asarray(eq1(jnp.asarray(latent(1, shape) * 1e-3))))
        assert w_hat.size == 2 and w_hat[0] == -w_hat[1]
        np.testing.assert_allclose(w_hat[1], np.sqrt(2 / (shape[0] ** 2 * shape[2])), rtol=1e-7)


def test_scale_of_residual_and_plain_networks():
    assert he_scale((3, 3, 160, 160)) == pytest.approx(math.sqrt(2 / 1440), rel=1e-15)
    assert he_scale((3, 3, 160, 160), plain=True) == pytest.approx(2 / math.sqrt(1440), rel=1e-15)
    assert he_scale((1, 1, 64, 10)) == pytest.approx(math.sqrt(2 / 64), rel=1e-15)


# --- the gradient -----------------------------------------------------------------------------------------


def is_straight_through(rule) -> bool:
    """Whether the gradient with respect to W is, to the last bit, that with respect to W_hat."""
    w = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    cotangent = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    _, pull_back = jax.vjp(rule, w)
    return np.array_equal(np.asarray(pull_back(jnp.asarray(cotangent))[0]), cotangent)


def has_two_values(rule) -> bool:
    w = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    return np.unique(np.asarray(rule(w))).size == 2


S = he_scale(SHAPE)
NAIVE = {
    "no gradient at all": lambda w: S * jnp.sign(w),
    "s times the straight-through sign": lambda w: S * sign(w),
    "sign written with stop_gradient": lambda w: S * (w + jax.lax.stop_gradient(jnp.sign(w) - w)),
    "w + stop_gradient(q(w) - w)": lambda w: w + jax.lax.stop_gradient(S * jnp.sign(w) - w),
}


def test_gradient_is_the_cotangent():
    assert is_straight_through(eq1) and has_two_values(eq1)
    assert is_straight_through(jax.jit(eq1))


@pytest.mark.parametrize("form", NAIVE)
def test_naive_forms_fail(form):
    """The traps: each of them fails one of the two checks that Eq. 1 passes."""
    assert not (is_straight_through(NAIVE[form]) and has_two_values(NAIVE[form]))


def test_gradient_of_extreme_weights_is_not_clipped():
    w = jnp.asarray(latent(0))
    grad = jax.grad(lambda w: (eq1(w) * 3.0).sum())(w)
    np.testing.assert_array_equal(np.asarray(grad), 3.0)


@pytest.mark.parametrize("plain", [False, True])
def test_gradient_through_the_convolution(plain):
    """d loss / d W of the layer is d loss / d W_hat of a convolution with W_hat as a free variable."""
    layer = BinaryConv(7, 3, strides=2, padding=1, use_bias=False, scale=partial(he_scale, plain=plain))
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(4, 9, 8, 5)).astype(np.float32))
    target = jnp.asarray(rng.normal(size=(4, 5, 4, 7)).astype(np.float32))
    w = jnp.asarray(rng.normal(size=SHAPE).astype(np.float32))

    def loss_of_output(y):
        return ((y - target) ** 2).sum()

    def loss_of_w_hat(w_hat):
        y = jax.lax.conv_general_dilated(
            x, w_hat, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return loss_of_output(y)

    through_layer = jax.grad(lambda w: loss_of_output(layer.apply({"params": {"kernel": w}}, x)))(w)
    s = np.float32(2 / math.sqrt(45) if plain else math.sqrt(2 / 45))
    w_hat = np.where(np.asarray(w) < 0, -s, s)
    alone = jax.grad(loss_of_w_hat)(jnp.asarray(w_hat))
    np.testing.assert_allclose(through_layer, alone, rtol=1e-5, atol=1e-4)
    assert np.abs(np.asarray(alone)).max() > 1  # so that the factor s would have been seen


def test_latent_weights_start_with_the_scale_as_deviation():
    x = jnp.zeros((1, 8, 8, 64))
    for plain, factor in [(False, math.sqrt(2)), (True, 2.0)]:
        kernel = np.asarray(
            BinaryConv(128, 3, scale=partial(he_scale, plain=plain)).init(jax.random.key(0), x)["params"][
                "kernel"
            ]
        )
        std = factor / math.sqrt(9 * 64)
        # 73,728 normal draws: their deviation is known to about 0.3 %.
        assert abs(kernel.std() / std - 1) < 0.02 and abs(kernel.mean()) < 0.02 * std


# --- the other rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "axes"), [("bwn", (0, 1, 2)), ("bwn_layer", (0, 1, 2, 3))])
def test_bwn(name, axes):
    """Rastegari et al. 2016: alpha = mean|W|, and the gradient of the product alpha(W) sign(W)."""
    rng = np.random.default_rng(5)
    w = rng.normal(size=SHAPE).astype(np.float32)  # a third of them outside [-1, 1]
    w.ravel()[0] = 0
    g = rng.normal(size=SHAPE).astype(np.float32)
    signs = np.where(w < 0, -1, 1)
    count = np.prod([SHAPE[a] for a in axes])
    alpha = np.abs(w.astype(np.float64)).sum(axes, keepdims=True) / count
    w_hat, pull_back = jax.vjp(get_rule(name), jnp.asarray(w))
    np.testing.assert_allclose(w_hat, alpha * signs, rtol=1e-6)
    groups = np.asarray(w_hat).reshape(-1, SHAPE[-1]).T if name == "bwn" else [np.asarray(w_hat)]
    assert all(np.unique(group).size == 2 for group in groups)

    # dL/dW_i = alpha g_i [|W_i| <= 1] + sign(W_i)/n sum_j g_j sign(W_j), one weight at a time.
    expected = np.empty(SHAPE)
    for index in np.ndindex(SHAPE):
        group = (..., index[-1]) if name == "bwn" else ...
        a = alpha[..., index[-1]].item() if name == "bwn" else alpha.item()
        ste = a * g[index] if abs(w[index]) <= 1 else 0.0
        expected[index] = ste + signs[index] / count * (g[group].astype(np.float64) * signs[group]).sum()
    np.testing.assert_allclose(pull_back(jnp.asarray(g))[0], expected, rtol=1e-4, atol=1e-6)


def test_bwn_gradient_is_that_of_autodiff_of_the_product():
    """The same by autodiff: mean|W| differentiated by JAX, sign with a hard-tanh gradient."""

    @jax.custom_vjp
    def clipped_sign(w):
        return jnp.where(w < 0, -1.0, 1.0)

    clipped_sign.defvjp(lambda w: (clipped_sign(w), w), lambda w, g: (jnp.where(jnp.abs(w) <= 1, g, 0.0),))
    w = jnp.asarray(np.random.default_rng(6).normal(size=SHAPE).astype(np.float32))
    g = jnp.asarray(np.random.default_rng(7).normal(size=SHAPE).astype(np.float32))
    for name, axes in [("bwn", (0, 1, 2)), ("bwn_layer", (0, 1, 2, 3))]:
        product = functools.partial(
            lambda axes, w: jnp.abs(w).mean(axes, keepdims=True) * clipped_sign(w), axes
        )
        ours, theirs = (jax.vjp(rule, w)[1](g)[0] for rule in (get_rule(name), product))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_binary_connect_and_full_precision():
    w = latent(2)
    g = np.random.default_rng(8).normal(size=SHAPE).astype(np.float32)
    for name, expected in [("binaryconnect", None), ("32bit", w)]:
        w_hat, pull_back = jax.vjp(lambda w, name=name: get_rule(name)(w, 0.1), jnp.asarray(w))
        if expected is None:
            assert set(np.unique(w_hat).tolist()) == {-1.0, 1.0}
        else:
            np.testing.assert_array_equal(w_hat, expected)
        np.testing.assert_array_equal(pull_back(jnp.asarray(g))[0], g)


def test_rules_by_name():
    assert set(RULES) == {"1bit", "32bit", "bwn", "bwn_layer", "binaryconnect"}
    assert get_rule("1bit") is eq1
    assert [name for name in RULES if not is_one_bit(name)] == ["32bit"]
    assert [name for name in RULES if clips_latent(name)] == ["binaryconnect"]
    with pytest.raises(UserError, match=r"unknown weights '2bit': choose one of 1bit, 32bit"):
        get_rule("2bit")
