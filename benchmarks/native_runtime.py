"""The native runtime against onnxruntime, OpenVINO, ncnn and torch with float weights, in one run.

python benchmarks/native_runtime.py model.packed --output result.json

Each engine lives in a process of its own; they take turns, one inference each per round, so that a noisy
machine disturbs all alike: ratios are of the same round. A rest between turns keeps threads that spin after
their work out of the next turn. Engines that are not installed are left out and said to be; --engine-python
names an interpreter that has them (pip install numpy onnxruntime openvino ncnn torch). All compute in
float32, which their logits are checked for, with the multiply-adds after a convolution folded into its
weights. ncnn has no batches: it gets one image at a time. Seconds are medians with quartiles, processor
time beside wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ENGINES = ("native", "onnxruntime", "openvino", "ncnn", "torch", "sgemm")
SGEMM = 1536
REST = 0.25  # seconds before each turn: threads of OpenMP and OpenBLAS go on spinning after their work


# --- the float network, made in the parent ------------------------------------------------------------------


def float_layers(packed: Any) -> list[dict[str, Any]]:
    """The operations; float weights ``[C_out, C_in, F_h, F_w]`` have the affine after them in them."""
    uses: dict[str, int] = {}
    for operation in packed.operations:
        for name in operation["in"]:
            uses[name] = uses.get(name, 0) + 1
    layers: list[dict[str, Any]] = []
    by_out: dict[str, dict[str, Any]] = {}
    for operation in packed.operations:
        layer = dict(operation)
        if layer["op"] == "conv":
            layer["weights"] = packed.signs(layer["tensor"]).transpose(3, 2, 0, 1)
            layer["bias"] = np.zeros(layer["channels"][1], np.float32)
            layer["relu"] = False
        if layer["op"] == "affine":
            scale, offset = packed.affines[layer["tensor"]]
            before = by_out.get(layer["in"][0])
            assert layer.get("min") in (None, 0)
            if before and before["op"] == "conv" and uses[before["out"]] == 1:
                before["weights"] = np.ascontiguousarray(before["weights"] * scale.reshape(-1, 1, 1, 1))
                before["bias"], before["relu"] = offset, layer.get("min") is not None
                before["out"] = layer["out"]
                by_out[layer["out"]] = before
                continue
            layer["scale"], layer["offset"], layer["relu"] = scale, offset, layer.get("min") is not None
        layers.append(layer)
        by_out[layer["out"]] = layer
    return layers


def write_onnx(layers: list[dict[str, Any]], shape: list[int], classes: int, path: Path) -> None:
    """Float ONNX: ``image``, float32 ``[N, C, H, W]``, to ``logits``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [], {}

    def constant(name: str, value: np.ndarray) -> str:
        constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    for layer in layers:
        op, inputs, out = layer["op"], list(layer["in"]), layer["out"]
        shown = out if not layer.get("relu") else out + ".linear"
        window = {}
        if "window" in layer:
            (top, bottom), (left, right) = layer["pads"]
            window = {
                "kernel_shape": layer["window"],
                "strides": layer["stride"],
                "pads": [top, left, bottom, right],
            }
        if op == "conv":
            inputs += [constant(out + ".w", layer["weights"]), constant(out + ".b", layer["bias"])]
            nodes.append(helper.make_node("Conv", inputs, [shown], **window))
        elif op == "affine":
            scale = constant(out + ".scale", layer["scale"].reshape(1, -1, 1, 1))
            offset = constant(out + ".offset", layer["offset"].reshape(1, -1, 1, 1))
            nodes.append(helper.make_node("Mul", [*inputs, scale], [out + ".scaled"]))
            nodes.append(helper.make_node("Add", [out + ".scaled", offset], [shown]))
        elif op == "average_pool":
            nodes.append(helper.make_node("AveragePool", inputs, [out], count_include_pad=0, **window))
        elif op == "max_pool":
            nodes.append(helper.make_node("MaxPool", inputs, [out], **window))
        elif op == "pad_channels":
            pads = constant(out + ".pads", np.int64([0, 0, 0, 0, 0, layer["added"], 0, 0]))
            nodes.append(helper.make_node("Pad", [*inputs, pads], [out]))
        elif op == "add":
            nodes.append(helper.make_node("Add", inputs, [out]))
        else:
            nodes.append(helper.make_node("GlobalAveragePool", inputs, ["mean"]))
            nodes.append(helper.make_node("Flatten", ["mean"], [out]))
        if layer.get("relu"):
            nodes.append(helper.make_node("Relu", [shown], [out]))
    height, width, channels = shape
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", channels, height, width])
    logits = helper.make_tensor_value_info(layers[-1]["out"], TensorProto.FLOAT, ["n", classes])
    graph = helper.make_graph(nodes, "float", [image], [logits], list(constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def write_ncnn(layers: list[dict[str, Any]], shape: list[int], folder: Path) -> None:
    """ncnn's text and weight file."""
    height, width, channels = shape
    uses: dict[str, int] = {}
    for layer in layers:
        for name in layer["in"]:
            uses[name] = uses.get(name, 0) + 1
    lines, blobs = [], 0
    taken: dict[str, int] = {}
    data = bytearray()

    def emit(kind: str, name: str, inputs: list[str], outputs: list[str], parameters: dict[int, Any]) -> None:
        nonlocal blobs
        blobs += len(outputs)
        values = " ".join(f"{key}={value}" for key, value in parameters.items())
        lines.append(
            f"{kind} {name} {len(inputs)} {len(outputs)} {' '.join([*inputs, *outputs])} {values}".rstrip()
        )
        if uses.get(name, 0) > 1:  # ncnn wants every value to have one reader
            copies = [f"{name}_{i}" for i in range(uses[name])]
            blobs += len(copies)
            lines.append(f"Split split_{name} 1 {len(copies)} {name} {' '.join(copies)}")

    def source(name: str) -> str:
        if uses[name] == 1:
            return name
        taken[name] = taken.get(name, -1) + 1
        return f"{name}_{taken[name]}"

    emit("Input", "image", [], ["image"], {0: width, 1: height, 2: channels})
    for layer in layers:
        op, inputs, out = layer["op"], [source(name) for name in layer["in"]], layer["out"]
        if "window" in layer:
            (kh, kw), (sh, sw), ((top, bottom), (left, right)) = (
                layer["window"],
                layer["stride"],
                layer["pads"],
            )
        if op == "conv":
            weights, bias = layer["weights"], layer["bias"]
            parameters = {0: weights.shape[0], 1: kw, 11: kh, 3: sw, 13: sh, 4: left, 15: right, 14: top}
            parameters |= {16: bottom, 5: 1, 6: weights.size, 9: int(layer["relu"])}
            emit("Convolution", out, inputs, [out], parameters)
            data.extend(b"\0\0\0\0" + np.float32(weights).tobytes() + np.float32(bias).tobytes())
        elif op == "affine":
            shown = out if not layer["relu"] else out + "_linear"
            emit("Scale", shown, inputs, [shown], {0: len(layer["scale"]), 1: 1})
            data.extend(layer["scale"].tobytes() + layer["offset"].tobytes())
            if layer["relu"]:
                emit("ReLU", out, [shown], [out], {})
        elif op in ("average_pool", "max_pool"):
            parameters = {0: int(op == "average_pool"), 1: kw, 11: kh, 2: sw, 12: sh, 3: left, 14: right}
            emit("Pooling", out, inputs, [out], parameters | {13: top, 15: bottom, 5: 1})
        elif op == "pad_channels":
            emit("Padding", out, inputs, [out], {4: 0, 5: "0.0", 8: layer["added"]})
        elif op == "add":
            emit("BinaryOp", out, inputs, [out], {0: 0})
        else:
            emit("Pooling", out, inputs, [out], {0: 1, 4: 1})
    folder.joinpath("net.param").write_text(f"7767517\n{len(lines)} {blobs}\n" + "\n".join(lines) + "\n")
    folder.joinpath("net.bin").write_bytes(bytes(data))


# --- one engine, in a process of its own --------------------------------------------------------------------


def open_engine(name: str, folder: Path, packed: str, threads: int) -> Any:
    """A function from uint8 images ``[N, H, W, C]`` to logits."""
    if name == "native":
        from binwrn_jax.deploy import native

        return native.load(packed, threads=threads).predict
    if name == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(
            folder / "float.onnx", options, providers=["CPUExecutionProvider"]
        )
        return lambda images: session.run(None, {"image": planes(images)})[0]
    if name == "openvino":
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = openvino.Core().compile_model(str(folder / "float.onnx"), "CPU", settings)
        request = compiled.create_infer_request()
        return lambda images: request.infer({0: planes(images)})[compiled.output(0)]
    if name == "ncnn":
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
    if name == "torch":
        import torch
        import torch.nn.functional as F

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
                op, x = layer["op"], values[layer["in"][0]]
                if "window" in layer:
                    (top, bottom), (left, right) = layer["pads"]
                    padding = (top, left) if (top, left) == (bottom, right) else 0
                    if padding == 0 and op == "conv":
                        x = F.pad(x, (left, right, top, bottom))
                if op == "conv":
                    y = F.conv2d(x, layer["weights"], layer["bias"], layer["stride"], padding)
                elif op == "affine":
                    y = x * layer["scale"].view(1, -1, 1, 1) + layer["offset"].view(1, -1, 1, 1)
                elif op == "average_pool":  # bottom and right only: ceil_mode does not count what is outside
                    assert (top, left) == (0, 0)
                    y = F.avg_pool2d(x, layer["window"], layer["stride"], ceil_mode=True)
                elif op == "pad_channels":
                    y = F.pad(x, (0, 0, 0, 0, 0, layer["added"]))
                elif op == "add":
                    y = x + values[layer["in"][1]]
                elif op == "global_average":
                    y = x.mean((2, 3))
                else:
                    raise ValueError(op)
                values[layer["out"]] = y.relu_() if layer.get("relu") else y
            return y.numpy()

        return run
    a = np.random.default_rng(0).normal(size=(SGEMM, SGEMM)).astype(np.float32)
    out = np.empty_like(a)
    return lambda images: np.matmul(a, a, out=out)


def planes(images: np.ndarray) -> np.ndarray:
    """uint8 ``[N, H, W, C]`` to float32 ``[N, C, H, W]``."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)


def worker(name: str, folder: Path, packed: str, threads: int) -> None:
    """Reads ``repeats batch`` lines, answers with the seconds of one inference each, as JSON."""
    images = np.load(folder / "images.npy")
    begin = time.perf_counter()
    predict = open_engine(name, folder, packed, threads)
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
        answer = {"wall": wall / repeats, "cpu": processor / repeats, "peak_mb": peak_mb()}
        print(json.dumps(answer), flush=True)


def peak_mb() -> float:
    """Peak resident memory of this process; getrusage would count the parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# --- the parent ---------------------------------------------------------------------------------------------


def start(name: str, arguments: argparse.Namespace, folder: Path, threads: int) -> Any:
    """A worker and its first line, or None and the reason."""
    python = sys.executable if name == "native" else arguments.engine_python
    limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(limits, str(threads)), "JAX_PLATFORMS": "cpu"}
    command = [python, __file__, str(arguments.model), "--worker", name, "--folder", str(folder)]
    process = subprocess.Popen(
        [*command, "--threads", str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    line = process.stdout.readline()
    if not line:
        return None, process.stderr.read().strip().splitlines()[-1:]
    return process, json.loads(line)


def spread(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(q) for q in np.percentile(values, [25, 50, 75])]


def program_memory(packed: Path) -> dict[str, Any]:
    """Peak resident memory and load time of the C program alone, on the golden image."""
    from binwrn_jax.deploy import native

    with tempfile.TemporaryDirectory() as folder:
        build = ["make", "-s", "-C", str(native.FOLDER), f"BUILD={folder}", f"{folder}/binwrn-run"]
        subprocess.run(build, check=True)
        results = []
        for _ in range(15):
            command = [f"{folder}/binwrn-run", str(packed), "golden"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            numbers = re.search(r"loaded in ([\d.]+) ms(?s:.*)peak memory ([\d.]+) MB", said)
            results.append((float(numbers[1]), float(numbers[2])))
    load = [r[0] for r in results]
    return {"peak_mb": max(r[1] for r in results), "load_ms": spread(load), "load_ms_least": min(load)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="packed file")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--engine-python", default=sys.executable, help="interpreter with the other engines")
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.folder, str(arguments.model), arguments.threads[0])
        return

    from binwrn_jax.deploy.packed import read_packed

    packed = read_packed(arguments.model)
    layers = float_layers(packed)
    shapes = packed.value_shapes
    for layer in layers:
        if layer["op"] == "pad_channels":
            layer["added"] = shapes[layer["out"]][2] - shapes[layer["in"][0]][2]
    shape, classes = packed.metadata["input"]["shape"], packed.metadata["num_classes"]
    macs = sum(
        shapes[op["out"]][0] * shapes[op["out"]][1] * op["channels"][1] * op["channels"][0]
        * op["window"][0] * op["window"][1]
        for op in packed.operations
        if op["op"] == "conv"
    )  # fmt: skip
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    report: dict[str, Any] = {
        "machine": f"{cpu}, {os.cpu_count()} processors, {platform.platform()}",
        "load_before": os.getloadavg(),
        "multiply_adds_per_image": macs,
        "native_program": program_memory(arguments.model),
        "results": [],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = np.random.default_rng(0).integers(0, 256, (max(arguments.batches) + 4, *shape), np.uint8)
        images[0] = packed.golden_image
        np.save(folder / "images.npy", images)
        write_onnx(layers, shape, classes, folder / "float.onnx")
        write_ncnn(layers, shape, folder)
        (folder / "layers.pickle").write_bytes(pickle.dumps(layers))
        report["file_bytes"] = {
            "packed": arguments.model.stat().st_size,
            "float_onnx": (folder / "float.onnx").stat().st_size,
            "ncnn": (folder / "net.bin").stat().st_size,
        }
        for threads in arguments.threads:
            processes, reference, errors = {}, None, {}
            for engine in arguments.engines:
                process, first = start(engine, arguments, folder, threads)
                if process is None:
                    print(f"{engine}: left out: {first}")
                    continue
                processes[engine] = process, first
                if engine == "native":
                    reference = np.array(first["logits"])
                elif first["logits"] and reference is not None:
                    error = np.abs(np.array(first["logits"]) - reference).max() / np.abs(reference).max()
                    # bfloat16 would differ by some 1e-2
                    assert error < 1e-5, f"{engine} computes something else: {error}"
                    errors[engine] = float(error)
            for batch in arguments.batches:
                samples: dict[str, list[dict[str, float]]] = {engine: [] for engine in processes}
                for _ in range(arguments.rounds if batch == 1 else max(5, arguments.rounds // 4)):
                    for engine, (process, _) in processes.items():
                        time.sleep(REST)
                        process.stdin.write(f"{3 if batch == 1 else 1} {batch}\n")
                        process.stdin.flush()
                        samples[engine].append(json.loads(process.stdout.readline()))
                print(f"\n{threads} threads, batch {batch}, load {os.getloadavg()[0]:.1f}")
                for engine, values in samples.items():
                    wall, used = ([value[key] for value in values] for key in ("wall", "cpu"))
                    rates = [w / n["wall"] for w, n in zip(wall, samples["native"], strict=True)]
                    cpu_rates = [w / n["cpu"] for w, n in zip(used, samples["native"], strict=True)]
                    work = 2 * SGEMM**3 if engine == "sgemm" else 2 * macs * batch
                    row = {
                        "engine": engine,
                        "threads": threads,
                        "batch": batch,
                        "wall_s": spread(wall),
                        "wall_s_least": min(wall),
                        "cpu_s": spread(used),
                        "cpu_s_least": min(used),
                        "effective_gflops": work / statistics.median(wall) / 1e9,
                        "effective_gflops_cpu_least": work / min(used) / 1e9,
                        "times_native_wall": spread(rates),
                        "times_native_cpu": spread(cpu_rates),
                        "logit_error": errors.get(engine),
                        "peak_mb": values[-1]["peak_mb"],
                        "first_answer_s": processes[engine][1]["first_answer_s"],
                        "load": os.getloadavg()[0],
                    }
                    report["results"].append(row)
                    low, middle, high = (1e3 * value for value in row["wall_s"])
                    print(
                        f"  {engine:12} wall {middle:8.1f} ms"
                        f" ({low:.1f}..{high:.1f}, least {1e3 * min(wall):.1f})"
                        f"  cpu {1e3 * row['cpu_s'][1]:8.1f} ms (least {1e3 * min(used):.1f})"
                        f"  {row['effective_gflops']:6.0f} GFLOP/s"
                        f"  x native: wall {row['times_native_wall'][1]:.2f}"
                        f" cpu {row['times_native_cpu'][1]:.2f}"
                        f"  peak {row['peak_mb']:.0f} MB  first answer {row['first_answer_s']:.2f} s"
                        + (f"  logits within {errors[engine]:.1e}" if engine in errors else ""),
                        flush=True,
                    )
            for process, _ in processes.values():
                process.stdin.close()
                process.wait()
    report["load_after"] = os.getloadavg()
    print(
        f"\nbinwrn-run alone: {report['native_program']}\nfiles: {report['file_bytes']}\n{report['machine']}"
    )
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
