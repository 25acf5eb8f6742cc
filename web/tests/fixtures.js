/** What make_fixtures.py wrote, and helpers of several tests. */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { inflateSync } from "node:zlib";

export const STUDENT = fileURLToPath(new URL("../../examples/students/fashion/", import.meta.url));
/** A package of a few kilobytes. */
export const TINY = fileURLToPath(new URL("tiny/", import.meta.url));
/** One of SDXL's shape. */
export const TINY_SDXL = fileURLToPath(new URL("tiny_sdxl/", import.meta.url));
export const fixtures = JSON.parse(readFileSync(new URL("fixtures.json", import.meta.url), "utf8"));

/** The SHA-256 of an array's bytes. */
export function digest(array) {
  return createHash("sha256")
    .update(new Uint8Array(array.buffer, array.byteOffset, array.byteLength))
    .digest("hex");
}

/** The pictures of fixtures.pictures, tinyPictures and tinySdxlPictures, [height * width * 3] each. */
export function pictures() {
  const { width, height, data } = decodePng(readFileSync(new URL("pictures.png", import.meta.url)));
  let left = 0;
  return [...fixtures.pictures, ...fixtures.tinyPictures, ...fixtures.tinySdxlPictures].map(({ width: own = 64 }) => {
    const start = left;
    left += own;
    const rows = Array.from({ length: height }, (_, y) => y * width + start);
    return Uint8Array.from(rows.flatMap((first) => [...data.subarray(3 * first, 3 * (first + own))]));
  });
}

/** An RGB picture of 8 bits, not interlaced, as Pillow writes it. */
function decodePng(bytes) {
  const parts = [];
  let header;
  for (let at = 8; at < bytes.length;) {
    const length = bytes.readUInt32BE(at);
    const type = bytes.toString("latin1", at + 4, at + 8);
    const content = bytes.subarray(at + 8, at + 8 + length);
    if (type === "IHDR") header = content;
    if (type === "IDAT") parts.push(content);
    at += length + 12;
  }
  const [width, height] = [header.readUInt32BE(0), header.readUInt32BE(4)];
  const raw = inflateSync(Buffer.concat(parts));
  const data = new Uint8Array(3 * width * height);
  const pixel = (x, y) => (x < 0 || y < 0 ? 0 : data[y * 3 * width + x]);
  for (let y = 0; y < height; y++) {
    const start = y * (3 * width + 1);
    for (let x = 0; x < 3 * width; x++) {
      const [left, up, corner] = [pixel(x - 3, y), pixel(x, y - 1), x < 3 ? 0 : pixel(x - 3, y - 1)];
      const predicted = [0, left, up, (left + up) >> 1, paeth(left, up, corner)][raw[start]];
      data[y * 3 * width + x] = raw[start + 1 + x] + predicted;
    }
  }
  return { width, height, data };
}

function paeth(left, up, corner) {
  const [a, b, c] = [left, up, corner].map((value) => Math.abs(left + up - corner - value));
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

/** The largest difference between a picture (RGBA) and pixels (RGB), in grey levels. */
export function greyLevels(picture, pixels) {
  let largest = 0;
  for (let i = 0; i < pixels.length / 3; i++) {
    for (let channel = 0; channel < 3; channel++) {
      largest = Math.max(largest, Math.abs(picture[4 * i + channel] - pixels[3 * i + channel]));
    }
  }
  return largest;
}

/** Asserts that numbers are equal to some bits of a float32. */
export function close(actual, expected, tolerance = 2e-6) {
  if (actual.length !== expected.length) throw new Error(`${actual.length} numbers, not ${expected.length}`);
  for (const [i, value] of expected.entries()) {
    if (!(Math.abs(actual[i] - value) <= tolerance * Math.max(1, Math.abs(value)))) {
      throw new Error(`number ${i} is ${actual[i]}, not ${value}`);
    }
  }
}
