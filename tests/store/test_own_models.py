"""Models of networks of Flax Linen, NNX and Equinox are saved and loaded; their folders hold no code."""

import json

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import EquinoxNet, MobileNet2, NnxNet, trained

from binwrn_jax import Description, Model, UserError, open_model
from binwrn_jax.store.trees import as_dictionaries

SHAPE = (16, 16, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)


@pytest.fixture(autouse=True)
def broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield


class Plain(eqx.Module):
    """With a function among its fields, which no file holds."""

    conv: eqx.nn.Conv2d
    activation: object
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 2)
        self.conv = eqx.nn.Conv2d(3, 4, 3, padding=1, key=keys[0])
        self.activation = jax.nn.relu
        self.head = eqx.nn.Linear(4, 10, key=keys[1])

    def __call__(self, image):
        x = self.conv(image.transpose(2, 0, 1).astype(jnp.float32) / 255)
        return self.head(self.activation(x).mean((1, 2)))


def linen(seed):
    network = MobileNet2()
    shapes = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
    return network, trained(shapes, seed)


def of_nnx(seed):
    network = NnxNet(nnx.Rngs(seed))
    return network, trained(nnx.state(network), seed)


def equinox(seed):
    network = Plain(jax.random.key(seed))
    return network, network


NETWORKS = {"Linen": linen, "NNX": of_nnx, "Equinox": equinox}


@pytest.mark.parametrize("library", NETWORKS)
def test_a_model_comes_back_with_its_weights_and_logits(tmp_path, library):
    network, variables = NETWORKS[library](1)
    model = Model(network, variables, Description(10, SHAPE, class_names=tuple("abcdefghij")))
    model.save(tmp_path / "m")
    other, _ = NETWORKS[library](2)
    again = Model.load(tmp_path / "m", network=other)
    assert jax.tree.structure(again.variables) == jax.tree.structure(variables) or library != "Linen"
    jax.tree.map(np.testing.assert_array_equal, as_dictionaries(again.variables), as_dictionaries(variables))
    expected = np.asarray(model.apply(variables, IMAGES))
    assert expected.shape == (3, 10) and np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(again.apply(again.variables, IMAGES), expected, rtol=1e-5, atol=1e-5)
    predictor = open_model(tmp_path / "m", network=other)
    np.testing.assert_allclose(predictor(IMAGES), expected, rtol=1e-4, atol=1e-4)
    assert predictor.description["class_names"] == list("abcdefghij")


def test_a_network_with_a_state_comes_back_as_the_pair(tmp_path):
    """Equinox keeps the moments of its batch norms in a state beside the network."""
    pair = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0))
    pair = (pair[0], trained(pair[1]))
    Model(pair, pair, Description(10, SHAPE)).save(tmp_path / "m")
    network, state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(1))
    again = Model.load(tmp_path / "m", network=(network, state))
    for ours, theirs in zip(jax.tree.leaves(again.variables), jax.tree.leaves(pair), strict=True):
        if hasattr(ours, "shape"):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UserError, match="cannot be called with images alone"):
        again.apply(again.variables, IMAGES)


def test_another_network_is_refused(tmp_path):
    network, variables = linen(0)
    Model(network, variables, Description(10, SHAPE)).save(tmp_path / "m")

    class Other(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(10)(images.mean((1, 2)))

    with pytest.raises(UserError, match=r"are not those of its network: .*batch_stats"):
        Model.load(tmp_path / "m", network=Other())
    with pytest.raises(UserError, match="its variables are not those of its network"):
        Model.load(tmp_path / "m", network=Plain(jax.random.key(0)))
    with pytest.raises(UserError, match=r"give it, Model.load\(path, network=...\)"):
        Model.load(tmp_path / "m")


def test_a_folder_holds_arrays_and_text_alone(tmp_path):
    network, variables = equinox(0)
    Model(network, variables, Description(10, SHAPE)).save(tmp_path / "m")
    for path in (tmp_path / "m").rglob("*"):
        if path.is_file():
            assert b"Plain" not in path.read_bytes() and b"pickle" not in path.read_bytes()
    assert json.loads((tmp_path / "m" / "model.json").read_text())["model"] is None


def test_variables_of_the_same_path_are_refused(tmp_path):
    tree = ({"0": np.ones(2)}, [np.zeros(2)])
    same = [tree, {"0": {"0": np.ones(3)}}]
    assert as_dictionaries(same)["0"]["1"]["0"].shape == (2,)
    with pytest.raises(UserError, match="two variables have the path"):
        as_dictionaries({"a": {"b": np.ones(2)}, "a/b": np.ones(2)})
