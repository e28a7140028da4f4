"""Starting from a trained model: of every kind, with other classes, and of networks that do not fit."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from binwrn_jax import Description, Model, UserError, base_config, init_state, resolve
from binwrn_jax.data.catalog import lookup
from binwrn_jax.deploy.packed import pack, write_packed
from binwrn_jax.training.initialise import initial_state


def run_of(**fields):
    config = base_config()
    config.data.name = "digits"
    config.model.depth, config.model.width = 8, 0.25
    config.update_from_flattened_dict(fields)
    run = resolve(config, lookup("digits"), 1437)
    return config, jax.device_get(init_state(run.network, run.optimizer, (8, 8, 1), config.seed))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model folder and a packed file of one network with 10 classes, and its variables."""
    folder = tmp_path_factory.mktemp("trained")
    config, state = run_of(seed=5)
    variables = jax.tree.map(
        lambda x: (
            np.abs(np.random.default_rng(1).normal(size=x.shape)).astype(np.float32) + 0.1
            if x.ndim == 1
            else x
        ),
        state.variables,
    )
    description = Description(10, (8, 8, 1), config.model.to_dict(), "digits")
    model = Model(description.network(), variables, description)
    model.save(folder / "model")
    write_packed(pack(model, np.zeros((8, 8, 1), np.uint8)), folder / "model.safetensors")
    return folder, variables


def with_classes(config, state, classes):
    """The state of the same network for so many classes."""
    facts = dataclasses.replace(lookup("digits"), num_classes=classes)
    run = resolve(config, facts, 1437)
    return jax.device_get(init_state(run.network, run.optimizer, (8, 8, 1), config.seed))


def test_all_of_a_model_folder(trained):
    folder, variables = trained
    config, state = run_of()
    found = initial_state(state, str(folder / "model"), config)
    jax.tree.map(np.testing.assert_array_equal, found.variables, dict(variables))


def test_the_signs_of_a_packed_file(trained):
    folder, variables = trained
    config, state = run_of()
    found = initial_state(state, str(folder / "model.safetensors"), config)
    for name, layer in variables["params"].items():
        if "kernel" in layer:
            kernel = np.asarray(found.params[name]["kernel"])
            np.testing.assert_array_equal(kernel >= 0, layer["kernel"] >= 0)


def test_other_classes_give_a_new_last_layer(trained, caplog):
    folder, variables = trained
    config, state = run_of()
    state = with_classes(config, state, 3)
    with caplog.at_level(logging.INFO, "binwrn_jax"):
        found = initial_state(state, str(folder / "model"), config)
    assert (
        f"init_from {folder / 'model'} has other classes: bn8, conv7 of this run starts anew" in caplog.text
    )
    np.testing.assert_array_equal(found.params["conv6"]["kernel"], variables["params"]["conv6"]["kernel"])
    np.testing.assert_array_equal(found.params["conv7"]["kernel"], state.params["conv7"]["kernel"])
    assert found.params["conv7"]["kernel"].shape[-1] == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model.width": 0.5},
            r"conv0/kernel has the shape \[3, 3, 1, 4\] there and \[3, 3, 1, 8\]",
        ),
        ({"model.depth": 14}, "params/conv8/kernel is a variable that it has not"),
        ({"model.affine": True}, "params/bn1/offset is a variable that it has not"),
        (
            {"model.padding": "same"},
            "model.padding 'symmetric', this run 'same': give --config.model",
        ),
    ],
)
def test_another_network_names_the_first_layer_that_differs(trained, fields, message):
    config, state = run_of(**fields)
    with pytest.raises(UserError, match=message):
        initial_state(state, str(trained[0] / "model"), config)


def test_averages_begin_at_the_trained_weights(trained):
    config, state = run_of(**{"recipe.ema": 0.9})
    found = initial_state(state, str(trained[0] / "model"), config)
    jax.tree.map(np.testing.assert_array_equal, found.opt_state.average, trained[1]["params"])


def test_a_source_that_is_not_there():
    config, state = run_of()
    with pytest.raises(UserError, match="no model at nowhere"):
        initial_state(state, "nowhere", config)
