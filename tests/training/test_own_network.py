"""A network of the user's own in training: trained, continued, packed, evaluated and exported by name."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binwrn_jax import (
    BinaryConv,
    Model,
    UserError,
    base_config,
    load,
    open_dataset,
    open_model,
    resolve,
    train,
)
from binwrn_jax.cli.flags import load_config, shipped_configs
from binwrn_jax.cli.main import main
from binwrn_jax.nn.registry import import_network
from binwrn_jax.store.model import read_description
from binwrn_jax.training.config import config_sha256
from binwrn_jax.training.initialise import initial_state
from binwrn_jax.training.state import init_state

NAME = "own_networks:create"


def configuration(epochs=2, **fields):
    config = load_config(shipped_configs() / "digits.py")
    config.update_from_flattened_dict({"model.type": NAME, "model.width": 2.0, "epochs": epochs, **fields})
    return config


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def environment(monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, cache):
    """A run of two epochs, continued to six."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        path = tmp_path_factory.mktemp("runs") / "run"
        assert train(configuration(2), path)["steps"] == 56
        train(configuration(6), path)
        return path


def test_a_run_is_evaluated_packed_and_summarised(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["network"] == NAME and summary["steps"] == 168
    assert summary["test_error"] < 30  # by chance it would be 90
    assert summary["packed_test_error"] == pytest.approx(summary["test_error"], abs=0.6)
    test = load("digits", "test")
    logits = open_model(workdir / "model.safetensors")(test.images)
    assert 100 * (logits.argmax(1) != test.labels).mean() == pytest.approx(summary["packed_test_error"])


def test_a_run_that_goes_on_gives_the_same_bits(workdir, tmp_path):
    train(configuration(6), tmp_path / "at_once")
    packed = [path / "model.safetensors" for path in (workdir, tmp_path / "at_once")]
    assert packed[0].read_bytes() == packed[1].read_bytes()


def test_moments_are_those_of_the_training_set(workdir):
    """The first batch norm sees the convolution of images: its moments over the training set, by Flax."""
    network = open_network(workdir)
    model = Model.load(workdir, network=network)
    images = load("digits", "train").images
    _, seen = network.apply(
        jax.tree.map(jnp.asarray, model.variables),
        images,
        train=False,
        capture_intermediates=lambda module, _: isinstance(module, BinaryConv),
        mutable=["intermediates"],
    )
    (first,) = seen["intermediates"]["Block_0"]["BinaryConv_0"]["__call__"]
    stats = model.variables["batch_stats"]["Block_0"]["BatchNorm_0"]
    first = np.asarray(first)
    # Augmentation and the average of standard deviations make them differ a little.
    np.testing.assert_allclose(stats["mean"], first.mean((0, 1, 2)), atol=0.1 * first.std())
    np.testing.assert_allclose(stats["var"] ** 0.5, first.std((0, 1, 2)), rtol=0.1)


def test_the_verbs_take_the_network_by_name_only_from_the_user(workdir, tmp_path, capsys):
    assert main(["evaluate", str(workdir), "--dataset", "digits"]) == 2
    assert (
        f"its network is {NAME}, and no code is imported because a file names it" in capsys.readouterr().err
    )
    assert main(["evaluate", str(workdir), "--dataset", "digits", "--network", NAME, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["error"] == pytest.approx(json.loads((workdir / "summary.json").read_text())["test_error"])
    assert main(["inspect", str(workdir)]) == 2
    assert "a network of your own are not listed: export it" in capsys.readouterr().err
    output = tmp_path / "m.safetensors"
    command = ["export", str(workdir), "--format", "packed", "--output", str(output)]
    assert main(command) == 2
    assert main([*command, "--network", NAME]) == 0
    assert "100 predictions identical to the trained network's" in capsys.readouterr().out
    test = load("digits", "test").images
    np.testing.assert_array_equal(open_model(output)(test), open_model(workdir / "model.safetensors")(test))
    assert main(["evaluate", str(output), "--dataset", "digits", "--network", NAME]) == 2
    assert "--network" in capsys.readouterr().err


def test_no_file_imports_code(tmp_path, monkeypatch, workdir):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    source = Model.load(workdir, network=open_network(workdir))
    fields = {**source.description.to_dict(), "model": {**source.description.model, "type": "evil_module:f"}}
    Model(source.network, source.variables, type(source.description).from_dict(fields)).save(tmp_path / "m")
    for open_ in (Model.load, open_model):
        with pytest.raises(UserError, match="its network is evil_module:f"):
            open_(tmp_path / "m")
    assert "evil_module" not in sys.modules


def open_network(workdir):
    description = read_description(workdir)
    return import_network(NAME, description.model, description.num_classes)


def test_a_run_begins_with_the_weights_of_another(workdir):
    config = configuration(init_from=str(workdir))
    run = resolve(config, open_dataset("digits").info)
    fresh = init_state(run.network, run.optimizer, (8, 8, 1), seed=7)
    state = initial_state(fresh, str(workdir), config)
    model = Model.load(workdir, network=run.network)
    jax.tree.map(np.testing.assert_array_equal, state.variables, dict(model.variables))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine", "model.type 'mine' is no network: use wide_resnet, or your own as PACKAGE:FUNCTION"),
        (":create", "is no network"),
        ("no_such_module:create", "cannot be imported .ModuleNotFoundError"),
        ("own_networks:absent", "cannot be imported .AttributeError"),
        ("own_networks:failing", "the function own_networks:failing fails .ValueError: two lines"),
        ("own_networks:no_network", "returns function: it must return a flax.linen.Module"),
        ("own_networks:without_train", "WithoutTrain cannot be called with .images, train=..."),
        ("own_networks:other_logits", r"gives \(2, 7\) of 2 images: logits are \[2, 10\]"),
        ("own_networks:with_cache", "has the variables cache"),
        ("own_networks:empty", "has no parameters"),
    ],
)
def test_wrong_networks_are_refused_in_one_line(name, words):
    with pytest.raises(UserError, match=words) as caught:
        resolve(configuration(**{"model.type": name}), open_dataset("digits").info)
    assert "\n" not in str(caught.value)


def test_micro_batches_need_ghost_groups(tmp_path):
    config = configuration(accumulate=2, **{"model.ghost_size": 25, "batch_size": 50})
    with pytest.raises(UserError, match="accumulate 2 needs a network that normalises by ghost groups"):
        train(config, tmp_path / "run")


def test_the_default_type_changes_no_hash():
    config = base_config()
    before = config_sha256(config)
    del config.model["type"]
    assert config_sha256(config) == before
    assert config_sha256(configuration()) != before
