"""Operations counted by tracing against formulas."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from networks import equinox_network, nnx_network

from binwrn_jax import WideResNet, cost
from binwrn_jax.graph.cost import mfu_of_image, network_multiply_adds, training_flops
from binwrn_jax.nn.rules import RULES
from binwrn_jax.nn.wide_resnet import architecture
from binwrn_jax.parallel.hardware import PEAKS, peak


def by_formula(depth: int, width: float, num_classes: int, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of a wide ResNet's convolutions, scale by scale."""
    net = architecture(depth, width)

    def halved(height: int, width: int) -> tuple[int, int]:
        return -(-height // 2), -(-width // 2)

    height, columns, channels = image_shape
    if net.stride == 2:
        height, columns = halved(height, columns)
    total = height * columns * net.kernel_size**2 * channels * net.channels
    if net.pool:
        height, columns = halved(height, columns)
    channels = net.channels
    for scale, blocks in enumerate(net.blocks):
        features = net.channels * 2**scale
        if scale > 0:
            height, columns = halved(height, columns)
        total += height * columns * 9 * (channels + (2 * blocks - 1) * features) * features
        channels = features
    return total + height * columns * channels * num_classes


def test_20_10_has_the_papers_four_billion():
    assert round(by_formula(20, 10, 10, (32, 32, 3)) / 1e9, 3) == 4.016
    assert training_flops(WideResNet(20, 10, 10), (32, 32, 3)) == 6 * by_formula(20, 10, 10, (32, 32, 3))


@pytest.mark.parametrize(
    ("depth", "width", "classes", "shape"),
    [
        (20, 10, 10, (32, 32, 3)),
        (26, 4, 100, (30, 33, 3)),
        (18, 2.5, 1000, (224, 224, 3)),
        (8, 0.3, 10, (9, 8, 1)),
    ],
)
def test_multiply_adds_are_those_of_the_network(depth, width, classes, shape):
    network = WideResNet(depth=depth, width=width, num_classes=classes)
    assert network_multiply_adds(network, shape) == by_formula(depth, width, classes, shape)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"plain": True},
        {"padding": "same"},
        {"affine": True},
        {"norm": "none", "temperature": 40.0, "input_relu": False},
        {"dtype": jnp.bfloat16},
        {"ghost_size": 2},
        *({"weights": rule} for rule in RULES),
    ],
)
def test_no_variant_changes_the_count(fields):
    network = WideResNet(depth=8, width=0.5, num_classes=7, **fields)
    assert network_multiply_adds(network, (16, 18, 3)) == by_formula(8, 0.5, 7, (16, 18, 3))


def test_multiply_adds_of_any_network():
    """By hand: a grouped and a dilated convolution, a dense layer, attention among 4 tokens."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, images):
            x = nn.Conv(6, (3, 3), (2, 2), feature_group_count=3)(images.astype(jnp.float32))
            x = nn.Conv(2, (3, 3), kernel_dilation=2, use_bias=False)(x)
            tokens = nn.Dense(5)(x.reshape(len(x), 4, -1))
            return (tokens @ tokens.swapaxes(1, 2)).sum((1, 2))

    expected = 64 * 6 * 9 + 64 * 2 * 9 * 6 + 4 * 5 * (64 * 2 // 4) + 4 * 4 * 5
    assert network_multiply_adds(Network(), (16, 16, 3)) == expected


def test_cost_of_networks_of_any_library():
    """A convolution 3x3 from 3 to 8 channels with biases, and a dense layer, by hand."""
    with jax.numpy_rank_promotion("allow"):
        apply, state, shape = nnx_network()
        found = cost(apply, state, shape)
        assert found.multiply_adds == 256 * 9 * 3 * 8 + 64 * 9 * 8 * 16 + 16 * 64 * 10
        assert found.training_flops == 6 * found.multiply_adds
        apply, network, shape = equinox_network()
        dense = 12 * 12 + 48 * 20 + 20 * 10
        assert cost(apply, network, shape).multiply_adds == 256 * 27 * 8 + 16 * 9 * 2 * 12 + dense


def test_peaks():
    assert peak("cpu") is None and peak("NVIDIA Unheard Of") is None
    for kind, figures in PEAKS.items():
        assert figures.flops("bfloat16") >= figures.flops("float32") > 1e13, kind
        assert 8e9 <= figures.memory < 3e11 and 1e11 < figures.bandwidth < 1e13, kind
    # A chip of two devices.
    assert peak("TPU v3").flops("bfloat16") * 2 == pytest.approx(123e12)


def test_mfu_is_the_flops_over_the_peak_of_all_devices():
    """20-10 at 10,000 images/s on two H100 in bfloat16: 6 x 4.0156 G x 10,000 of 2 x 989.5 T."""
    network = WideResNet(20, 10, 10)
    h100 = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    of_image = mfu_of_image(network, (32, 32, 3), [h100, h100], "bfloat16")
    assert of_image * 10_000 == pytest.approx(6 * 4.0156e13 / (2 * 989.5e12), rel=1e-4)
    single = mfu_of_image(network, (32, 32, 3), [h100, h100])
    assert single == pytest.approx(of_image * 989.5 / 494.7)
    assert mfu_of_image(network, (32, 32, 3), [h100, jax.devices("cpu")[0]]) is None
