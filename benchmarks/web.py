"""Latency in one browser: the WebAssembly runtime beside onnxruntime-web, in turn, one thread each.

    npm install --prefix FOLDER onnxruntime-web
    python benchmarks/web.py --packed model.safetensors --onnx model.onnx \\
        --ort FOLDER/node_modules/onnxruntime-web

Both files are of the same network (`binwrn export`). Prints the medians and the ratio, and how far the logits
are apart.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import browser
from common import machine

from binwrn_jax.deploy.packed import read_packed
from binwrn_jax.deploy.web import write_web

# Interleaved: whatever else the machine does happens to both.
SCRIPT = """
(async () => {
  const { load } = await import('/site/binwrn/binwrn.js');
  const ort = await import('/ort/ort.wasm.min.mjs');
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = '/ort/';
  const start = performance.now();
  const model = await load('/site/model.safetensors');
  const loaded = performance.now();
  const session = await ort.InferenceSession.create('/model.onnx', { executionProviders: ['wasm'] });
  const opened = performance.now();
  const size = model.shape.reduce((a, b) => a * b);
  const pixels = Uint8Array.from({ length: size }, (_, i) => (i * 7919) % 256);
  const input = { [session.inputNames[0]]: new ort.Tensor('uint8', pixels, [1, ...model.shape]) };
  const times = [[], []];
  let ours, theirs;
  for (let i = 0; i < RUNS + 3; i++) {
    const a = performance.now();
    ours = model.logits(pixels);
    const b = performance.now();
    theirs = (await session.run(input))[session.outputNames[0]].data;
    const c = performance.now();
    if (i >= 3) { times[0].push(b - a); times[1].push(c - b); }
  }
  const largest = Math.max(...theirs.map(Math.abs));
  const apart = Math.max(...theirs.map((x, i) => Math.abs(x - ours[i]))) / largest;
  const load_times = [loaded - start, opened - loaded];
  return JSON.stringify({ times, apart, load: load_times, kernel: model.kernel, agent: navigator.userAgent });
})()
"""


def median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--ort", type=Path, required=True, help="folder of the npm package onnxruntime-web")
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_web(read_packed(arguments.packed), folder / "site")
        shutil.copy(arguments.onnx, folder / "model.onnx")
        (folder / "ort").mkdir()
        for file in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
            shutil.copy(arguments.ort / "dist" / file, folder / "ort")
        with browser.serve(folder) as url, browser.chromium() as chromium:
            page = chromium.page()
            page.open(url + "site/binwrn/package.json")  # any page of this server
            page.wait("location.href.startsWith('http')")
            result = json.loads(page.run(SCRIPT.replace("RUNS", str(arguments.runs))))
    version = json.loads((arguments.ort / "package.json").read_text())["version"]
    ours, theirs = (median(times) for times in result["times"])
    print(f"{machine()}; {result['agent']}; onnxruntime-web {version}")
    print(f"binwrn, kernel {result['kernel']}: {ours:.1f} ms an image, loaded in {result['load'][0]:.0f} ms")
    print(
        f"onnxruntime-web, one thread, wasm: {theirs:.1f} ms an image, loaded in {result['load'][1]:.0f} ms"
    )
    print(f"{theirs / ours:.2f} x as fast, medians of {arguments.runs}")
    print(f"logits {result['apart']:.1e} of the largest apart")


if __name__ == "__main__":
    main()
