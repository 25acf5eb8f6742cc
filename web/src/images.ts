/** A decoder's output as pixels. */

import { roundHalfEven } from "./noise_schedule.js";

/** RGBA, one byte each, row by row: an ImageData where there is one. */
export interface Picture {
  data: Uint8ClampedArray;
  width: number;
  height: number;
}

/** [3, height, width] in [-1, 1], clipped -> RGBA. */
export function toPicture(pixels: Float32Array, width: number, height: number): Picture {
  const { fround } = Math;
  const size = width * height;
  const data = new Uint8ClampedArray(4 * size).fill(255);
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < size; i++) {
      const share = fround(fround(pixels[channel * size + i] / 2) + 0.5);
      data[4 * i + channel] = roundHalfEven(fround(Math.min(Math.max(share, 0), 1) * 255));
    }
  }
  return typeof ImageData === "undefined" ? { data, width, height } : new ImageData(data, width, height);
}
