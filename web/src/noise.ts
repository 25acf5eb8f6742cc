/** The noise of a seed: what numpy's Philox generator draws, so that a seed gives the picture that it gives in Python. */

import { TorchGenerator } from "./torch_noise.js";

export const GENERATORS = ["philox", "torch"] as const;
export type GeneratorName = (typeof GENERATORS)[number];

/** Draws standard normal numbers, float32. */
export interface NoiseGenerator {
  standardNormal(count: number): Float32Array;
}

/** The generator of all noise of the picture with this seed, x_T first. */
export function noiseGenerator(seed: bigint, name: GeneratorName = "philox"): NoiseGenerator {
  return name === "torch" ? new TorchGenerator(seed) : new PhiloxGenerator(seed);
}

const WORD = 64n;
const MULTIPLIERS = [0xd2e7470ee14c6c93n, 0xca5a826395121157n] as const;
const KEY_STEPS = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn] as const;
const ROUNDS = 10;

const low = (value: bigint) => BigInt.asUintN(64, value);

/** Philox4x64-10 (Salmon et al. 2011): a block of four 64-bit numbers from a counter and a key. */
function philoxBlock(counter: bigint, seed: bigint): bigint[] {
  let [a, b, c, d] = [counter, 0n, 0n, 0n];
  let [key, key2] = [seed, 0n];
  for (let round = 0; round < ROUNDS; round++) {
    const first = MULTIPLIERS[0] * a;
    const second = MULTIPLIERS[1] * c;
    [a, b, c, d] = [(second >> WORD) ^ b ^ key, low(second), (first >> WORD) ^ d ^ key2, low(first)];
    [key, key2] = [low(key + KEY_STEPS[0]), low(key2 + KEY_STEPS[1])];
  }
  return [a, b, c, d];
}

const STRIPS = 256;
/** Where the tail begins, and the area of a strip, of a ziggurat of 256 strips (Marsaglia & Tsang 2000). */
const TAIL = 3.6541528853610088;
const AREA = 0.00492867323399;
const FRACTION_BITS = 23;
const UNIFORM = 2 ** -24;

interface Ziggurat {
  /** below which a 23-bit number lies inside the strip, whatever its height */
  inside: Uint32Array;
  /** x of a 23-bit number */
  width: Float32Array;
  /** the density at the strip's edge */
  density: Float32Array;
}

const ziggurat = makeZiggurat();

function makeZiggurat(): Ziggurat {
  const density = (x: number) => Math.exp(-0.5 * x * x);
  const edges = new Float64Array(STRIPS);
  edges[STRIPS - 1] = TAIL;
  for (let i = STRIPS - 2; i > 0; i--) edges[i] = Math.sqrt(-2 * Math.log(AREA / edges[i + 1] + density(edges[i + 1])));
  const base = AREA / density(TAIL); // the lowest strip with its tail, as wide as a rectangle of its area
  const scale = 2 ** FRACTION_BITS;
  return {
    inside: Uint32Array.from(edges, (edge, i) => Math.floor(scale * (i ? edges[i - 1] / edge : TAIL / base))),
    width: Float32Array.from(edges, (edge, i) => (i ? edge : base) / scale),
    density: Float32Array.from(edges, (edge, i) => (i ? density(edge) : 1)),
  };
}

/** numpy.random.Generator(numpy.random.Philox(key=seed % 2**64)).standard_normal(count, float32). */
class PhiloxGenerator implements NoiseGenerator {
  private readonly seed: bigint;
  private counter = 0n;
  private words: number[] = [];

  constructor(seed: bigint) {
    this.seed = low(seed);
  }

  standardNormal(count: number): Float32Array {
    return Float32Array.from({ length: count }, () => this.one());
  }

  private uint32(): number {
    if (!this.words.length) {
      this.counter += 1n;
      for (const word of philoxBlock(this.counter, this.seed)) {
        this.words.unshift(Number(word >> 32n), Number(word & 0xffff_ffffn)); // the low half is drawn first
      }
    }
    return this.words.pop()!;
  }

  /** float32 in [0, 1) */
  private uniform(): number {
    return (this.uint32() >>> 8) * UNIFORM;
  }

  private one(): number {
    const { fround } = Math;
    const { inside, width, density } = ziggurat;
    for (;;) {
      const bits = this.uint32();
      const strip = bits & 0xff;
      const negative = (bits >>> 8) & 1;
      const fraction = bits >>> 9;
      const magnitude = fround(fraction * width[strip]);
      const x = negative ? -magnitude : magnitude;
      if (fraction < inside[strip]) return x;
      if (strip === 0) return this.tail((fraction >>> 8) & 1);
      const height = fround(fround(density[strip - 1] - density[strip]) * this.uniform());
      if (fround(height + density[strip]) < Math.exp(-0.5 * x * x)) return x;
    }
  }

  /** Beyond TAIL (Marsaglia 1964). */
  private tail(negative: number): number {
    const { fround, log1p } = Math;
    for (;;) {
      const beyond = fround(-fround(1 / TAIL) * fround(log1p(-this.uniform())));
      const y = -fround(log1p(-this.uniform()));
      const x = fround(TAIL) + beyond;
      if (fround(y + y) > fround(beyond * beyond)) return negative ? -x : x;
    }
  }
}
