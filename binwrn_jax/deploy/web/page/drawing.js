// A drawing becomes an image like those that the network was trained on.

/** The drawing cut to its ink, scaled and centred as the digits of the data set are.
 *
 * scikit-learn's digits are as high as the image and, all of them, about 5.5 of 8 pixels wide. For others, as for
 * MNIST's: the longer side of the ink is 20 of 28 pixels, and its centre of mass is the middle.
 *
 * @param raster {data, width, height}, grey, white ink on black.
 * @returns an image of the same kind, to be resized by the model's rule.
 */
export function center({ data, width, height }, dataset) {
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++)
      if (data[i] > 64) {
        left = Math.min(left, x);
        right = Math.max(right, x);
        top = Math.min(top, y);
        bottom = Math.max(bottom, y);
      }
  if (right < 0) return { data, width, height, channels: 1 };
  const stretched = dataset === "digits";
  const [w, h] = [right - left + 1, bottom - top + 1];
  const high = stretched ? h : Math.round((Math.max(w, h) * 28) / 20);
  const wide = stretched ? Math.round(Math.max((w * 8) / 5.5, h * 0.7)) : high;
  const [middleX, middleY] = stretched ? [left + w / 2, top + h / 2] : massCenter(data, width, left, right, top, bottom);
  const result = new Uint8Array(wide * high);
  const [shiftX, shiftY] = [Math.round(middleX - wide / 2), Math.round(middleY - high / 2)];
  for (let y = Math.max(top, shiftY); y <= Math.min(bottom, shiftY + high - 1); y++)
    for (let x = Math.max(left, shiftX); x <= Math.min(right, shiftX + wide - 1); x++)
      result[(y - shiftY) * wide + x - shiftX] = data[y * width + x];
  return { data: result, width: wide, height: high, channels: 1 };
}

function massCenter(data, width, left, right, top, bottom) {
  let [sum, sumX, sumY] = [0, 0, 0];
  for (let y = top; y <= bottom; y++)
    for (let x = left; x <= right; x++) {
      const value = data[y * width + x];
      sum += value;
      sumX += value * (x + 0.5);
      sumY += value * (y + 0.5);
    }
  return [sumX / sum, sumY / sum];
}
