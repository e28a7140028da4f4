"""The engines that native_runtime.py compares, each opened in a process of its own.

Their interpreter may be one that has numpy and the engine only: binwrn_jax is imported for `native` alone.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import process_mb

SGEMM = 1536

Predict = Callable[[np.ndarray], np.ndarray]  # uint8 images [N, H, W, C] to logits


def planes(images: np.ndarray) -> np.ndarray:
    """uint8 ``[N, H, W, C]`` to float32 ``[N, C, H, W]``."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)


def open_native(folder: Path, packed: str, threads: int) -> Predict:
    from binwrn_jax.deploy import native

    return native.load(packed, threads=threads).predict


def open_onnxruntime(folder: Path, packed: str, threads: int) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(folder / "float.onnx", options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": planes(images)})[0]


def open_openvino(folder: Path, packed: str, threads: int) -> Predict:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(str(folder / "float.onnx"), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda images: request.infer({0: planes(images)})[compiled.output(0)]


def open_ncnn(folder: Path, packed: str, threads: int) -> Predict:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_winograd_convolution = True
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    assert net.load_param(str(folder / "net.param")) == 0
    assert net.load_model(str(folder / "net.bin")) == 0

    def one(image: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        mat = ncnn.Mat(image).clone()  # a Mat of an array alone does not keep it
        extractor.input("image", mat)
        return np.array(extractor.extract("logits")[1]).ravel()

    return lambda images: np.stack([one(image) for image in planes(images)])


def open_torch(folder: Path, packed: str, threads: int) -> Predict:
    import torch

    torch.set_num_threads(threads)
    layers = pickle.loads((folder / "layers.pickle").read_bytes())
    for layer in layers:
        for key in ("weights", "bias", "scale", "offset"):
            if key in layer:
                layer[key] = torch.from_numpy(np.ascontiguousarray(layer[key]))
        if "weights" in layer:
            layer["weights"] = layer["weights"].contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        values = {"image": torch.from_numpy(planes(images)).contiguous(memory_format=torch.channels_last)}
        for layer in layers:
            y = torch_layer(layer, [values[name] for name in layer["in"]])
            values[layer["out"]] = y.relu_() if layer.get("relu") else y
        return y.numpy()

    return run


def torch_layer(layer: dict[str, Any], inputs: list[Any]) -> Any:
    """The result of one operation, before its ReLU."""
    import torch.nn.functional as F

    op, x = layer["op"], inputs[0]
    if "window" in layer:
        (top, bottom), (left, right) = layer["pads"]
        padding = (top, left) if (top, left) == (bottom, right) else 0
        if padding == 0 and op == "conv":
            x = F.pad(x, (left, right, top, bottom))
    if op == "conv":
        return F.conv2d(x, layer["weights"], layer["bias"], layer["stride"], padding)
    if op == "affine":
        return x * layer["scale"].view(1, -1, 1, 1) + layer["offset"].view(1, -1, 1, 1)
    if op == "average_pool":  # bottom and right only: ceil_mode does not count what is outside
        assert (top, left) == (0, 0)
        return F.avg_pool2d(x, layer["window"], layer["stride"], ceil_mode=True)
    if op == "pad_channels":
        return F.pad(x, (0, 0, 0, 0, 0, layer["added"]))
    if op == "add":
        return x + inputs[1]
    if op == "global_average":
        return x.mean((2, 3))
    raise ValueError(op)


def open_sgemm(folder: Path, packed: str, threads: int) -> Predict:
    """No network: a large float32 matrix product in NumPy, whatever the images."""
    a = np.random.default_rng(0).normal(size=(SGEMM, SGEMM)).astype(np.float32)
    out = np.empty_like(a)
    return lambda images: np.matmul(a, a, out=out)


# Each takes the folder that native_runtime.py has filled, the packed file and the number of threads.
ENGINES: dict[str, Callable[[Path, str, int], Predict]] = {
    "native": open_native,
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "ncnn": open_ncnn,
    "torch": open_torch,
    "sgemm": open_sgemm,
}


def worker(name: str, folder: Path, packed: str, threads: int) -> None:
    """Reads ``repeats batch`` lines, answers with the seconds of one inference each, as JSON."""
    images = np.load(folder / "images.npy")
    begin = time.perf_counter()
    predict = ENGINES[name](folder, packed, threads)
    logits = predict(images[:1])
    loaded = time.perf_counter() - begin
    logits = np.concatenate([predict(images[i : i + 1]) for i in range(4)])
    print(
        json.dumps({"first_answer_s": loaded, "logits": logits.tolist() if name != "sgemm" else []}),
        flush=True,
    )
    for line in sys.stdin:
        repeats, batch = map(int, line.split())
        batch_images = images[:batch]
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            predict(batch_images)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        answer = {"wall": wall / repeats, "cpu": processor / repeats, "peak_mb": process_mb()}
        print(json.dumps(answer), flush=True)
