"""What follows from a configuration: counts, and whether a shorter run is the beginning of a longer one."""

import pytest

from binwrn_jax import UserError, base_config, resolve
from binwrn_jax.data.catalog import lookup
from binwrn_jax.training import loop
from binwrn_jax.training.resolve import continuation_conflict
from binwrn_jax.training.variants import apply_variants


def run_of(epochs, words="", **fields):
    config = base_config()
    config.data.name, config.epochs = "digits", epochs
    config.batch_size = 50
    apply_variants(config, words)
    config.update_from_flattened_dict(fields)
    return resolve(config, lookup("digits"), 1437)


def test_counts():
    run = run_of(30)
    assert (run.steps_per_epoch, run.total_steps) == (28, 840)
    assert run.cycle_ends == {56, 168, 392, 840}
    assert run.network.num_classes == 10 and run.recipe.host_crop == ""
    with pytest.raises(UserError, match="1437 training images are fewer than one batch of 2000"):
        run_of(30, batch_size=2000)


@pytest.mark.parametrize(
    ("old", "new", "words", "conflict"),
    [
        (30, 62, "", ""),
        (2, 6, "", ""),
        (85, 255, "step", ""),
        (100, 120, "step", ""),
        (
            20,
            40,
            "",
            "epochs: 20 -> 40: the learning rates differ from epoch 14 on, .* a run goes on after a whole",
        ),
        (30, 40, "", ""),  # the longer run's last cycle is cut, the shorter one's is whole
        (10, 20, "cosine", "epochs: 10 -> 20: the learning rates differ from epoch 0 on"),
        (62, 30, "", "epochs: 62 -> 30: it has more"),
    ],
)
def test_runs_that_can_continue(old, new, words, conflict):
    import re

    found = continuation_conflict(run_of(old, words).config.to_dict(), run_of(new, words))
    assert (found == "") if not conflict else re.match(conflict, found), found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": None}, "epochs is None: it must be a whole number"),
        ({"model.depth": None}, "model.depth is None: it must be a whole number"),
        ({"schedule.peak": None}, "schedule.peak is None: it must be a number"),
        ({"schedule.rates": ("a",)}, r"schedule.rates is \('a',\): it must be a list of numbers"),
        ({"schedule.drops": None}, "schedule.drops is None: it must be a list of numbers"),
        ({"log.to": None}, "log.to is None: it must be a text"),
        ({"profile": None}, "profile is None: it must be true or false"),
        ({"epoch": 3}, r"unknown config field 'epoch' \(did you mean 'epochs'\?\)"),
    ],
)
def test_configurations_of_notebooks_are_checked(fields, message):
    """What ml_collections lets pass: None anywhere, anything in tuples, other fields of an unlocked one."""
    config = base_config()
    with config.unlocked():
        for name, value in fields.items():
            *groups, last = name.split(".")
            place = config
            for group in groups:
                place = place[group]
            place[last] = value
    with pytest.raises(UserError, match=message) as error:
        resolve(config, lookup("digits"), 1437)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"the configuration is a dict: take base_config\(\) and change it"):
        resolve(config.to_dict(), lookup("digits"), 1437)


def test_the_folder_of_a_run_may_be_text(tmp_path, monkeypatch):
    def started(run):
        assert run.workdir == tmp_path / "run"
        raise UserError("started")

    monkeypatch.setattr(loop, "_train", started)
    config = base_config()
    config.data.name, config.model.depth, config.model.width, config.devices = "digits", 8, 0.25, 1
    with pytest.raises(UserError, match=r"^started$"):
        loop.train(config, str(tmp_path / "run"))
