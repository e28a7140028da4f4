// A drawing becomes an image like those that the network was trained on.

/** The drawing cut to its ink, scaled and centred as the digits of the data set are.
 *
 * MNIST: the longer side of the ink is 20 of 28 pixels, the centre of mass is the middle. Others: the ink is as
 * high as the image.
 *
 * @param raster {data, width, height}, grey, white ink on black.
 * @returns an image of the same kind, to be resized by the model's rule.
 */
export function center({ data, width, height }, [rows, columns], dataset) {
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
  const mnist = /mnist/.test(dataset ?? "");
  const [w, h] = [right - left + 1, bottom - top + 1];
  const side = Math.round(mnist ? (Math.max(w, h) * 28) / 20 : Math.max(h, (w * columns) / Math.max(columns - 1, 1)));
  let [middleX, middleY] = [left + w / 2, top + h / 2];
  if (mnist) [middleX, middleY] = massCenter(data, width, left, right, top, bottom);
  const result = new Uint8Array(side * side);
  const [shiftX, shiftY] = [Math.round(middleX - side / 2), Math.round(middleY - side / 2)];
  for (let y = Math.max(top, shiftY); y <= Math.min(bottom, shiftY + side - 1); y++)
    for (let x = Math.max(left, shiftX); x <= Math.min(right, shiftX + side - 1); x++)
      result[(y - shiftY) * side + x - shiftX] = data[y * width + x];
  return { data: result, width: side, height: side, channels: 1 };
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
