/** Noise of torch's CPU generator, so that a seed gives the picture that diffusers gives. */

import type { NoiseGenerator } from "./noise.js";

const SIZE = 624;
const MIDDLE = 397;
const TWIST = 0x9908_b0df;
/** numbers that torch.randn makes at once, of as many uniform ones */
const BLOCK = 16;

/** MT19937 (Matsumoto & Nishimura 1998). */
class MersenneTwister {
  private readonly state = new Uint32Array(SIZE);
  private at = SIZE;

  constructor(seed: number) {
    this.state[0] = seed;
    for (let i = 1; i < SIZE; i++) {
      const previous = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1_812_433_253, previous) + i;
    }
  }

  uint32(): number {
    if (this.at === SIZE) this.twist();
    let y = this.state[this.at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c_5680;
    y ^= (y << 15) & 0xefc6_0000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  private twist(): void {
    const { state } = this;
    for (let i = 0; i < SIZE; i++) {
      const y = (state[i] & 0x8000_0000) | (state[(i + 1) % SIZE] & 0x7fff_ffff);
      state[i] = state[(i + MIDDLE) % SIZE] ^ (y >>> 1) ^ (y & 1 ? TWIST : 0);
    }
    this.at = 0;
  }
}

/**
 * Draws what torch.randn draws with torch.Generator("cpu").manual_seed(seed), to the last bits of a float32: Box-Muller
 * in blocks of 16, where 8 radii meet 8 angles. Torch's generator reads the lowest 32 bits of a seed alone.
 */
export class TorchGenerator implements NoiseGenerator {
  private readonly engine: MersenneTwister;
  private spare: number | null = null;

  constructor(seed: bigint) {
    this.engine = new MersenneTwister(Number(BigInt.asUintN(32, seed)));
  }

  standardNormal(count: number): Float32Array {
    if (count < BLOCK) return Float32Array.from({ length: count }, () => this.one());
    const normal = this.uniform(count);
    for (let start = 0; start + BLOCK <= count; start += BLOCK) boxMuller(normal.subarray(start, start + BLOCK));
    if (count % BLOCK) {
      // the last block is drawn anew, and overlaps the one before
      const last = this.uniform(BLOCK);
      boxMuller(last);
      normal.set(last, count - BLOCK);
    }
    return normal;
  }

  /** [count] in [0, 1), of 24 bits each */
  private uniform(count: number): Float32Array {
    return Float32Array.from({ length: count }, () => (this.engine.uint32() & 0xff_ffff) * 2 ** -24);
  }

  /** Of fewer than a block torch makes pairs, in double precision, and keeps the second for the next call. */
  private one(): number {
    if (this.spare !== null) {
      const normal = this.spare;
      this.spare = null;
      return normal;
    }
    const angle = 2 * Math.PI * this.fraction();
    const radius = Math.sqrt(-2 * Math.log1p(-this.fraction()));
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** 53 of 64 bits as a number in [0, 1); the high word is drawn first. */
  private fraction(): number {
    const high = this.engine.uint32() & 0x1f_ffff;
    return (high * 2 ** 32 + this.engine.uint32()) * 2 ** -53;
  }
}

/** 16 uniform numbers -> 16 normal ones, in place. */
function boxMuller(block: Float32Array): void {
  const { fround } = Math;
  for (let i = 0; i < BLOCK / 2; i++) {
    const radius = fround(Math.sqrt(fround(-2 * fround(Math.log(1 - block[i])))));
    const angle = fround(fround(2 * Math.PI) * block[i + BLOCK / 2]);
    block[i] = radius * fround(Math.cos(angle));
    block[i + BLOCK / 2] = radius * fround(Math.sin(angle));
  }
}
