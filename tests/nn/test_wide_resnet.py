"""The networks: sizes of the paper, shapes, and the forward pass against a NumPy one of its own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Network, as_if_trained, average_pool

from binwrn_jax import BatchNorm, UserError, WideResNet
from binwrn_jax.nn.layers import downsample_skip, spatial_pads


def shapes(model, image_shape=(32, 32, 3)):
    """Shapes of the variables, nothing computed."""
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape), jnp.uint8))


def conv_weights(depth, width, classes=10, **fields):
    params = shapes(WideResNet(depth=depth, width=width, num_classes=classes, **fields))["params"]
    return sum(int(np.prod(p["kernel"].shape)) for name, p in params.items() if name.startswith("conv"))


# --- sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "width", "classes", "millions", "digits"),
    [
        (20, 1, 10, 0.27, 2),
        (20, 4, 10, 4.3, 1),
        (20, 10, 10, 26.74, 2),
        (20, 10, 100, 26.8, 1),
        (20, 20, 100, 107, 0),
        (20, 4, 1000, 4.5, 1),
        (20, 10, 1000, 27.4, 1),
        (20, 15, 1000, 61.1, 1),
        (18, 2.5, 1000, 70.0, 1),
    ],
)
def test_weights_are_as_many_as_the_papers(depth, width, classes, millions, digits):
    assert round(conv_weights(depth, width, classes) / 1e6, digits) == millions


def test_weights_of_26_10():
    """The tables print 35.6M for 26-10; the structure gives 36.41M (36.47M with 100 classes), counted here.

    Six more 3x3 convolutions than 20-10, two per scale of 160, 320 and 640 channels, are 9.68M more, and
    Table 2 prints 36M for the same network; 35.6 is probably 36.5 with its digits transposed.
    """
    by_hand = conv_weights(20, 10) + 2 * 9 * (160**2 + 320**2 + 640**2)
    assert conv_weights(26, 10) == by_hand == 36_413_920
    assert round(conv_weights(26, 10, 100) / 1e6, 2) == 36.47


def test_bits_of_20_10():
    assert round(conv_weights(20, 10) / 8 / 2**20, 3) == 3.187


def test_layers_of_20_10():
    """Section 3.1: 20 convolutions, three scales of 160, 320 and 640 channels."""
    variables = shapes(WideResNet(depth=20, width=10))
    kernels = [variables["params"][f"conv{i}"]["kernel"].shape for i in range(20)]
    channels = [160] * 7 + [320] * 6 + [640] * 6
    assert kernels[0] == (3, 3, 3, 160) and kernels[-1] == (1, 1, 640, 10)
    assert kernels[1:-1] == [(3, 3, a, b) for a, b in itertools.pairwise(channels)]
    assert [len(variables["batch_stats"][f"bn{i}"]["mean"]) for i in (0, 1, 19, 20)] == [3, 160, 640, 10]
    assert set(variables["params"]) - {f"conv{i}" for i in range(20)} == {"bn0"}


# --- shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"width": 0.3},
        {"depth": 14, "width": 2.5, "plain": True},
        {"padding": "same", "input_relu": False},
        {"norm": "none", "temperature": 40.0},
        {"affine": True, "num_classes": 7},
    ],
)
@pytest.mark.parametrize("image", [(8, 8, 1), (9, 31, 3), (28, 28, 1), (32, 32, 3)])
def test_output_shapes(fields, image):
    model = WideResNet(**{"depth": 8, "width": 0.5, **fields})
    variables = shapes(model, image)
    for train in (False, True):
        logits = jax.eval_shape(
            lambda v, x, train=train: model.apply(v, x, train, mutable=["batch_stats"])[0],
            variables,
            jnp.zeros((5, *image), jnp.uint8),
        )
        assert logits.shape == (5, model.num_classes) and logits.dtype == jnp.float32


def test_fraction_widths():
    kernels = shapes(WideResNet(depth=8, width=0.3))["params"]
    assert [kernels[f"conv{i}"]["kernel"].shape[3] for i in range(8)] == [5, 5, 5, 10, 10, 20, 20, 10]


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("size", [8, 9])
def test_average_pool_leaves_padding_out(padding, size):
    """A constant image stays constant at its borders; zero channels come after the data."""
    ones = jnp.ones((2, size, size, 3))
    out = np.asarray(downsample_skip(ones, 6, padding))
    assert out.shape == (2, -(-size // 2), -(-size // 2), 6)
    np.testing.assert_allclose(out[..., :3], 1, rtol=1e-6)
    np.testing.assert_array_equal(out[..., 3:], 0)
    x = np.random.default_rng(0).normal(size=(2, size, size + 3, 3))
    ours = downsample_skip(jnp.asarray(x, jnp.float32), 3, padding)
    np.testing.assert_allclose(ours, average_pool(x, padding), rtol=1e-5, atol=1e-6)


def test_paddings_differ_at_stride_2_on_even_sizes_only():
    for size in range(8, 40):
        symmetric, same = (spatial_pads((size, size), 3, 2, p) for p in ("symmetric", "same"))
        assert (symmetric == same) == (size % 2 == 1)
        assert spatial_pads((size, size), 3, 1, "symmetric") == spatial_pads((size, size), 3, 1, "same")
    assert spatial_pads((32, 32), 1, 1, "symmetric") == ((0, 0), (0, 0))


# --- the forward pass -------------------------------------------------------------------------------------


NETWORKS = {
    "MATLAB residual": {"depth": 14, "width": 0.25, "num_classes": 5},
    "Keras residual": {"depth": 8, "width": 0.5, "padding": "same", "input_relu": False},
    "plain, all BN learned": {"depth": 8, "width": 0.5, "plain": True, "affine": True},
    "no batch norm": {"depth": 8, "width": 0.5, "norm": "none", "temperature": 40.0},
    "32-bit plain": {"depth": 8, "width": 0.25, "weights": "32bit", "plain": True, "padding": "same"},
}
IMAGENET = {
    "ImageNet": {"depth": 18, "width": 0.0625, "num_classes": 5, "affine": True},
    "ImageNet, Keras padding": {"depth": 18, "width": 0.0625, "padding": "same", "input_relu": False},
}


@pytest.mark.parametrize(
    ("name", "image"),
    [(name, (8, 10, 3)) for name in NETWORKS]
    + [(name, (11, 9, 1)) for name in NETWORKS if "resid" in name]
    + [("ImageNet", (37, 64, 3)), ("ImageNet, Keras padding", (64, 44, 3))],
)
def test_forward_pass_against_numpy(name, image):
    fields = {**NETWORKS, **IMAGENET}[name]
    model = WideResNet(**fields)
    rng = np.random.default_rng(0)
    variables = as_if_trained(model, image, rng)
    images = rng.integers(0, 256, (6, *image), dtype=np.uint8)
    oracle = Network(variables, **fields)

    logits = jax.jit(model.apply)(variables, images)
    expected = oracle(images, train=False)
    spread = expected.std()
    assert spread > 1e-3
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * spread)

    apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    logits, updated = apply(variables, images)
    expected = oracle(images, train=True)
    spread = expected.std()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * spread)
    for layer, moments in oracle.batch_moments.items():
        for field, value in zip(("mean", "var"), moments, strict=True):
            before, after = (np.asarray(v["batch_stats"][layer][field]) for v in (variables, updated))
            np.testing.assert_allclose(
                after, 0.99 * before + 0.01 * value, rtol=1e-3, atol=1e-4, err_msg=f"{layer}/{field}"
            )


def test_bfloat16_keeps_parameters_moments_and_logits_in_float32():
    exact, rounded = (WideResNet(depth=8, width=0.5, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(rounded))} == {jnp.dtype("float32")}
    rng = np.random.default_rng(1)
    variables = as_if_trained(rounded, (8, 8, 1), rng)
    images = rng.integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    trained = jax.eval_shape(
        lambda v, x: rounded.apply(v, x, True, mutable=["batch_stats"]), variables, images
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("float32")}

    a, b = (np.asarray(jax.jit(model.apply)(variables, images)) for model in (exact, rounded))
    assert b.dtype == np.float32
    # bfloat16 has 8 bits: it did compute in it, and lost no more than a few percent of the logits' spread.
    assert 1e-4 < np.abs(a - b).max() / a.std() < 0.2


# --- networks that cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 17}, "depth 17 is not 6n [+] 2: use 14 or 20"),
        ({"depth": 2}, "depth 2 is not 6n [+] 2: use 8 or 14"),
        ({"depth": -4}, "depth -4 is not"),
        ({"width": 0}, "width 0 leaves no channel"),
        ({"weights": "2bit"}, "unknown weights '2bit'"),
        ({"padding": "valid"}, "unknown padding 'valid': choose one of symmetric, same"),
        ({"norm": "layer"}, "unknown norm 'layer': choose one of batch, none"),
        ({"num_classes": 1}, "num_classes|classes"),
        ({"temperature": 0.0}, "temperature 0.0 must be positive"),
    ],
)
def test_impossible_networks(fields, message):
    model = WideResNet(**{"depth": 8, "width": 0.5, **fields})
    for attempt in (model.check, lambda: shapes(model)):
        with pytest.raises(UserError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_images_too_small():
    with pytest.raises(UserError, match="images of 7x32 are below 8x8"):
        shapes(WideResNet(depth=8, width=0.5), (7, 32, 3))


def test_batch_that_does_not_divide_into_ghost_groups():
    norm = BatchNorm(ghost_size=4)
    with pytest.raises(UserError, match="batch of 6 does not divide into ghost groups of 4"):
        jax.eval_shape(lambda x: norm.init(jax.random.key(0), x, True), jnp.zeros((6, 8, 8, 1)))


def test_imagenet_networks_have_the_scales_of_he_et_al():
    """Section 3.1: 160-320-640-1280 channels; a 34-layer network of width 1 has the channels of ResNet-34."""
    params = shapes(WideResNet(depth=18, width=2.5, num_classes=1000), (224, 224, 3))["params"]
    kernels = [params[f"conv{i}"]["kernel"].shape for i in range(18)]
    assert kernels[0] == (7, 7, 3, 160) and kernels[-1] == (1, 1, 1280, 1000)
    assert [kernel[3] for kernel in kernels[1:-1]] == [160] * 4 + [320] * 4 + [640] * 4 + [1280] * 4
    params = shapes(WideResNet(depth=34, width=1, num_classes=1000), (224, 224, 3))["params"]
    kernels = [params[f"conv{i}"]["kernel"].shape for i in range(34)]
    assert [kernel[3] for kernel in kernels[1:-1]] == [64] * 6 + [128] * 8 + [256] * 12 + [512] * 6


def test_imagenet_network_refuses_small_images():
    with pytest.raises(UserError, match="31x64 are below 32x32"):
        shapes(WideResNet(depth=18, width=0.25), (31, 64, 3))
