"""Learning rates against a NumPy formula, step by step over whole runs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binwrn_jax import UserError, base_config, cycle_ends, sgdr, step_decay
from binwrn_jax.cli.flags import parse_flags
from binwrn_jax.training.config import check
from binwrn_jax.training.resolve import build_schedule

STEPS = 400  # CIFAR: 50,000 images in batches of 125


def sgdr_rates(cycles, steps, peak, floor):
    """Loshchilov & Hutter 2017, Eq. 5, for cycles of the given epochs: one rate per step, float64."""
    rates = []
    for epochs in cycles:
        t = np.arange(epochs * steps) / (epochs * steps)
        rates.append(floor + 0.5 * (peak - floor) * (1 + np.cos(np.pi * t)))
    return np.concatenate(rates)


def every_step(schedule, steps):
    """As the training step asks for it: jitted, one int32 step at a time."""
    return np.asarray(jax.jit(lambda: jax.lax.map(schedule, jnp.arange(steps)))())


@pytest.mark.parametrize("floor", [1e-4, 1e-5])
def test_sgdr_at_every_step_of_254_epochs(floor):
    cycles = [2, 4, 8, 16, 32, 64, 128]
    ours = every_step(sgdr(254, STEPS, floor=floor), 254 * STEPS)
    expected = sgdr_rates(cycles, STEPS, 0.1, floor)
    assert ours.shape == expected.shape == (101_600,)
    # float32 of the cosine near -1: half an ulp of 1 in 2, times 0.05.
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-8)

    # The first step of each cycle has the peak exactly, the last one the floor but for a last small step.
    ends = np.cumsum(cycles) * STEPS
    starts = ends - np.array(cycles) * STEPS
    np.testing.assert_array_equal(ours[starts], np.float32(0.1))
    short = 0.05 * (1 - np.cos(np.pi / (np.array(cycles) * STEPS)))
    assert (ours[ends - 1] > floor * (1 - 1e-3)).all() and (ours[ends - 1] < floor + 2 * short).all()
    for start, end in zip(starts, ends, strict=True):
        assert (np.diff(ours[start:end]) <= 0).all()
    assert float(sgdr(254, STEPS, floor=floor)(254 * STEPS)) == pytest.approx(floor, rel=1e-3)


@pytest.mark.parametrize(
    ("epochs", "first", "cycles"), [(9, 2, [2, 4, 3]), (1, 2, [1]), (10, 1, [1, 2, 4, 3]), (5, 5, [5])]
)
def test_sgdr_cut_short_is_a_shorter_cosine(epochs, first, cycles):
    ours = every_step(sgdr(epochs, 7, peak=0.3, floor=0.001, first_cycle=first), epochs * 7)
    np.testing.assert_allclose(ours, sgdr_rates(cycles, 7, 0.3, 0.001), rtol=1e-5)
    assert np.diff((0, *cycle_ends(epochs, first))).tolist() == cycles


def test_cycle_ends_are_the_papers():
    assert cycle_ends(254) == (2, 6, 14, 30, 62, 126, 254)
    for epochs in (2, 6, 14, 30, 62, 126):
        assert cycle_ends(epochs)[-1] == epochs
        assert cycle_ends(254)[: len(cycle_ends(epochs))] == cycle_ends(epochs)
    assert cycle_ends(7) == (2, 6, 7)
    for bad in ((0, 2), (10, 0)):
        with pytest.raises(UserError, match="at least 1"):
            cycle_ends(*bad)


def test_step_schedule_of_figure_6():
    ours = every_step(step_decay(STEPS), 254 * STEPS)
    expected = np.repeat([0.1, 0.01, 0.001], np.array([85, 85, 84]) * STEPS)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    with pytest.raises(UserError, match="2 drops need 3 rates, not 2"):
        step_decay(10, rates=(0.1, 0.01))


# --- other batch sizes -------------------------------------------------------------------------------------


def imagenet(*arguments, spec=""):
    file = Path(__file__).parents[2] / "configs" / "imagenet.py"
    config, *_ = parse_flags(["train.py", f"--config={file}:{spec}", *arguments], file)
    check(config)
    return config


@pytest.mark.parametrize(
    ("batch", "scaling"), [(1024, "linear"), (8192, "linear"), (2048, "sqrt"), (4096, "none")]
)
def test_imagenet_rates_at_every_step_of_62_epochs(batch, scaling):
    """The paper's cycles, times the batch's factor, times a linear ramp over the first five epochs."""
    config = imagenet(f"--config.batch_size={batch}", f"--config.schedule.scaling={scaling}")
    steps = 1281167 // batch
    ours = every_step(build_schedule(config, steps), 62 * steps)
    factor = {"linear": batch / 125, "sqrt": np.sqrt(batch / 125), "none": 1}[scaling]
    ramp = np.ones(62 * steps)
    ramp[: 5 * steps] = np.arange(1, 5 * steps + 1) / (5 * steps)
    expected = factor * ramp * sgdr_rates([2, 4, 8, 16, 32], steps, 0.1, 1e-4)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-8 * factor)
    restarts = np.array([6, 14, 30]) * steps
    np.testing.assert_allclose(ours[restarts], 0.1 * factor, rtol=1e-6)


def test_the_papers_own_imagenet_setting():
    config = imagenet(spec="paper")
    assert (config.batch_size, config.devices, config.model.dtype, config.model.ghost_size) == (
        125,
        1,
        "float32",
        0,
    )
    assert (config.model.depth, config.model.width, config.epochs) == (18, 2.5, 62)
    assert config.model.affine and config.moments == "running" and config.optimizer.weight_decay == 1e-4
    steps = 1281167 // 125
    ours = np.asarray(build_schedule(config, steps)(jnp.arange(2 * steps)))
    np.testing.assert_allclose(ours, sgdr_rates([2], steps, 0.1, 1e-4), rtol=1e-5, atol=1e-8)


def test_step_schedule_scales_too():
    config = base_config()
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "schedule.name": "step",
                "schedule.scaling": "linear",
                "schedule.warmup_epochs": 1.5,
                "batch_size": 500,
                "epochs": 200,
            }
        )
    ours = every_step(build_schedule(config, 10), 2000)
    ramp = np.minimum(1, np.arange(1, 2001) / 15)
    np.testing.assert_allclose(ours, 4 * ramp * np.repeat([0.1, 0.01, 0.001], [850, 850, 300]), rtol=1e-6)


@pytest.mark.parametrize("batch", [125, 50, 1000])
def test_without_scaling_the_schedule_is_the_papers_whatever_the_batch(batch):
    config = base_config()
    config.batch_size = batch
    ours = every_step(build_schedule(config, 5), 126 * 5)
    np.testing.assert_array_equal(ours, every_step(sgdr(126, 5), 126 * 5))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schedule.scaling", "quadratic", "unknown schedule.scaling 'quadratic': choose one of none, linear"),
        ("schedule.reference_batch", 0, "schedule.reference_batch is 0: it must be at least 1"),
        ("schedule.warmup_epochs", -1.0, "schedule.warmup_epochs is -1.0: it must be at least 0"),
        ("accumulate", 0, "accumulate is 0: it must be at least 1"),
    ],
)
def test_impossible_settings(field, value, message):
    with pytest.raises(UserError, match=message):
        imagenet(f"--config.{field}={value}")
