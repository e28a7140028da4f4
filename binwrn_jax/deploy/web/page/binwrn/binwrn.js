// Packed models with one bit per weight, in browsers and in Node:
//
//     import { load, readImage, fit } from "./binwrn.js";
//     const model = await load("model.safetensors");
//     const image = fit(await readImage(file, model.shape[2]), model.shape, model.resize);
//     const { classes, logits, milliseconds } = model.predict(image);
//
// The network runs in WebAssembly (binwrn.wasm.gz beside this file) on the caller's thread: call it from a worker.

export { fit, readImage, UnreadableImage } from "./images.js";

/** A file that is no packed model, is damaged, or cannot be fetched. */
export class ModelError extends Error {
  name = "ModelError";
}

const modules = new Map(); // compiled, by address: a second model costs no second compilation

/** Loads a packed model.
 *
 * @param source the address of the file (a path, in Node), or its bytes.
 * @param options.wasm address or bytes of binwrn.wasm.gz; the file beside this one by default.
 * @param options.kernel name of the kernel; the fastest by default.
 * @param options.progress called with the bytes received so far, and all (0: unknown).
 */
export async function load(source, { wasm = new URL("binwrn.wasm.gz", import.meta.url), kernel, progress } = {}) {
  const [compiled, file] = await Promise.all([compile(wasm), read(source, progress)]);
  const instance = (await WebAssembly.instantiate(compiled.module, {})).exports;
  instance._initialize?.();
  return new Model(instance, file, kernel, compiled.bytes);
}

/** A network that is ready to run; `load` makes it. */
export class Model {
  #wasm;
  #model;
  #names;
  #temperature;

  constructor(wasm, file, kernel, wasmBytes) {
    this.#wasm = wasm;
    this.#model = withBytes(wasm, file, (data) =>
      kernel
        ? withBytes(wasm, new TextEncoder().encode(kernel + "\0"), (name) => wasm.load(data, file.length, name))
        : wasm.load(data, file.length, 0),
    );
    if (!this.#model) throw new ModelError(text(wasm, wasm.message(), wasm.message_length()));
    const header = headerOf(file);
    const { operations, ...description } = JSON.parse(header.__metadata__.binwrn);
    /** What the file says of itself: dataset, test error, license ... */
    this.description = description;
    /** [height, width, channels] of an image. */
    this.shape = [wasm.height(this.#model), wasm.width(this.#model), wasm.channels(this.#model)];
    /** The rule by which images of another size are resized; see `fit`. */
    this.resize = description.input.resize ?? "bilinear";
    this.#names = description.class_names?.length
      ? description.class_names
      : Array.from({ length: wasm.classes(this.#model) }, (_, i) => String(i));
    this.#temperature = description.temperature ?? 1;
    /** Bytes of the file and of the program. */
    this.bytes = { model: file.length, wasm: wasmBytes };
    /** Weights of one bit, and the bytes that they take in the file. */
    this.weights = countWeights(header, operations);
    this.multiplyAdds = wasm.multiply_adds(this.#model);
    this.kernel = text(wasm, wasm.kernel(this.#model));
  }

  get classNames() {
    return [...this.#names];
  }

  /** Logits of N images, one after another.
   *
   * @param pixels Uint8Array [N, height, width, channels], 0..255.
   * @returns Float32Array [N, classes].
   */
  logits(pixels) {
    const wasm = this.#wasm;
    if (!this.#model) throw new Error("the model has been freed");
    const size = this.shape.reduce((a, b) => a * b);
    if (!(pixels instanceof Uint8Array || pixels instanceof Uint8ClampedArray) || pixels.length % size)
      throw new TypeError(`pixels are to be a Uint8Array of ${this.shape.join(" x ")} for each image`);
    const count = pixels.length / size;
    const room = 4 * count * this.#names.length;
    return withBytes(wasm, pixels, (images) =>
      withBytes(wasm, new Uint8Array(room), (out) => {
        if (wasm.run(this.#model, images, count, out))
          throw new RangeError(text(wasm, wasm.message(), wasm.message_length()));
        return new Float32Array(wasm.memory.buffer.slice(out, out + room));
      }),
    );
  }

  /** What is on one image.
   *
   * @param image its pixels, Uint8Array [height, width, channels], or what `fit` gives.
   * @returns classes: name, index and probability of each, most likely first; logits; milliseconds.
   */
  predict(image) {
    const start = performance.now();
    const logits = this.logits(image.data ?? image);
    const milliseconds = performance.now() - start;
    if (logits.length !== this.#names.length) throw new TypeError("predict takes one image");
    const largest = Math.max(...logits);
    const powers = Array.from(logits, (x) => Math.exp((x - largest) / this.#temperature));
    const sum = powers.reduce((a, b) => a + b);
    const classes = powers.map((power, index) => ({ name: this.#names[index], index, probability: power / sum }));
    classes.sort((a, b) => b.probability - a.probability || a.index - b.index);
    return { classes, logits, milliseconds };
  }

  /** Gives the memory back; the model cannot be used any more. */
  free() {
    if (this.#model) this.#wasm.free_model(this.#model);
    this.#model = 0;
  }
}

async function compile(source) {
  const key = source instanceof URL || typeof source === "string" ? String(source) : null;
  const known = key && modules.get(key);
  if (known) return known;
  const compiled = read(source).then(async (bytes) => {
    const packed = bytes[0] === 0x1f; // a host may have unpacked it
    const body = new Response(packed ? new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")) : bytes);
    return { module: await WebAssembly.compile(await body.arrayBuffer()), bytes: bytes.length };
  });
  if (key) {
    modules.set(key, compiled);
    compiled.catch(() => modules.delete(key));
  }
  return compiled;
}

/** The bytes of an address, or of what holds bytes already. */
async function read(source, progress) {
  if (source instanceof Uint8Array) return source;
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  if (source instanceof Blob) return new Uint8Array(await source.arrayBuffer());
  const inNode = typeof process === "object" && process.versions?.node;
  if (inNode && !/^https?:|^data:|^blob:/.test(source)) {
    const { readFile } = await import("node:fs/promises");
    const path = String(source).startsWith("file:") ? new URL(source) : source;
    return new Uint8Array(await readFile(path));
  }
  const response = await fetch(source);
  if (!response.ok) throw new ModelError(`${source} cannot be fetched: ${response.status} ${response.statusText}`);
  const total = Number(response.headers.get("content-length")) || 0;
  if (!progress || !response.body) return new Uint8Array(await response.arrayBuffer());
  const pieces = [];
  let received = 0;
  for (let reader = response.body.getReader(), piece; !(piece = await reader.read()).done; ) {
    pieces.push(piece.value);
    progress((received += piece.value.length), total);
  }
  const all = new Uint8Array(received);
  for (let at = 0, i = 0; i < pieces.length; at += pieces[i++].length) all.set(pieces[i], at);
  return all;
}

/** Calls `use` with the address of a copy of bytes in the memory of WebAssembly. */
function withBytes(wasm, bytes, use) {
  const address = wasm.allocate(Math.max(bytes.length, 1));
  if (!address) throw new RangeError("not enough memory");
  try {
    new Uint8Array(wasm.memory.buffer, address, bytes.length).set(bytes);
    return use(address);
  } finally {
    wasm.release(address);
  }
}

function text(wasm, address, length) {
  const memory = new Uint8Array(wasm.memory.buffer);
  return new TextDecoder().decode(memory.subarray(address, length === undefined ? memory.indexOf(0, address) : address + length));
}

/** The header of a file that the runtime has found right. */
function headerOf(file) {
  const length = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  return JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length)));
}

function countWeights(header, operations) {
  let count = 0;
  let bytes = 0;
  for (const operation of operations) {
    if (operation.op !== "conv" || operation.weights) continue; // others are floats
    const [height, width] = operation.window;
    const [inputs, outputs] = operation.channels;
    const [begin, end] = (header[operation.tensor + ".coded"] ?? header[operation.tensor]).data_offsets;
    count += (height * width * inputs * outputs) / (operation.groups ?? 1);
    bytes += end - begin;
  }
  return { count, bytes };
}
