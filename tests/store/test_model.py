"""Models on disk: what is saved is loaded, and nothing else is."""

import dataclasses
import json
import os
import shutil
import threading
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import flips

from binwrn_jax import Description, Model, UserError
from binwrn_jax.nn.registry import default_fields
from binwrn_jax.store.manifest import Damaged, open_sealed, seal
from binwrn_jax.store.model import find_model, stored_step

FIELDS = {
    "model": {**default_fields(), "depth": 8, "width": 0.25},
    "num_classes": 3,
    "image_shape": [8, 8, 1],
    "dataset": "digits",
    "class_names": ["a", "b", "ç"],
    "input": {"resize": "bilinear"},
    "step": 7,
    "future": {"kept": True},
}


def make_model(seed: int = 0, **fields) -> Model:
    description = Description.from_dict({**FIELDS, **fields})
    network = description.network()
    shapes = jax.eval_shape(
        network.init, jax.random.key(0), np.zeros((1, *description.image_shape), np.uint8)
    )
    rng = np.random.default_rng(seed)
    # Positive, since some are variances.
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(leaf.dtype), shapes)
    return Model(network, variables, description)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    make_model().save(path)
    return path


def assert_same(ours: Model, theirs: Model) -> None:
    assert ours.description == theirs.description
    assert jax.tree.structure(dict(ours.variables)) == jax.tree.structure(dict(theirs.variables))
    jax.tree.map(np.testing.assert_array_equal, dict(ours.variables), dict(theirs.variables))


def test_a_model_comes_back_as_it_was(folder):
    model = Model.load(folder)
    assert_same(model, make_model())
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(model.variables))
    assert model.description.class_names == ("a", "b", "ç")
    assert model.description.to_dict().items() >= FIELDS.items()
    assert stored_step(folder) == 7
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    logits = jax.jit(model.apply)(model.variables, images)
    assert logits.shape == (2, 3) and logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, jax.jit(model.network.apply)(model.variables, images))


def test_text_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model().save("d")
    Model.load("d").save("made/e")
    os.rename("made/e", "e")
    assert_same(Model.load("e"), Model.load(Path("d")))
    assert find_model("d") == Path("d")
    os.makedirs("run")
    os.rename("e", "run/model")
    assert_same(Model.load("run"), Model.load("d"))


def test_inference_is_in_float32_whatever_the_training_was(tmp_path):
    exact, rounded = make_model(), make_model(model={**FIELDS["model"], "dtype": "bfloat16"})
    rounded.save(tmp_path / "m")
    rounded = Model.load(tmp_path / "m")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(
        jax.jit(rounded.apply)(rounded.variables, images), jax.jit(exact.apply)(exact.variables, images)
    )


def test_a_network_without_batch_norm(tmp_path):
    fields = {**FIELDS["model"], "norm": "none", "temperature": 40.0, "input_relu": False}
    model = make_model(model=fields)
    model = dataclasses.replace(model, variables={"batch_stats": {}, **model.variables})
    model.save(tmp_path / "m")
    assert_same(Model.load(tmp_path / "m"), model)


class Own(nn.Module):
    """A network of a user."""

    features: int = 5

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.features)(images.astype(jnp.float32).reshape(len(images), -1))


def test_a_network_of_the_user_is_given_to_load(tmp_path):
    images = np.ones((2, 4, 4, 1), np.uint8)
    network = Own()
    model = Model(network, network.init(jax.random.key(0), images), Description(5, (4, 4, 1)))
    model.save(tmp_path / "m")
    with pytest.raises(UserError, match=r"give it, Model\.load\(path, network=\.\.\.\)"):
        Model.load(tmp_path / "m")
    loaded = Model.load(tmp_path / "m", network=Own())
    assert_same(loaded, model)
    np.testing.assert_array_equal(
        loaded.apply(loaded.variables, images), network.apply(model.variables, images)
    )
    with pytest.raises(UserError, match=r"kernel'\] is float32\[16, 5\], expected float32\[16, 6\]|bias"):
        Model.load(tmp_path / "m", network=Own(6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["a", "b"]}, r"class_names is \['a', 'b'\]: expected 3 names, or none"),
        ({"class_names": "abc"}, "class_names is 'abc'"),
        ({"class_names": [1, 2, 3]}, "class_names"),
        ({"input": ["resize"]}, r"input is \['resize'\]: expected an object"),
        ({"input": {"resize": []}}, r"input.resize is \[\]"),
        ({"num_classes": "3"}, "num_classes is '3'"),
        ({"num_classes": True}, "num_classes is True"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 10**30}, "num_classes is 10"),
        ({"image_shape": [8, 8]}, r"image_shape is \[8, 8\]: expected height, width and channels"),
        ({"image_shape": [8, 8, 0]}, "image_shape"),
        ({"image_shape": [8, 8, 1.0]}, "image_shape"),
        ({"image_shape": {}}, "image_shape"),
        ({"model": "20-4"}, "model is '20-4'"),
        ({"model": {}}, "model describes no network"),
        ({"model": {**FIELDS["model"], "depth": "8"}}, "model"),
        ({"model": {**FIELDS["model"], "width": float("nan")}}, "width nan"),
        ({"model": {**FIELDS["model"], "colour": 1}}, "colour"),
        ({"model": {**FIELDS["model"], "dtype": "float8"}}, "unknown model.dtype"),
        ({"model": {**FIELDS["model"], "dtype": []}}, "model"),
        ({"model": {**FIELDS["model"], "padding": "valid"}}, "unknown padding"),
        ({"dataset": ["digits"]}, "dataset is"),
        ({"license": {}}, "license is {}"),
        ({"test": 3}, "test is 3"),
        ({"epoch": "x"}, "epoch is 'x'"),
        ({"step": -1}, "step is -1"),
        ({"image_size_assumed": "no"}, "image_size_assumed is 'no'"),
        ({"format": "binwrn-jax model 2"}, "another format"),
        ({"format": ["binwrn-jax model 1"]}, "another format"),
        ({"class_names": ["\x1b[2J"]}, r"\\x1b"),
    ],
)
def test_metadata_that_makes_no_sense_is_refused_when_the_folder_is_opened(folder, tmp_path, change, message):
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    path.write_text(seal({**open_sealed(path.read_bytes()), **change}))
    with pytest.raises(UserError, match=message) as caught:
        Model.load(tmp_path / "m")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    # Nor is such a model made.
    if "format" not in change:
        with pytest.raises(UserError, match=message):
            Model.create(make_model().variables, {**FIELDS, **change})


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"{}", b'{"sha256": 3}', b'{"files": {}}']
)
def test_a_description_that_is_none_is_refused(folder, tmp_path, content):
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "model.json").write_bytes(content)
    with pytest.raises(UserError, match=r"^model .*m"):
        Model.load(tmp_path / "m")
    assert stored_step(tmp_path / "m") is None


def test_lists_of_files_that_lie(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    fields = open_sealed(path.read_bytes())
    for files in (
        None,
        [],
        {"variables": {"bytes": 1, "sha256": ""}},
        {"x": 3},
        {"../../x": {}},
        {"x": {"bytes": 1}},
    ):
        path.write_text(seal({**fields, "files": files}))
        with pytest.raises(UserError, match=r"^model .*m"):
            Model.load(tmp_path / "m")


def test_variables_of_another_network(folder, tmp_path):
    other = make_model(model={**FIELDS["model"], "width": 0.5})
    Model(other.network, make_model().variables, other.description).save(tmp_path / "m")
    with pytest.raises(UserError, match=r"its variables are not those of its network: .* is float32\["):
        Model.load(tmp_path / "m")


def test_a_folder_of_version_0_1_opens_with_a_line(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "m")
    fields = open_sealed((tmp_path / "m" / "model.json").read_bytes())
    del fields["files"]
    (tmp_path / "m" / "model.json").write_text(json.dumps(fields))
    assert_same(Model.load(tmp_path / "m"), make_model())
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'm'} has no proof of its files: an earlier version wrote it"
    ]


def test_a_file_without_permission_is_no_damage(folder, tmp_path, monkeypatch):
    real = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.name == "model.json":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    for read in (Model.load, stored_step):
        with pytest.raises(UserError, match=r"cannot be read \(Permission denied: .*model.json\)$") as caught:
            read(folder)
        assert not isinstance(caught.value, Damaged)


def test_reading_while_a_run_replaces_the_model_again_and_again(tmp_path):
    """Each read gives one whole model, the old or the new."""
    models = [make_model(seed) for seed in range(2)]
    kernels = [np.asarray(model.variables["params"]["conv0"]["kernel"]) for model in models]
    models[0].save(tmp_path / "m")
    stop = threading.Event()

    def write() -> None:
        index = 0
        while not stop.is_set():
            index += 1
            models[index % 2].save(tmp_path / "m")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            kernel = Model.load(tmp_path / "m").variables["params"]["conv0"]["kernel"]
            assert any(np.array_equal(kernel, whole) for whole in kernels)
    finally:
        stop.set()
        writer.join()
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_refused_or_changes_no_number(folder, tmp_path, count):
    copy = shutil.copytree(folder, tmp_path / "m")
    whole = Model.load(copy)
    refused = 0
    for path in flips(copy, count, seed=count):
        try:
            loaded = Model.load(copy)
        except UserError as error:
            assert path.name in str(error) or "model.json" in str(error)
            refused += 1
        else:
            assert_same(loaded, whole)
    assert refused > 0.99 * count
