// PNG files as RGBA of 8 bits: each kind of pixel becomes what Pillow makes of it, and no colour profile
// changes it. The bytes are inflated by DecompressionStream.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }; // by kind: grey, RGB, palette, grey and alpha, RGBA
const DEPTHS = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] };
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

export const isPng = (bytes) => SIGNATURE.every((byte, i) => bytes[i] === byte);

/** {rgba, width, height, orientation} of a PNG file of at most so many pixels. */
export async function decodePng(bytes, maxPixels) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chunks = {};
  const pieces = [];
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const content = bytes.subarray(at + 8, at + 8 + length);
    if (content.length < length) throw new Error("the file ends too early");
    if (name === "IDAT") pieces.push(content);
    else chunks[name] ??= content;
    if (name === "IEND") break;
    at += 12 + length;
  }
  if (chunks.IHDR?.length !== 13 || !pieces.length) throw new Error("a damaged PNG file");
  const header = new DataView(chunks.IHDR.buffer, chunks.IHDR.byteOffset, 13);
  const [width, height, depth, kind] = [header.getUint32(0), header.getUint32(4), header.getUint8(8), header.getUint8(9)];
  if (!DEPTHS[kind]?.includes(depth) || !width || !height) throw new Error("a damaged PNG file");
  if (width * height > maxPixels) throw new Error(`${width} x ${height} pixels are too many`);
  const passes = (header.getUint8(12) ? PASSES : [[0, 0, 1, 1]])
    .map(([x, y, dx, dy]) => ({ x, y, dx, dy, columns: Math.ceil((width - x) / dx), rows: Math.ceil((height - y) / dy) }))
    .filter(({ columns, rows }) => columns > 0 && rows > 0);
  const bits = CHANNELS[kind] * depth;
  const rowBytes = ({ columns }) => Math.ceil((columns * bits) / 8);
  const data = await inflate(pieces, passes.reduce((sum, pass) => sum + pass.rows * (1 + rowBytes(pass)), 0));
  const rgba = new Uint8Array(4 * width * height);
  const put = painter(rgba, kind, depth, chunks);
  let at = 0;
  for (const pass of passes) {
    const size = rowBytes(pass);
    let above = new Uint8Array(size);
    for (let row = 0; row < pass.rows; row++, at += 1 + size) {
      const line = data.subarray(at + 1, at + 1 + size);
      unfilter(line, above, data[at], Math.max(1, bits >> 3));
      const start = (pass.y + row * pass.dy) * width + pass.x;
      for (let column = 0; column < pass.columns; column++) put(line, column, 4 * (start + column * pass.dx));
      above = line;
    }
  }
  return { rgba, width, height, orientation: orientationOf(chunks.eXIf) };
}

async function inflate(pieces, size) {
  const result = new Uint8Array(size);
  const reader = new Blob(pieces).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  let at = 0;
  for (let piece; at < size && !(piece = await reader.read()).done; ) {
    result.set(piece.value.subarray(0, size - at), at);
    at += piece.value.length;
  }
  reader.cancel().catch(() => {});
  if (at < size) throw new Error("its pixels end too early");
  return result;
}

function unfilter(line, above, filter, step) {
  for (let i = 0; i < line.length; i++) {
    const a = i < step ? 0 : line[i - step];
    const b = above[i];
    if (filter === 1) line[i] += a;
    else if (filter === 2) line[i] += b;
    else if (filter === 3) line[i] += (a + b) >> 1;
    else if (filter === 4) line[i] += paeth(a, b, i < step ? 0 : above[i - step]);
    else if (filter) throw new Error("a damaged PNG file");
  }
}

function paeth(a, b, c) {
  const [p, q, r] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
  return p <= q && p <= r ? a : q <= r ? b : c;
}

/** A function that writes the pixel of a column of a line to a place of RGBA. */
function painter(rgba, kind, depth, { PLTE: palette, tRNS: transparency }) {
  const wide = depth === 16;
  const step = CHANNELS[kind] * (wide ? 2 : 1);
  const set = (at, r, g, b, alpha) => {
    rgba[at] = r;
    rgba[at + 1] = g;
    rgba[at + 2] = b;
    rgba[at + 3] = alpha;
  };
  const clear = transparency && kind !== 3 ? Array.from({ length: transparency.length >> 1 }, (_, i) => (transparency[2 * i] << 8) | transparency[2 * i + 1]) : null;
  if (kind === 0 || kind === 3) {
    const mask = (1 << depth) - 1;
    const scale = 255 / mask;
    if (kind === 3 && !palette) throw new Error("a PNG file without its palette");
    return (line, column, at) => {
      let value;
      if (wide) value = Math.round(((line[2 * column] << 8) | line[2 * column + 1]) / 257);
      else value = (line[(column * depth) >> 3] >> (8 - depth - ((column * depth) & 7))) & mask;
      if (kind === 3) {
        if (3 * value + 2 >= palette.length) return set(at, 0, 0, 0, 255);
        return set(at, palette[3 * value], palette[3 * value + 1], palette[3 * value + 2], transparency?.[value] ?? 255);
      }
      const grey = wide ? value : value * scale;
      set(at, grey, grey, grey, clear && !wide && clear[0] === grey ? 0 : 255);
    };
  }
  const place = wide ? 2 : 1;
  if (kind === 4)
    return (line, column, at) => {
      const i = column * step;
      set(at, line[i], line[i], line[i], line[i + place]);
    };
  return (line, column, at) => {
    const i = column * step;
    const [r, g, b] = [line[i], line[i + place], line[i + 2 * place]];
    const hidden = clear && clear[0] === r && clear[1] === g && clear[2] === b;
    set(at, r, g, b, kind === 6 ? line[i + 3 * place] : hidden ? 0 : 255);
  };
}

/** 1 to 8, as the tag 0x0112 of EXIF says; 1 is upright. */
function orientationOf(exif) {
  if (!exif || exif.length < 14) return 1;
  const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
  const little = view.getUint16(0) === 0x4949;
  const first = view.getUint32(4, little);
  if (first + 2 > exif.length) return 1;
  for (let i = 0, at = first + 2; i < view.getUint16(first, little) && at + 12 <= exif.length; i++, at += 12)
    if (view.getUint16(at, little) === 0x0112) {
      const value = view.getUint16(at + 8, little);
      return value >= 1 && value <= 8 ? value : 1;
    }
  return 1;
}
