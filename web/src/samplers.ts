/** Samplers: from noise to latents, on the trajectories of the Python runtime's. x is float32 [channels, height, width]. */

import { RcdeployError } from "./errors.js";
import { combined, spacedTimesteps, type NoiseSchedule } from "./noise_schedule.js";

export const SAMPLERS = ["ddim", "lcm", "tcd"] as const;
export type SamplerName = (typeof SAMPLERS)[number];

export interface Sampler {
  /** t of each visit, descending */
  readonly timesteps: readonly number[];
  /** The UNet's output at visit i (epsilon, v or x_0, as the schedule says) and x there -> x at visit i + 1. */
  step(prediction: Float32Array, i: number, x: Float32Array): Float32Array;
}

/**
 * @param noise draws fresh noise of x's size.
 * @param eta how much of the noise is fresh at each step, 0 to 1; of ddim and tcd.
 * @throws RcdeployError for steps that the schedule lacks, and for an eta that the sampler does not take.
 */
export function makeSampler(
  name: SamplerName,
  schedule: NoiseSchedule,
  numInferenceSteps: number,
  noise: () => Float32Array,
  eta = 0,
): Sampler {
  if (name === "ddim") return new Ddim(schedule, numInferenceSteps, noise, eta);
  if (name === "tcd") return new Tcd(schedule, numInferenceSteps, noise, eta);
  if (eta) throw new RcdeployError(`eta is ${eta}, and the sampler lcm has none`, "Samplers with eta: ddim, tcd.");
  return new Lcm(schedule, numInferenceSteps, noise, eta);
}

abstract class ScheduleSampler implements Sampler {
  readonly timesteps: readonly number[];

  constructor(
    protected readonly schedule: NoiseSchedule,
    protected readonly numInferenceSteps: number,
    protected readonly noise: () => Float32Array,
    protected readonly eta: number,
  ) {
    this.timesteps = this.makeTimesteps(numInferenceSteps);
    this.checkSteps();
    if (schedule.predictionType === "epsilon" && schedule.alphasCumprod[this.timesteps[0]] === 0) {
      throw new RcdeployError(
        "this model predicts epsilon, and its noise schedule has no signal at the first step (zero SNR), from which " +
          "this sampler cannot step",
        "Draw from this package with the Python runtime's euler sampler.",
      );
    }
  }

  abstract step(prediction: Float32Array, i: number, x: Float32Array): Float32Array;

  protected makeTimesteps(n: number): number[] {
    const { timestepSpacing, length, stepsOffset } = this.schedule;
    return spacedTimesteps(timestepSpacing ?? "leading", n, length, stepsOffset);
  }

  private checkSteps(): void {
    const n = this.numInferenceSteps;
    const T = this.schedule.length;
    if (n <= T && this.lieInSchedule(this.timesteps)) return;
    let most = T;
    while (most && !this.lieInSchedule(this.makeTimesteps(most))) most--;
    throw new RcdeployError(
      `steps is ${n}: this sampler takes ${most ? `1 to ${most}` : "no number of"} steps on the package's noise ` +
        `schedule (${T} timesteps)`,
      most ? "20 to 50 steps are usual." : "Use another sampler.",
    );
  }

  private lieInSchedule(t: readonly number[]): boolean {
    return t[0] < this.schedule.length && t[t.length - 1] >= 0 && t.every((value, i) => !i || value < t[i - 1]);
  }

  /** alphas_cumprod at t; below 0 its value at the end of the trajectory. */
  protected alphaBar(t: number): number {
    if (t >= 0) return this.schedule.alphasCumprod[t];
    return (this.schedule.setAlphaToOne ?? true) ? 1 : this.schedule.alphasCumprod[0];
  }

  /** [x_0, noise], x_0 clipped where the schedule says so. */
  protected split(prediction: Float32Array, x: Float32Array, alphaBar: number): [Float32Array, Float32Array] {
    const [x0, noise] = this.schedule.split(prediction, x, Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar));
    if (!this.schedule.clipSample) return [x0, noise];
    const limit = this.schedule.clipSampleRange;
    return [x0.map((value) => Math.min(Math.max(value, -limit), limit)), noise];
  }
}

/** x_t where alphas_cumprod is alphaBar. */
function noisyLatents(alphaBar: number, x0: Float32Array, noise: Float32Array): Float32Array {
  return combined(Math.sqrt(alphaBar), x0, Math.sqrt(1 - alphaBar), noise);
}

/** Song et al. 2021, equations 12 and 16. */
class Ddim extends ScheduleSampler {
  step(prediction: Float32Array, i: number, x: Float32Array): Float32Array {
    const t = this.timesteps[i];
    const alphaBar = this.alphaBar(t);
    const previous = this.alphaBar(t - Math.floor(this.schedule.length / this.numInferenceSteps));
    const [x0, noise] = this.split(prediction, x, alphaBar);
    if (!this.eta) return noisyLatents(previous, x0, noise);
    const fresh = ((this.eta ** 2 * (1 - previous)) / (1 - alphaBar)) * (1 - alphaBar / previous); // its variance
    const kept = Math.max(0, 1 - previous - fresh);
    return combined(1, combined(Math.sqrt(previous), x0, Math.sqrt(kept), noise), Math.sqrt(fresh), this.noise());
  }
}

/** Timesteps of consistency distillation: n of the originalInferenceSteps that the student was trained on. */
abstract class FewStepSampler extends ScheduleSampler {
  protected override makeTimesteps(n: number): number[] {
    const origin = this.schedule.originalInferenceSteps;
    if (n > origin) return [-1]; // refused: none of the schedule
    const stride = Math.floor(this.schedule.length / origin);
    return Array.from({ length: n }, (_, i) => (origin - Math.floor(i * (origin / n))) * stride - 1);
  }
}

const SIGMA_DATA = 0.5;

/** Luo et al. 2023: for models distilled for consistency; few steps, with fresh noise between them. */
class Lcm extends FewStepSampler {
  step(prediction: Float32Array, i: number, x: Float32Array): Float32Array {
    const t = this.timesteps[i];
    const [x0] = this.split(prediction, x, this.alphaBar(t));
    const scaled = t * this.schedule.timestepScaling;
    const spread = scaled ** 2 + SIGMA_DATA ** 2;
    const denoised = combined(scaled / Math.sqrt(spread), x0, SIGMA_DATA ** 2 / spread, x);
    if (i + 1 === this.timesteps.length) return denoised;
    return noisyLatents(this.alphaBar(this.timesteps[i + 1]), denoised, this.noise());
  }
}

/** Zheng et al. 2024, eta its gamma: for models distilled for consistency. It ends at t = 0, and clips nothing. */
class Tcd extends FewStepSampler {
  step(prediction: Float32Array, i: number, x: Float32Array): Float32Array {
    const alphaBar = this.alphaBar(this.timesteps[i]);
    const [x0, noise] = this.schedule.split(prediction, x, Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar));
    const last = i + 1 === this.timesteps.length;
    const next = last ? 0 : this.timesteps[i + 1];
    const s = Math.floor(Math.fround(Math.fround(1 - this.eta) * next)); // float32, as in diffusers
    const xs = noisyLatents(this.alphaBar(s), x0, noise);
    if (last || !this.eta) return xs;
    const ratio = this.alphaBar(next) / this.alphaBar(s);
    return combined(Math.sqrt(ratio), xs, Math.sqrt(1 - ratio), this.noise());
  }
}
