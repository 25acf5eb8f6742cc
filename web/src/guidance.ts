/** Guidance as an input of the UNet, for models that need one call a step at any scale (Meng et al. 2023, 3.1). */

const { fround } = Math;

/** A guidance scale w -> [width]: sines, then cosines, of 1000 (w - 1) at width / 2 frequencies. */
export function guidanceEmbedding(scale: number, width: number): Float32Array {
  const half = Math.floor(width / 2);
  const step = fround(-Math.log(10_000) / (half - 1));
  const angle = fround(1000 * fround(fround(scale) - 1));
  const angles = Array.from({ length: half }, (_, i) => fround(angle * fround(Math.exp(fround(i * step)))));
  return Float32Array.from([...angles.map(Math.sin), ...angles.map(Math.cos)]);
}
