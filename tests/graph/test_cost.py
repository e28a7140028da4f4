"""Operations of the networks against their traces."""

from types import SimpleNamespace

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from binwrn_jax import WideResNet
from binwrn_jax.graph.cost import mfu_of_image, multiply_adds, training_flops
from binwrn_jax.parallel.hardware import PEAKS, peak


def traced_multiply_adds(program, *arguments):
    """Of all convolutions that JAX traces: result elements times the window's elements."""

    def walk(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
                spec = equation.params["dimension_numbers"].rhs_spec
                total += int(np.prod(out)) * int(np.prod(kernel)) // kernel[spec[0]]
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    if isinstance(inner, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr):
                        total += walk(getattr(inner, "jaxpr", inner))
        return total

    return walk(jax.make_jaxpr(program)(*arguments).jaxpr)


def test_20_10_has_the_papers_four_billion():
    assert round(multiply_adds(20, 10, 10, (32, 32, 3)) / 1e9, 3) == 4.016
    assert training_flops(20, 10, 10, (32, 32, 3)) == 6 * multiply_adds(20, 10, 10, (32, 32, 3))


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
    model = WideResNet(depth=depth, width=width, num_classes=classes)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    traced = traced_multiply_adds(model.apply, variables, images)
    assert multiply_adds(depth, width, classes, shape) == traced


def test_peaks():
    assert peak("cpu") is None and peak("NVIDIA Unheard Of") is None
    for kind, figures in PEAKS.items():
        assert figures.flops("bfloat16") >= figures.flops("float32") > 1e13, kind
        assert 8e9 <= figures.memory < 3e11 and 1e11 < figures.bandwidth < 1e13, kind
    # A chip of two devices.
    assert peak("TPU v3").flops("bfloat16") * 2 == pytest.approx(123e12)


def test_mfu_is_the_flops_over_the_peak_of_all_devices():
    """20-10 at 10,000 images/s on two H100 in bfloat16: 6 x 4.0156 G x 10,000 of 2 x 989.5 T."""
    model = {"depth": 20, "width": 10, "dtype": "bfloat16"}
    h100 = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    of_image = mfu_of_image(model, 10, (32, 32, 3), [h100, h100])
    assert of_image * 10_000 == pytest.approx(6 * 4.0156e13 / (2 * 989.5e12), rel=1e-4)
    single = mfu_of_image({**model, "dtype": "float32"}, 10, (32, 32, 3), [h100, h100])
    assert single == pytest.approx(of_image * 989.5 / 494.7)
    assert mfu_of_image(model, 10, (32, 32, 3), [h100, jax.devices("cpu")[0]]) is None
