"""Recipes beside the paper's: what each does to images, targets, loss and weights; a step takes them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from binwrn_jax import UserError, WideResNet, base_config, init_state, make_train_step, resolve, sgd, sgdr
from binwrn_jax.data.catalog import lookup
from binwrn_jax.training import recipes
from binwrn_jax.training.augment import jitter, lighting
from binwrn_jax.training.optimizer import freeze, with_average
from binwrn_jax.training.variants import RECIPES, apply_variants

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.integers(0, 256, (6, 8, 8, 3)), jnp.uint8)
LABELS = jnp.asarray([0, 1, 2, 0, 1, 2], jnp.int32)
LOGITS = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
KEY = jax.random.key(7)
PAPER = recipes.paper_recipe("none")


def softmax(x):
    powers = np.exp(np.asarray(x, np.float64))
    return powers / powers.sum(-1, keepdims=True)


def prepare(recipe):
    return recipe.prepare(KEY, IMAGES, LABELS)


def test_the_papers_recipe_changes_no_target():
    images, targets = prepare(PAPER)
    assert images is IMAGES and targets is LABELS
    expected = -np.log(softmax(LOGITS)[np.arange(6), LABELS])
    np.testing.assert_allclose(PAPER.loss(LOGITS, targets), expected, rtol=1e-5)


def test_label_smoothing():
    recipe = recipes.with_label_smoothing(PAPER, 0.3, 3)
    images, targets = prepare(recipe)
    assert images is IMAGES
    expected = 0.7 * np.eye(3)[np.asarray(LABELS)] + 0.1
    np.testing.assert_allclose(targets, expected, rtol=1e-6)
    np.testing.assert_allclose(
        recipe.loss(LOGITS, targets), -(expected * np.log(softmax(LOGITS))).sum(1), rtol=1e-5
    )


def test_mixup_mixes_images_and_targets_by_the_same_weight():
    images, targets = prepare(recipes.with_mixup(PAPER, 0.4, 3))
    x, y = np.asarray(IMAGES, np.float64), np.eye(3)[np.asarray(LABELS)]
    # Labels 0 and 2 are neighbours at the start: the target gives the weight away.
    weight = float(targets[0, 0])
    assert 0 < weight < 1
    np.testing.assert_allclose(images, weight * x + (1 - weight) * np.roll(x, 1, 0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(targets, weight * y + (1 - weight) * np.roll(y, 1, 0), rtol=1e-5)
    other = recipes.with_mixup(PAPER, 0.4, 3).prepare(jax.random.key(8), IMAGES, LABELS)[1]
    assert float(other[0, 0]) != weight


def test_cutmix_takes_a_patch_and_its_share_of_the_target():
    for seed in range(20):
        images, targets = recipes.with_cutmix(PAPER, 1.0, 3).prepare(jax.random.key(seed), IMAGES, LABELS)
        taken = (np.asarray(images) == np.roll(np.asarray(IMAGES), 1, 0)).all((0, 3))
        kept = (np.asarray(images) == np.asarray(IMAGES)).all((0, 3))
        assert (taken ^ kept).all()
        rows, columns = taken.any(1), taken.any(0)
        assert taken.sum() == rows.sum() * columns.sum()  # a rectangle
        np.testing.assert_allclose(targets[0, 2], taken.mean(), rtol=1e-5)
        np.testing.assert_allclose(np.asarray(targets).sum(1), 1, rtol=1e-5)


def test_distillation_follows_the_teacher():
    teacher = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
    seen = []

    def taught(images):
        seen.append(images)
        return teacher

    recipe = recipes.with_distillation(PAPER, taught, weight=0.75, temperature=2.0)
    images, targets = prepare(recipe)
    assert seen == [images]
    p, q = softmax(teacher / 2), softmax(LOGITS / 2)
    expected = 0.25 * PAPER.loss(LOGITS, LABELS) + 0.75 * 4 * (p * np.log(p / q)).sum(1)
    np.testing.assert_allclose(recipe.loss(LOGITS, targets), expected, rtol=1e-4)


def test_averages_follow_the_weights_and_change_no_update():
    params = {"w": jnp.asarray([1.0, -2.0])}
    plain, averaged = optax.sgd(0.1), with_average(optax.sgd(0.1), 0.9)
    state, own = averaged.init(params), plain.init(params)
    expected, w = np.array([1.0, -2.0]), params
    for step in range(5):
        grads = {"w": jnp.asarray([1.0, step])}
        updates, own = plain.update(grads, own, w)
        ours, state = averaged.update(grads, state, w)
        np.testing.assert_array_equal(ours["w"], updates["w"])
        w = optax.apply_updates(w, updates)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * np.asarray(w["w"])
        np.testing.assert_allclose(state.average["w"], expected, rtol=1e-6)


def test_averages_are_evaluated():
    model = WideResNet(depth=8, width=0.25, num_classes=3)
    recipe, optimizer = recipes.with_ema(PAPER, sgd(sgdr(2, 35)), 0.5)
    start = init_state(model, optimizer, (8, 8, 3))
    step = jax.jit(make_train_step(model, optimizer, recipe))
    state, _ = step(start, {"images": IMAGES, "labels": LABELS})
    found = recipe.evaluation_params(state)
    expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, start.params, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected)
    assert jax.tree.structure(PAPER.evaluation_params(state)) == jax.tree.structure(state.params)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_keeps_the_kind_and_differs_by_image(channels):
    images = jnp.broadcast_to(IMAGES[:1, ..., :channels], (50, 8, 8, channels))
    found = jitter(KEY, images, 0.5)
    assert found.shape == images.shape and found.dtype == jnp.uint8
    assert len({np.asarray(image).tobytes() for image in found}) > 45
    np.testing.assert_array_equal(jitter(KEY, images, 0.0), images)


def test_jitter_changes_brightness_by_the_magnitude():
    grey = jnp.full((400, 8, 8, 1), 100, jnp.uint8)
    means = np.asarray(jitter(KEY, grey, 0.3)).mean((1, 2, 3))
    assert 69 <= means.min() < 75 and 125 < means.max() <= 131


def test_lighting_moves_all_pixels_of_an_image_by_one_colour():
    grey = jnp.full((300, 4, 4, 3), 128, jnp.uint8)
    found = np.asarray(lighting(KEY, grey, 0.1), np.int32) - 128
    assert (found == found[:, :1, :1]).all()
    colours = found[:, 0, 0].astype(np.float64)
    principal = np.linalg.eigh(np.cov(colours.T))[1][:, -1]
    np.testing.assert_allclose(np.abs(principal), [0.5675, 0.5808, 0.5836], atol=0.05)
    assert colours.std() == pytest.approx(255 * 0.1 * 0.2175 / np.sqrt(3), rel=0.15)


def config_of(words, name="cifar10"):
    config = base_config()
    config.data.name = name
    config.model.depth, config.model.width = 8, 0.25
    apply_variants(config, words)
    return config


@pytest.mark.parametrize(
    "word",
    [
        *(pytest.param(word, marks=pytest.mark.slow) for word in RECIPES),
        "smooth,mixup,cutmix,jitter,lighting,ema,cosine",
    ],
)
def test_each_word_gives_a_run_that_steps(word):
    run = resolve(config_of(word), lookup("cifar10"), 1250)
    start = init_state(run.network, run.optimizer, (32, 32, 3))
    step = jax.jit(make_train_step(run.network, run.optimizer, run.recipe))
    images = jnp.asarray(RNG.integers(0, 256, (8, 32, 32, 3)), jnp.uint8)
    state, metrics = step(start, {"images": images, "labels": jnp.arange(8, dtype=jnp.int32)})
    assert np.isfinite(float(metrics["loss"]))
    assert int(state.step) == 1


def test_the_papers_step_draws_nothing_more():
    """The step of the paper's recipe holds no key that only another recipe would use."""
    run = resolve(config_of(""), lookup("cifar10"), 1250)
    state = jax.eval_shape(lambda: init_state(run.network, run.optimizer, (32, 32, 3)))
    inputs = {
        "images": jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8),
        "labels": jax.ShapeDtypeStruct((8,), np.int32),
    }
    texts = [
        jax.jit(make_train_step(run.network, run.optimizer, recipe)).lower(state, inputs).as_text()
        for recipe in (run.recipe, recipes.with_mixup(run.recipe, 0.2, 10))
    ]
    assert "beta" not in texts[0] and texts[0].count("threefry") < texts[1].count("threefry")


def test_one_cosine_cycle_with_a_warm_up():
    config = config_of("cosine")
    config.epochs = 10
    run = resolve(config, lookup("cifar10"), 1250)
    assert run.cycle_ends == {100} and run.total_steps == 100
    rates = np.asarray(jax.vmap(run.learning_rate)(jnp.arange(100)))
    assert rates.argmax() in (9, 10) and rates[0] == pytest.approx(0.01, rel=1e-3) and rates[99] < 2e-4
    assert (np.diff(rates[10:]) < 0).all()


@pytest.mark.parametrize(
    ("words", "name", "message"),
    [
        ("lighting", "mnist", "recipe.lighting is for colour images: those of mnist are grey"),
        (
            "ema,keras",
            "cifar10",
            "recipe.ema averages weights, and running batch-norm moments are not theirs",
        ),
    ],
)
def test_recipes_that_do_not_fit(words, name, message):
    with pytest.raises(UserError, match=message):
        resolve(config_of(words, name), lookup(name), 1000)


def test_frozen_parameters_stay():
    model = WideResNet(depth=8, width=0.25, num_classes=3)
    optimizer = freeze(sgd(sgdr(2, 35)), "conv0, bn0/scale")
    start = init_state(model, optimizer, (8, 8, 3))
    step = jax.jit(make_train_step(model, optimizer, PAPER))
    state, _ = step(start, {"images": IMAGES, "labels": LABELS})
    moved = {
        "/".join(key.key for key in path): bool((a != b).any())
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(start.params), jax.tree.leaves(state.params), strict=True
        )
    }
    assert {name for name, any_ in moved.items() if not any_} == {"conv0/kernel", "bn0/scale"}
    with pytest.raises(UserError, match="freeze: 'conv99' matches no parameter; there are bn0/offset"):
        freeze(sgd(sgdr(2, 35)), "conv99").init(start.params)
