/** Half precision for networks in fp16. Arrays of halves are their bits; older engines have no Float16Array. */

const single = new Float32Array(1);
const singleBits = new Uint32Array(single.buffer);

/** float32 -> bits of the nearest float16, ties to even. */
export function toHalf(value: number): number {
  single[0] = value;
  const bits = singleBits[0];
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fff_ffff;
  if (magnitude > 0x7f80_0000) return sign | 0x7e00; // NaN
  if (magnitude >= 0x4780_0000) return sign | 0x7c00; // 2^16 and more: infinity
  // below 2^-14 halves are multiples of 2^-24, as are the last bits of a float32 in [1/2, 1)
  if (magnitude < 0x3880_0000) {
    single[0] = Math.abs(value) + 0.5;
    return sign | (singleBits[0] - 0x3f00_0000);
  }
  const odd = (magnitude >>> 13) & 1;
  return sign | ((magnitude - 0x3800_0000 + 0xfff + odd) >>> 13); // a carry into the exponent is right, up to infinity
}

/** Bits of a float16 -> its value. */
export function fromHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
