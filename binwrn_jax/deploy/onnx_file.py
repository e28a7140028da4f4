"""ONNX files whose weights stay bits, for onnxruntime, onnxruntime-web, OpenVINO and others.

The packed rows (docs/packed-format.md) are uint8 initialisers. Standard operators of opset 18 turn
them into +1 and -1; they depend on constants alone, so that a runtime computes them once, at load,
and from then on runs the same float graph as for any other network.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.data.arrays import check_images
from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.onnx_graph import OPSET, OnnxGraph
from binwrn_jax.deploy.packed import PackedModel, serialise
from binwrn_jax.errors import UserError, require
from binwrn_jax.evaluation import BATCH_SIZE
from binwrn_jax.system.files import replace_file

IR_VERSION = 8  # that came with opset 18; a newer one would shut out runtimes for nothing
TOLERANCE = 1e-3  # of the golden logits, relative to the largest; runtimes differ by about 1e-6
DOC_STRING = (
    "Network with one bit per weight (McDonnell, ICLR 2018). The uint8 "
    "initialisers *.bits hold 8 weights per byte, least significant bit first; the graph unpacks them "
    "into +1 and -1. Input: raw pixels, NHWC, 0..255."
)


def _build(onnx: Any, packed: PackedModel) -> Any:
    """The ONNX model of a packed network."""
    helper, types = onnx.helper, onnx.TensorProto
    graph = OnnxGraph(onnx, packed)
    graph.build()
    metadata = packed.metadata
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "binwrn",
            [helper.make_tensor_value_info("images", types.UINT8, ["batch", *metadata["input"]["shape"]])],
            [helper.make_tensor_value_info("logits", types.FLOAT, ["batch", metadata["num_classes"]])],
            list(graph.initializers.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="binwrn-jax",
        doc_string=DOC_STRING,
    )
    golden = {
        "image": base64.b64encode(packed.golden_image.tobytes()).decode(),
        "logits": packed.golden_logits.tolist(),
    }
    properties = {"binwrn": metadata, "golden": golden, "class_names": metadata["class_names"]}
    properties = {key: json.dumps(value) for key, value in properties.items()}
    helper.set_model_props(model, {**properties, "license": metadata.get("license") or ""})
    return model


def write_onnx(packed: PackedModel, path: str | Path) -> None:
    """Writes a packed network as ONNX, atomically.

    The graph takes ``images``, uint8 ``[batch, H, W, C]`` with values 0..255 as for every other
    reader, and gives ``logits``, float32 ``[batch, num_classes]``; the batch is dynamic. Its
    ``metadata_props`` hold, as JSON, the packed file's metadata (``binwrn``), its golden image in
    base64 with the logits (``golden``) and the ``class_names``; and the ``license``.

    Raises:
      UserError: the package onnx is not installed, or the path cannot be written.
    """
    onnx = require("onnx", "writing ONNX files")
    model = _build(onnx, packed)
    onnx.checker.check_model(model, full_check=True)
    try:
        replace_file(Path(path), model.SerializeToString())
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from error


class OnnxPredictor:
    """A network in an ONNX file, run by onnxruntime on the CPU.

    Attributes:
      description: the metadata of the file, with ``image_shape``.
    """

    def __init__(self, session: Any, description: dict[str, Any]) -> None:
        self._session = session
        self.description = description

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits, float32 ``[N, num_classes]``, of uint8 images ``[N, H, W, C]``, any N."""
        images = check_images(images, self.description["image_shape"])
        parts = [
            self._session.run(["logits"], {"images": images[start : start + BATCH_SIZE]})[0]
            for start in range(0, len(images), BATCH_SIZE)
        ]
        return np.concatenate([np.zeros((0, self.description["num_classes"]), np.float32), *parts])


def open_onnx(path: str | Path) -> OnnxPredictor:
    """Opens a file of `write_onnx` with onnxruntime, and runs its golden image.

    The golden image shows that this runtime computes the network, and finds coarse damage; `read_onnx`
    finds each wrong bit. Neither protects from a stranger: an ONNX file is a program.

    Raises:
      UserError: the package onnxruntime is not installed; no such file; not an ONNX file of this
        project; damaged.
    """
    onnxruntime = require("onnxruntime", "running ONNX files")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said once, below
    # From bytes, so that a file cannot make the runtime read others beside it.
    content = _read(path)
    try:
        # Without the fallback: it would print, and try the same once more.
        session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        metadata, image, logits = _metadata(session.get_modelmeta().custom_metadata_map, path)
        shape = metadata["input"]["shape"]
        for what, put, wanted in (
            ("input", session.get_inputs(), ("images", "tensor(uint8)", ["batch", *shape])),
            ("output", session.get_outputs(), ("logits", "tensor(float)", ["batch", len(logits)])),
        ):
            if [(value.name, value.type, value.shape) for value in put] != [wanted]:
                raise UserError(f"{path}: the {what} is not {wanted}, as its metadata say: export it again")
        description = {**metadata, "image_shape": shape, "dataset": metadata.get("dataset")}
        predictor = OnnxPredictor(session, description)
        difference = np.abs(predictor(image[None])[0] - logits).max()
    except UserError:
        raise
    except Exception as error:  # onnxruntime's own classes are no part of its interface
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} is no ONNX file that onnxruntime runs ({reason}): export it again"
        ) from error
    if not difference <= TOLERANCE * max(1.0, np.abs(logits).max()):
        raise UserError(
            f"{path} is damaged (the logits of its golden image are off by {difference:.3g}): export it again"
        )
    return predictor


def read_onnx(path: str | Path) -> PackedModel:
    """The packed network that an ONNX file of `write_onnx` was made from, bit for bit.

    Raises:
      UserError: the package onnx is not installed; no such file; not an ONNX file of this project;
        damaged.
    """
    onnx = require("onnx", "reading the layers of an ONNX file")
    content = _read(path)
    try:
        model = onnx.load_model_from_string(content)
        properties = {item.key: item.value for item in model.metadata_props}
    except Exception as error:  # of protobuf, which is no dependency of ours
        raise UserError(f"{path} is no ONNX file ({type(error).__name__}): export it again") from error
    metadata, image, logits = _metadata(properties, path)
    bits, affines, kernels = {}, {}, {}
    try:
        tensors = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
        for operation in metadata["operations"]:
            if operation.get("weights") == "float32":
                kernel = tensors[operation["tensor"] + ".kernel"]
                kernels[operation["tensor"]] = np.ascontiguousarray(kernel.transpose(0, 2, 3, 1))
            elif operation["op"] == "conv":
                bits[operation["tensor"]] = tensors[operation["tensor"] + ".bits"]
            elif operation["op"] == "affine":
                affines[operation["tensor"]] = tuple(
                    tensors[f"{operation['tensor']}.{part}"].ravel() for part in ("scale", "offset")
                )
        packed = PackedModel(metadata, bits, affines, image, logits, kernels=kernels)
        serialise(packed)  # checks everything: sizes, the checksum of the bits
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(path, error) from error
    return packed


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error


def _unusable(path: str | Path, error: Exception) -> UserError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return UserError(f"{path} does not hold what `binwrn export` writes ({reason}): export it again")


def _metadata(properties: dict[str, str], path: str | Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The packed file's metadata, golden image and golden logits of an ONNX file's metadata_props."""
    if "binwrn" not in properties:
        raise UserError(
            f"{path} is an ONNX file of another program: `binwrn export` makes those that open here"
        )
    try:
        metadata = numpy_reader.parse_json(properties["binwrn"], "the metadata 'binwrn'")
        numpy_reader.check_description(metadata)
        golden = json.loads(properties["golden"])
        if metadata["format"] != numpy_reader.FORMAT:
            raise ValueError(f"format {metadata['format']!r}")
        numpy_reader.check_version(metadata)
        image = np.frombuffer(base64.b64decode(golden["image"], validate=True), np.uint8)
        image = image.reshape(metadata["input"]["shape"])
        logits = np.array(golden["logits"], np.float32).reshape(metadata["num_classes"])
        if image.ndim != 3 or logits.ndim != 1 or not np.isfinite(logits).all():
            raise ValueError("golden image and logits")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unusable(path, error) from error
    return metadata, image, logits
