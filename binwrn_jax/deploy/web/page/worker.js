// The network and all that is done to a picture, away from the thread that the page is drawn by.
import { load } from "./binwrn/binwrn.js";
import { convert, fit, fromBitmap, readImage } from "./binwrn/images.js";
import { center } from "./drawing.js";

let model;
let examples;

const tasks = {
  /** Loads the model; answers with all that the page shows of it. */
  async load({ url }) {
    model = await load(url, { progress: (received, total) => postMessage({ received, total }) });
    const { shape, description, weights, bytes, multiplyAdds, classNames, kernel } = model;
    return { shape, description, weights, bytes, multiplyAdds, classNames, kernel };
  },
  /** A picture from a file. */
  async picture({ blob, invert }) {
    return predict(await readImage(blob, model.shape[2]), invert);
  },
  /** The central square of a camera's picture. */
  frame({ bitmap, invert }) {
    return predict(square(convert(fromBitmap(bitmap), model.shape[2])), invert);
  },
  /** A drawing: grey, white on black. */
  drawing({ data, width, height }) {
    return predict(center({ data, width, height }, model.description.dataset));
  },
  /** One of the pictures in examples.png. */
  async example({ url, index }) {
    examples ??= readImage(await (await fetch(url)).blob(), model.shape[2]);
    const [height, width, channels] = model.shape;
    return predict(crop(await examples, index * width, 0, width, height, channels));
  },
  /** Bytes that this thread has loaded. */
  loaded: () => performance.getEntriesByType("resource").map(({ name, decodedBodySize }) => [name, decodedBodySize]),
};

function predict(image, invert = false) {
  const input = fit(image, model.shape, model.resize);
  if (invert) input.data = input.data.map((value) => 255 - value);
  return { ...model.predict(input), input: input.data };
}

function square(image) {
  const side = Math.min(image.width, image.height);
  return crop(image, (image.width - side) >> 1, (image.height - side) >> 1, side, side, image.channels);
}

function crop(image, left, top, width, height, channels) {
  const data = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const from = ((top + y) * image.width + left) * channels;
    data.set(image.data.subarray(from, from + width * channels), y * width * channels);
  }
  return { data, width, height, channels };
}

onmessage = async ({ data: { id, task, ...rest } }) => {
  try {
    postMessage({ id, result: await tasks[task](rest) });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
};
