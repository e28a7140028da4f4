"""The packed model file: one bit per convolution weight, everything else folded (docs/packed-format.md).

packed = pack(variables, description, golden_image)      # of a trained network
write_packed(packed, Path("model.safetensors"))
model = load_packed("model.safetensors")
logits = model.predict(images)
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.folding import Operation, fold, layout_of, same_structure, unfold
from binwrn_jax.deploy.predictor import LayerRow, in_batches
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import BATCH_SIZE, Predictor
from binwrn_jax.nn.operations import convolution
from binwrn_jax.nn.registry import create_network
from binwrn_jax.nn.rules import he_scale
from binwrn_jax.system.files import replace_file


@dataclasses.dataclass(frozen=True)
class PackedModel:
    """What a packed file holds; the exporters translate it, the readers run it.

    Attributes:
      metadata: the JSON object ``binwrn`` of docs/packed-format.md, with ``operations``.
      bits: ``{'conv{i}': uint8 [C_out, ceil(K / 8)]}``, in order of the operations.
      affines: ``{'affine{j}': (scale, offset)}``, both float32 ``[C]``, in order of the operations.
      golden_image: uint8 ``[H, W, C]``.
      golden_logits: float32 ``[classes]``, what `numpy_reader` computes of the image.
    """

    metadata: dict[str, Any]
    bits: dict[str, np.ndarray]
    affines: dict[str, tuple[np.ndarray, np.ndarray]]
    golden_image: np.ndarray
    golden_logits: np.ndarray

    @property
    def operations(self) -> list[dict[str, Any]]:
        """The network, in order; each has ``op``, ``in``, ``out`` and the fields of its kind."""
        return self.metadata["operations"]

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays by their names in the file: float32 first, so that all of them lie aligned."""
        result = {}
        for name, (scale, offset) in self.affines.items():
            result[name + ".scale"], result[name + ".offset"] = scale, offset
        return {**result, "golden.logits": self.golden_logits, "golden.image": self.golden_image, **self.bits}

    @property
    def value_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each value that the operations name: ``(H, W, C)``, for the logits ``(classes,)``."""
        shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()}
        return numpy_reader.value_shapes(self.metadata, shapes)

    @property
    def ideal_bytes(self) -> int:
        """The convolution weights at one bit each, in bytes, rounded up."""
        convs = (op for op in self.operations if op["op"] == "conv")
        return -(-sum(math.prod(op["window"]) * math.prod(op["channels"]) for op in convs) // 8)

    @property
    def description(self) -> dict[str, Any]:
        """What ``model.json`` has for a model folder, as far as the file knows it, and ``input``."""
        rest = {key: value for key, value in self.metadata.items() if key not in ("operations", "network")}
        return {
            **rest,
            "model": self.metadata.get("network"),
            "image_shape": self.metadata["input"]["shape"],
            "dataset": self.metadata.get("dataset"),
        }

    def signs(self, name: str) -> np.ndarray:
        """Weights of the convolution ``name``: float32 ``[F_h, F_w, C_in, C_out]`` of -1 and +1."""
        operation = next(op for op in self.operations if op.get("tensor") == name)
        return numpy_reader.signs(self.bits[name], operation["window"], operation["channels"])


def pack_signs(kernel: np.ndarray) -> np.ndarray:
    """The bits of a latent kernel: 1 where ``w >= 0`` (also -0.0), 0 where ``w < 0``.

    Args:
      kernel: ``[F_h, F_w, C_in, C_out]``, real numbers.

    Returns:
      uint8 ``[C_out, ceil(F_h F_w C_in / 8)]`` in the bit order of docs/packed-format.md.

    Raises:
      UserError: a weight is NaN and has no sign.

    >>> pack_signs(np.array([0.5, -0.5, 0.0]).reshape(1, 1, 3, 1)).tolist()
    [[5]]
    """
    kernel = np.asarray(kernel)
    if np.isnan(kernel).any():
        raise UserError("a convolution has NaN weights: the training diverged, there is nothing to pack")
    rows = np.moveaxis(kernel, 3, 0).reshape(kernel.shape[3], -1)
    return np.packbits(rows >= 0, axis=1, bitorder="little")


def pack(
    variables: dict[str, Any],
    description: dict[str, Any],
    golden_image: np.ndarray,
    license: str | None = None,
) -> PackedModel:
    """A trained network as bits and multiply-adds.

    Args:
      variables: ``params`` and ``batch_stats``, as `binwrn_jax.load_model` gives them.
      description: the fields of ``model.json``; ``model``, ``num_classes`` and ``image_shape`` at least.
      golden_image: uint8 ``[H, W, C]``, a real image if there is one; its logits are computed here.
      license: of the weights; the description's own where None.

    Raises:
      UserError: 32-bit weights, NaN weights, moments or scales that are not finite.
    """
    shape, classes = tuple(description["image_shape"]), description["num_classes"]
    layout = layout_of(create_network(description["model"], classes), shape)
    operations, affines = fold(layout, variables)
    bits = {
        op["tensor"]: pack_signs(variables["params"][op["tensor"]]["kernel"])
        for op in operations
        if op["op"] == "conv"
    }
    metadata = {
        "format": numpy_reader.FORMAT,
        "version": numpy_reader.VERSION,
        "operations": operations,
        "input": {
            "shape": list(shape),
            "dtype": "uint8",
            "range": [0, 255],
            "channels": {1: "grey", 3: "RGB"}.get(shape[2], "other"),
            "resize": (description.get("input") or {}).get("resize", "bilinear"),
        },
        "num_classes": classes,
        "class_names": list(description.get("class_names") or []),
        "dataset": description.get("dataset"),
        "network": description["model"],
        "test": description.get("test"),
        "config_sha256": description.get("config_sha256"),
        "license": license or description.get("license"),
        "source": description.get("source"),
    }
    metadata["sha256"] = numpy_reader.checksum(metadata, bits)
    packed = PackedModel(metadata, bits, affines, golden_image, np.zeros(classes, np.float32))
    _check(packed)
    logits = numpy_reader.Model(metadata, packed.tensors)(golden_image[None])[0]
    return dataclasses.replace(packed, golden_logits=logits)


def _check(packed: PackedModel) -> None:
    try:
        packed.value_shapes  # noqa: B018  (it checks)
        numpy_reader.check_tensors(packed.metadata, packed.tensors)
    except numpy_reader.PackedFileError as error:
        raise UserError(f"this network cannot be packed: {error}") from error


def serialise(packed: PackedModel) -> bytes:
    """The bytes of the packed file; the same model gives the same bytes.

    Raises:
      UserError: the model breaks a rule of the format.
    """
    _check(packed)
    tensors = packed.tensors
    compact = {"separators": (",", ":"), "allow_nan": False}
    header: dict[str, Any] = {"__metadata__": {"binwrn": json.dumps(packed.metadata, **compact)}}
    position = 0
    for name, tensor in tensors.items():
        code = next(code for code, dtype in numpy_reader.DTYPES.items() if dtype == tensor.dtype)
        offsets = [position, position + tensor.nbytes]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    text = json.dumps(header, **compact).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(tensor.tobytes() for tensor in tensors.values())


def write_packed(packed: PackedModel, path: Path) -> None:
    """Writes the file; a reader sees an older one or all of the new one.

    Raises:
      UserError: the model breaks a rule of the format, or the path cannot be written.
    """
    content = serialise(packed)
    try:
        replace_file(Path(path), content)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from error


def read_packed(path: str | Path) -> PackedModel:
    """Reads and checks a packed file.

    Raises:
      UserError: not there, no packed model, of another version, damaged or hostile.
    """
    try:
        metadata, tensors = numpy_reader.read(path)
    except numpy_reader.PackedFileError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    names = [(op["op"], op["tensor"]) for op in metadata["operations"] if "tensor" in op]
    return PackedModel(
        metadata=metadata,
        bits={name: tensors[name] for op, name in names if op == "conv"},
        affines={
            name: (tensors[name + ".scale"], tensors[name + ".offset"])
            for op, name in names
            if op == "affine"
        },
        golden_image=tensors["golden.image"],
        golden_logits=tensors["golden.logits"],
    )


# --- running it with JAX ------------------------------------------------------------------------------------


def _unpack(weight: jax.Array, operation: Operation) -> jax.Array:
    """Bits uint8 ``[C_out, ceil(K / 8)]`` to float32 ``[F_h, F_w, C_in, C_out]``, inside a program."""
    window, (c_in, c_out) = operation["window"], operation["channels"]
    rows = jnp.unpackbits(weight, axis=1, count=math.prod(window) * c_in, bitorder="little")
    kernel = rows.reshape(c_out, *window, c_in).transpose(1, 2, 3, 0)
    return jnp.where(kernel, jnp.float32(1), jnp.float32(-1))


def _apply(operation: Operation, inputs: list[jax.Array], weights: dict[str, jax.Array]) -> jax.Array:
    op, x = operation["op"], inputs[0]
    tensor = operation.get("tensor")
    if op == "affine":
        scale, offset = (weights[f"{tensor}.{part}"].reshape(1, 1, 1, -1) for part in ("scale", "offset"))
        low = operation.get("min")
        y = x * scale + offset
        return y if low is None else jnp.maximum(y, jnp.float32(low))
    if op == "conv":
        kernel = weights[tensor]
        if kernel.dtype == jnp.uint8:
            # Not before x is there: XLA would unpack all layers first and hold them until they are used. It
            # drops an optimization_barrier on the CPU, and cannot know that activations are finite.
            kernel = kernel ^ jnp.isnan(x[:1, 0, 0, 0]).any().astype(jnp.uint8)
            kernel = _unpack(kernel, operation)
        (stride_y, stride_x), (vertical, horizontal) = operation["stride"], operation["pads"]
        return convolution(x, kernel, (stride_y, stride_x), (tuple(vertical), tuple(horizontal)))
    if op in ("average_pool", "max_pool"):
        window, stride = tuple(operation["window"]), tuple(operation["stride"])
        pads = [tuple(pad) for pad in operation["pads"]]
        if op == "max_pool":
            return nn.max_pool(x, window, stride, pads)
        # Flax counts the pixels in JAX's default float, which JAX_ENABLE_X64 makes float64.
        return nn.avg_pool(x, window, stride, pads, count_include_pad=False).astype(x.dtype)
    if op == "pad_channels":
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, operation["channels"] - x.shape[3])))
    if op == "add":
        return x + inputs[1]
    return x.mean((1, 2))


class LoadedModel:
    """A packed model on the device, see `load_packed`.

    Attributes:
      packed: what the file holds.
      description: the fields of ``model.json`` that the file knows.
      weights: the arrays on the device by name: kernels, or their bits, and multiply-adds.
    """

    def __init__(self, packed: PackedModel, keep_packed: bool = False) -> None:
        self.packed = packed
        self.description = packed.description
        self.weights: dict[str, jax.Array] = {
            name: jnp.asarray(tensor if name not in packed.bits or keep_packed else packed.signs(name))
            for name, tensor in packed.tensors.items()
            if not name.startswith("golden.")
        }
        self._run = jax.jit(self.apply)

    def apply(self, weights: dict[str, jax.Array], images: jax.Array, train: bool = False) -> jax.Array:
        """The pure function behind `predict`, called as a Flax model's ``apply`` is.

        Args:
          weights: as the attribute.
          images: ``[N, H, W, C]``.
          train: must be False.
        """
        if train:
            raise ValueError("a packed model has nothing to train: use .model and .variables")
        if images.ndim != 4 or list(images.shape[1:]) != self.description["image_shape"]:
            size = " x ".join(map(str, self.description["image_shape"]))
            raise UserError(f"images of shape {images.shape}, but the model takes N x {size}")
        values = {"image": jnp.asarray(images, jnp.float32)}
        for operation in self.packed.operations:
            inputs = [values[name] for name in operation["in"]]
            values[operation["out"]] = _apply(operation, inputs, weights)
        return values[self.packed.operations[-1]["out"]]

    def predict(self, images: jax.typing.ArrayLike) -> jax.Array:
        """Logits float32 ``[N, classes]`` of images ``[N, H, W, C]``, uint8 or floats in 0..255.

        Jitted: compiled once for each N.
        """
        return self._run(self.weights, jnp.asarray(images))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `binwrn_jax.evaluation.Predictor`."""
        return in_batches(self.predict, images, self.description["num_classes"], BATCH_SIZE)

    @property
    def model(self) -> nn.Module:
        """The Flax network in float32.

        Raises:
          UserError: the file does not say, or its operations are of no network of this package.
        """
        return self._layout().model

    @property
    def variables(self) -> dict[str, Any]:
        """``params`` and ``batch_stats`` for `model` that give the same logits, see `unfold`."""
        return unfold(self._layout(), self.packed.affines, self.packed.signs)

    def _layout(self) -> Any:
        try:
            fields = {**self.description["model"], "dtype": "float32"}
            shape = tuple(self.description["image_shape"])
            layout = layout_of(create_network(fields, self.description["num_classes"]), shape)
            known = same_structure(layout, self.packed.operations)
        except Exception as error:  # whatever the file has in the place of the fields
            raise UserError(f"the packed model names no network of this package ({error})") from error
        if not known:
            raise UserError("the packed model's operations are not those of the network that it names")
        return layout


def load_packed(path: str | Path, keep_packed: bool = False) -> LoadedModel:
    """Reads a packed model for use with JAX.

    Args:
      path: of the file.
      keep_packed: keep one bit per weight in the device's memory too and unpack inside the program,
        anew at each call: 32 times less memory for the weights, and slower (docs/results/packed.md).

    Raises:
      UserError: see `read_packed`.
    """
    return LoadedModel(read_packed(path), keep_packed)


def open_packed(path: str | Path) -> Predictor:
    """A packed file as a `Predictor` that runs on JAX; raises as `load_packed` does."""
    return load_packed(path)


class NumpyPredictor:
    """A packed file as a `Predictor` that runs on NumPy."""

    def __init__(self, packed: PackedModel) -> None:
        self._model = numpy_reader.Model(packed.metadata, packed.tensors)
        self.description = packed.description

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `binwrn_jax.evaluation.Predictor`."""
        return self._model(images)


def open_numpy(path: str | Path) -> Predictor:
    """A packed file run by the executable definition of the format; raises as `read_packed` does."""
    return NumpyPredictor(read_packed(path))


def layers(path: str | Path) -> list[LayerRow]:
    """The convolutions of a packed file in order of use, for ``binwrn inspect``.

    Raises:
      UserError: see `read_packed`.
    """
    return layers_of(read_packed(path))


def layers_of(packed: PackedModel) -> list[LayerRow]:
    """The convolutions of a packed model in order of use."""
    network = packed.metadata.get("network") or {}
    rows = []
    for operation in packed.operations:
        if operation["op"] == "conv":
            signs = packed.signs(operation["tensor"])
            one_scale = network.get("weights") == "1bit"
            rows.append(
                LayerRow(
                    name=operation["tensor"],
                    shape=signs.shape,
                    scale=he_scale(signs.shape, plain=bool(network.get("plain"))) if one_scale else None,
                    plus_share=float((signs > 0).mean()),
                    values=len(np.unique(signs)),
                    bits=signs.size,
                    bytes=-(-signs.size // 8),
                )
            )
    return rows
