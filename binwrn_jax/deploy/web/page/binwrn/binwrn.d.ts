/** A picture's pixels, uint8 [height, width, channels]. */
export interface Picture {
  data: Uint8Array;
  height: number;
  width: number;
  channels: number;
}

/** [height, width, channels] */
export type Shape = [number, number, number];

export interface ClassProbability {
  name: string;
  index: number;
  /** softmax, 0..1 */
  probability: number;
}

export interface Prediction {
  /** most likely first */
  classes: ClassProbability[];
  logits: Float32Array;
  milliseconds: number;
}

export interface LoadOptions {
  /** address or bytes of binwrn.wasm.gz; the file beside binwrn.js by default */
  wasm?: string | URL | Uint8Array | ArrayBuffer;
  /** "wasm" or "plain"; the fastest by default */
  kernel?: string;
  /** bytes received so far, and all of them (0: unknown) */
  progress?: (received: number, total: number) => void;
}

/** Loads a packed model: an address (in Node also a path), or the bytes of the file.
 * Rejects with a ModelError for a file that is no packed model, damaged, or not to be fetched. */
export function load(source: string | URL | Uint8Array | ArrayBuffer | Blob, options?: LoadOptions): Promise<Model>;

export class Model {
  private constructor();
  /** What the file says of itself: dataset, test, license, class_names ... */
  readonly description: Record<string, unknown>;
  readonly shape: Shape;
  /** "bilinear" or "center_crop" */
  readonly resize: string;
  readonly classNames: string[];
  /** of the file and of the program */
  readonly bytes: { model: number; wasm: number };
  /** weights of one bit, and the bytes that they take in the file */
  readonly weights: { count: number; bytes: number };
  readonly multiplyAdds: number;
  readonly kernel: string;
  /** uint8 [N, height, width, channels] to float32 [N, classes] */
  logits(pixels: Uint8Array | Uint8ClampedArray): Float32Array;
  /** What is on one image. */
  predict(image: Uint8Array | Uint8ClampedArray | Picture): Prediction;
  /** Gives the memory back. */
  free(): void;
}

/** The picture in a file, grey (1) or RGB (3). In Node: PNG files only. Rejects with an UnreadableImage. */
export function readImage(source: Blob | Uint8Array, channels: number): Promise<Picture>;

/** A picture in the size of a network, by the rule of `binwrn predict`. */
export function fit(image: Picture, shape: Shape, rule?: string): Picture;

export class ModelError extends Error {}
export class UnreadableImage extends Error {}
