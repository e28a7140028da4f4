// From a picture to the pixels that a network takes, by the rule of `binwrn predict`, number by number:
// the first picture of a file, upright, 16 bits to 8, transparent parts white, grey or RGB, then resized.
// PNG files are decoded here, the same everywhere; other kinds by the browser.

import { decodePng, isPng } from "./png.js";

/** A picture that cannot be read. */
export class UnreadableImage extends Error {
  name = "UnreadableImage";
}

const MAX_PIXELS = 89478485; // as Pillow

/** The picture in a file.
 *
 * @param source a Blob or File, or bytes.
 * @param channels 1 for grey, 3 for RGB.
 * @returns {data, height, width, channels}, data a Uint8Array [height, width, channels].
 */
export async function readImage(source, channels) {
  if (channels !== 1 && channels !== 3) throw new UnreadableImage(`a picture has no ${channels} channels`);
  const blob = source instanceof Blob ? source : new Blob([source]);
  const bytes = new Uint8Array(await blob.arrayBuffer());
  try {
    if (isPng(bytes)) return upright(convert(await decodePng(bytes, MAX_PIXELS), channels));
    return convert(await decodeByBrowser(blob), channels);
  } catch (error) {
    if (error instanceof UnreadableImage) throw error;
    throw new UnreadableImage(`this is no picture that can be read here (${error.message})`, { cause: error });
  }
}

async function decodeByBrowser(blob) {
  if (typeof createImageBitmap !== "function") throw new UnreadableImage("without a browser, only PNG files are read");
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw new UnreadableImage(`${width} x ${height} pixels are too many`);
  return fromBitmap(bitmap);
}

/** The pixels of an ImageBitmap, RGBA; the bitmap is closed. */
export function fromBitmap(bitmap) {
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { rgba: context.getImageData(0, 0, width, height).data, width, height };
}

/** Grey or RGB of RGBA, transparent parts white. */
export function convert({ rgba, width, height, orientation }, channels) {
  const data = new Uint8Array(width * height * channels);
  for (let i = 0, at = 0; i < rgba.length; i += 4) {
    let r = rgba[i];
    let g = rgba[i + 1];
    let b = rgba[i + 2];
    const alpha = rgba[i + 3];
    if (alpha < 255) {
      r = overWhite(r, alpha);
      g = overWhite(g, alpha);
      b = overWhite(b, alpha);
    }
    if (channels === 3) {
      data[at++] = r;
      data[at++] = g;
      data[at++] = b;
    } else {
      data[at++] = (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16;
    }
  }
  return { data, width, height, channels, orientation };
}

/** As Pillow's alpha_composite, over white. */
function overWhite(value, alpha) {
  if (alpha === 0) return 255;
  const sum = 64 * (value * alpha + 255 * (255 - alpha) + 128);
  return ((sum >>> 8) + sum) >>> 14;
}

/** Turns and mirrors as the orientation says that EXIF gives. */
function upright({ data, width, height, channels, orientation = 1 }) {
  if (orientation === 1) return { data, width, height, channels };
  const swapped = orientation >= 5;
  const [columns, rows] = swapped ? [height, width] : [width, height];
  const result = new Uint8Array(data.length);
  for (let y = 0, at = 0; y < rows; y++)
    for (let x = 0; x < columns; x++) {
      const [right, down] = swapped ? [y, x] : [x, y];
      const column = [2, 3, 7, 8].includes(orientation) ? width - 1 - right : right;
      const row = [3, 4, 6, 7].includes(orientation) ? height - 1 - down : down;
      const from = (row * width + column) * channels;
      for (let c = 0; c < channels; c++) result[at++] = data[from + c];
    }
  return { data: result, width: columns, height: rows, channels };
}

/** An image in the size of a network.
 *
 * @param image what `readImage` gives.
 * @param shape [height, width, channels] of the network.
 * @param rule "bilinear" or "center_crop", as the packed file says.
 */
export function fit(image, [height, width, channels], rule = "bilinear") {
  if (image.channels !== channels) throw new TypeError(`the image has ${image.channels} channels, not ${channels}`);
  if (image.height === height && image.width === width) return image;
  if (rule === "bilinear") return bilinear(image, height, width);
  if (rule === "center_crop") return centerCrop(image, height);
  throw new RangeError(`unknown rule ${rule}`);
}

/** Both sides scaled to fit, each by itself; the triangle filter averages where the image shrinks. The order of the
 * two passes is that of Pillow 13; between them, values are rounded. */
function bilinear(image, height, width) {
  const lost = image.height - height;
  const sides = lost > 0 && lost > 2 * (image.width - width) ? [false, true] : [true, false];
  let result = image;
  for (const horizontal of sides)
    if (horizontal ? result.width !== width : result.height !== height)
      result = resample(result, horizontal ? width : height, horizontal);
  return result;
}

/** One pass, in integers of 22 bits. */
function resample({ data, width, height, channels }, size, horizontal) {
  const length = horizontal ? width : height;
  const scale = length / size;
  const spread = Math.max(scale, 1);
  const [columns, rows] = horizontal ? [size, height] : [width, size];
  const result = new Uint8Array(columns * rows * channels);
  const step = horizontal ? channels : width * channels;
  for (let i = 0; i < size; i++) {
    const center = (i + 0.5) * scale;
    const begin = Math.max(Math.trunc(center - spread + 0.5), 0);
    const end = Math.min(Math.trunc(center + spread + 0.5), length);
    const weights = [];
    for (let k = begin; k < end; k++) weights.push(Math.max(0, 1 - Math.abs((k - center + 0.5) * (1 / spread))));
    const sum = weights.reduce((a, b) => a + b, 0);
    const shares = Int32Array.from(weights, (w) => Math.trunc(0.5 + (w / sum) * 4194304));
    const lines = horizontal ? height : 1;
    const run = horizontal ? channels : width * channels;
    for (let line = 0; line < lines; line++) {
      const from = horizontal ? line * width * channels + begin * step : begin * step;
      const to = horizontal ? (line * columns + i) * channels : i * run;
      for (let c = 0; c < run; c++) {
        let total = 2097152;
        for (let k = 0, at = from + c; k < shares.length; k++, at += step) total += data[at] * shares[k];
        result[to + c] = total >> 22;
      }
    }
  }
  return { data: result, width: columns, height: rows, channels };
}

/** ImageNet's: the central square of 224/256 of the short side, scaled. */
function centerCrop(image, size) {
  const side = Math.max(1, roundHalfEven((Math.min(image.height, image.width) * 224) / 256));
  const top = (image.height - side) >> 1;
  const left = (image.width - side) >> 1;
  const [span, resize] = side >= 2 * size ? [areaSpan, areaPixel] : [linearSpan, linearPixel];
  const { channels } = image;
  const data = new Uint8Array(size * size * channels);
  const [rows, columns] = [true, false].map((down) => Array.from({ length: size }, (_, i) => span(i, side, size, down)));
  for (let y = 0, at = 0; y < size; y++)
    for (let x = 0; x < size; x++)
      for (let c = 0; c < channels; c++) data[at++] = resize(image, top, left, rows[y], columns[x], c);
  return { data, width: size, height: size, channels };
}

/** The mean over the pixels that a pixel of the result covers (OpenCV's INTER_AREA). */
function areaSpan(i, side, size) {
  const scale = side / size;
  const weights = [];
  const begin = i * scale;
  const end = Math.min(begin + scale, side);
  for (let k = Math.floor(begin + 1e-9); k < end - 1e-9; k++)
    weights.push([k, Math.min(k + 1, end) - Math.max(k, begin)]);
  return weights;
}

function areaPixel({ data, width, channels }, top, left, rows, columns, c) {
  let sum = 0;
  let all = 0;
  for (const [y, a] of rows)
    for (const [x, b] of columns) {
      sum += a * b * data[((top + y) * width + left + x) * channels + c];
      all += a * b;
    }
  return roundHalfEven(sum / all);
}

/** Two neighbours with weights of 11 bits (OpenCV's INTER_LINEAR). Beyond the border, rows keep their weights, which
 * rounds otherwise than columns do. */
function linearSpan(i, side, size, down) {
  const place = Math.fround((i + 0.5) * (side / size) - 0.5);
  const first = Math.floor(place);
  const outside = first < 0 || first >= side - 1;
  const share = outside && !down ? 0 : Math.fround(place - first);
  const clamp = (k) => Math.min(Math.max(k, 0), side - 1);
  return [
    [clamp(first), roundHalfEven(Math.fround(1 - share) * 2048)],
    [clamp(first + 1), roundHalfEven(share * 2048)],
  ];
}

function linearPixel({ data, width, channels }, top, left, rows, columns, c) {
  const [[x0, a0], [x1, a1]] = columns;
  const row = ([y]) => {
    const from = (top + y) * width + left;
    return data[(from + x0) * channels + c] * a0 + data[(from + x1) * channels + c] * a1;
  };
  const [upper, lower] = rows;
  return ((((upper[1] * (row(upper) >> 4)) >> 16) + ((lower[1] * (row(lower) >> 4)) >> 16) + 2) >> 2) & 255;
}

function roundHalfEven(x) {
  const rounded = Math.round(x);
  return rounded - x === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}
