"""The hash of a configuration, which model files carry: the same for runs that compute the same."""

import hashlib

import pytest

from binwrn_jax import base_config
from binwrn_jax.training import config as configs
from binwrn_jax.training.config import config_sha256


def with_fields(**fields):
    config = base_config()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def test_the_hash_never_changes():
    """Files of different versions can be compared by it."""
    assert config_sha256(base_config()) == hashlib.sha256(b"{}").hexdigest()
    changed = with_fields(seed=3, model__width=10.0, data__name="cifar100")
    text = b'{"data.name": "cifar100", "model.width": 10.0, "seed": 3}'
    assert config_sha256(changed) == config_sha256(changed.to_dict()) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    "fields",
    [
        {"log__every_steps": 7},
        {"checkpoint__every_steps": 7},
        {"checkpoint__keep": 9},
        {"data__dir": "/data"},
        {"data__workers": 3},
        {"eval__batch_size": 7},
        {"devices": 2},
        {"accumulate": 5},
        {"profile": True},
    ],
)
def test_fields_without_effect_on_results_change_no_hash(fields):
    assert config_sha256(with_fields(seed=1, **fields)) == config_sha256(with_fields(seed=1))


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 2},
        {"epochs": 2},
        {"data__name": "mnist"},
        {"data__train_split": "train[:100]"},
        {"model__weights": "32bit"},
        {"augmentation": "crop"},
        {"schedule__peak": 0.2},
        {"optimizer__weight_decay": 0.0},
        {"init_from": "runs/a"},
        {"batch_size": 100},
        {"moments": "running"},
    ],
)
def test_fields_with_an_effect_on_results_change_the_hash(fields):
    assert config_sha256(with_fields(**{"seed": 1, **fields})) != config_sha256(with_fields(seed=1))


def test_the_hash_uses_the_last_part_of_paths():
    hashes = {
        config_sha256(with_fields(init_from=path))
        for path in ("runs/a", "runs/a/", "/elsewhere/a", "./a", "runs/a/model")
    }
    assert len(hashes) == 1
    assert config_sha256(with_fields(init_from="runs/b")) not in hashes
    names = ("folder:/data/cats", "folder:cats", "folder:dogs")
    here, there, other = (config_sha256(with_fields(data__name=name)) for name in names)
    assert here == there != other


def test_a_new_field_changes_no_hash(monkeypatch):
    before = config_sha256(with_fields(seed=5))

    def later():
        config = base_config()
        config.unlock()
        config.model.colours = 3
        return config

    monkeypatch.setattr(configs, "base_config", later)
    config = later()
    config.seed = 5
    assert config_sha256(config) == before
