/** The noise schedule: the share of x_0 in x_t, from diffusers' scheduler_config.json, with numpy's roundings. */

import { number, oneOf, shortened, wholeNumber, type JsonObject } from "./checks.js";
import { RcdeployError } from "./errors.js";
import { MAX_SCALE, MAX_TRAIN_TIMESTEPS } from "./limits.js";

const { fround } = Math;
const BETA_SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"] as const;
const PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"] as const;
const SPACINGS = ["leading", "trailing", "linspace"] as const;
export type Spacing = (typeof SPACINGS)[number];

export class NoiseSchedule {
  readonly predictionType: (typeof PREDICTION_TYPES)[number];
  /** null takes the default of the sampler's class, as setAlphaToOne does */
  readonly timestepSpacing: Spacing | null;
  readonly setAlphaToOne: boolean | null;
  readonly stepsOffset: number;
  readonly clipSample: boolean;
  readonly clipSampleRange: number;
  readonly originalInferenceSteps: number;
  readonly timestepScaling: number;
  /** [T], the share of x_0's variance in x_t */
  readonly alphasCumprod: Float32Array;

  /**
   * @param config the object in scheduler_config.json; keys that it lacks have diffusers' defaults.
   * @param where its file, for messages.
   */
  constructor(config: JsonObject, where = "scheduler/scheduler_config.json") {
    const take = (key: string, otherwise: unknown) => config[key] ?? otherwise;
    const bounded = (key: string, otherwise: number, high: number) =>
      number(`${where}: ${key}`, take(key, otherwise), 0, high);
    const steps = wholeNumber(
      `${where}: num_train_timesteps`,
      take("num_train_timesteps", 1000),
      1,
      MAX_TRAIN_TIMESTEPS,
    );
    this.predictionType = oneOf(`${where}: prediction_type`, take("prediction_type", "epsilon"), PREDICTION_TYPES);
    this.timestepSpacing = oneOf(`${where}: timestep_spacing`, take("timestep_spacing", null), [...SPACINGS, null]);
    this.setAlphaToOne = oneOf(`${where}: set_alpha_to_one`, take("set_alpha_to_one", null), [true, false, null]);
    this.stepsOffset = wholeNumber(`${where}: steps_offset`, take("steps_offset", 0), 0, steps);
    this.clipSample = oneOf(`${where}: clip_sample`, take("clip_sample", false), [true, false]);
    this.clipSampleRange = bounded("clip_sample_range", 1, MAX_SCALE);
    this.originalInferenceSteps = wholeNumber(
      `${where}: original_inference_steps`,
      take("original_inference_steps", 50),
      1,
      MAX_TRAIN_TIMESTEPS,
    );
    this.timestepScaling = bounded("timestep_scaling", 10, MAX_SCALE);
    if (take("thresholding", false) !== false) {
      throw new RcdeployError(`${where}: thresholding is for models of pixels; this runtime works on latents`);
    }
    const zeroSnr = oneOf(`${where}: rescale_betas_zero_snr`, take("rescale_betas_zero_snr", false), [true, false]);
    const trained = take("trained_betas", null);
    const betas =
      trained === null
        ? makeBetas(
            oneOf(`${where}: beta_schedule`, take("beta_schedule", "linear"), BETA_SCHEDULES),
            bounded("beta_start", 0.0001, 1),
            bounded("beta_end", 0.02, 1),
            steps,
          )
        : trainedBetas(trained, `${where}: trained_betas`);
    const alphasCumprod = products(betas.map((beta) => 1 - beta));
    this.alphasCumprod = zeroSnr ? toZeroSnr(alphasCumprod) : alphasCumprod;
    const last = this.alphasCumprod.length - 1;
    if (!this.alphasCumprod.every((share, t) => share < 1 && (share > 0 || (zeroSnr && t === last && share === 0)))) {
      throw new RcdeployError(`${where}: the betas leave alphas_cumprod outside 0 to 1`);
    }
  }

  get length(): number {
    return this.alphasCumprod.length;
  }

  /** The UNet's output for x = alpha x_0 + sigma noise -> [x_0, noise]. The one place that knows what it predicts. */
  split(output: Float32Array, x: Float32Array, alpha: number, sigma: number): [Float32Array, Float32Array] {
    if (this.predictionType === "epsilon") return [divided(combined(1, x, -sigma, output), alpha), output];
    if (this.predictionType === "sample") return [output, divided(combined(1, x, -alpha, output), sigma)];
    return [combined(alpha, x, -sigma, output), combined(alpha, output, sigma, x)];
  }
}

/** a x + b y, each operation rounded to float32. */
export function combined(a: number, x: Float32Array, b: number, y: Float32Array): Float32Array {
  const [a32, b32] = [fround(a), fround(b)];
  return x.map((value, i) => fround(a32 * value) + fround(b32 * y[i]));
}

function divided(x: Float32Array, divisor: number): Float32Array {
  const divisor32 = fround(divisor);
  return x.map((value) => value / divisor32);
}

/** n timesteps, descending, by diffusers' timestep_spacing. */
export function spacedTimesteps(spacing: Spacing, n: number, trainTimesteps: number, stepsOffset: number): number[] {
  if (spacing === "leading") {
    const stride = Math.floor(trainTimesteps / n);
    return Array.from({ length: n }, (_, i) => (n - 1 - i) * stride + stepsOffset);
  }
  if (spacing === "trailing") {
    // numpy's arange goes on by the difference of its first two numbers, which is rounded
    const step = trainTimesteps - trainTimesteps / n - trainTimesteps;
    return Array.from({ length: n }, (_, i) => roundHalfEven(trainTimesteps + i * step) - 1);
  }
  return linspace(0, trainTimesteps - 1, n)
    .map(roundHalfEven)
    .reverse();
}

/** numpy.linspace, as float64. */
export function linspace(start: number, stop: number, n: number): number[] {
  const step = n > 1 ? (stop - start) / (n - 1) : NaN;
  return Array.from({ length: n }, (_, i) => (i && i === n - 1 ? stop : i ? i * step + start : start));
}

export function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

function makeBetas(schedule: (typeof BETA_SCHEDULES)[number], start: number, end: number, steps: number): Float32Array {
  if (schedule === "linear") return Float32Array.from(linspace(start, end, steps));
  if (schedule === "scaled_linear") {
    return Float32Array.from(linspace(Math.sqrt(start), Math.sqrt(end), steps)).map((root) => root * root);
  }
  const bar = (i: number) => Math.cos((((i / steps + 0.008) / 1.008) * Math.PI) / 2) ** 2;
  return Float32Array.from({ length: steps }, (_, i) => Math.min(1 - bar(i + 1) / bar(i), 0.999));
}

function trainedBetas(value: unknown, name: string): Float32Array {
  if (!Array.isArray(value) || !value.length || value.length > MAX_TRAIN_TIMESTEPS) {
    throw new RcdeployError(`${name} is ${shortened(value)}; it must be a list of 1 to ${MAX_TRAIN_TIMESTEPS} numbers`);
  }
  return Float32Array.from(value, (beta) => number(name, beta, 0, 1));
}

/** Cumulative products, each rounded to float32. */
function products(factors: Float32Array): Float32Array {
  let product = 1;
  return factors.map((factor) => (product = fround(product * factor)));
}

/** Shifts and stretches sqrt(alphas_cumprod) so that the last is 0 (Lin et al. 2023, algorithm 1). */
function toZeroSnr(alphas: Float32Array): Float32Array {
  const roots = alphas.map(Math.sqrt);
  const [first, last] = [roots[0], roots[roots.length - 1]];
  const stretch = fround(first / fround(first - last));
  const bars = roots.map((root) => fround(fround(root - last) * stretch) ** 2);
  // through ratios and back, as diffusers does: its last digit comes from there
  return products(bars.map((bar, t) => (t ? bar / bars[t - 1] : bar)));
}
