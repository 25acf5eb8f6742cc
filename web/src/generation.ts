/** The arguments of a generation, checked before anything is computed, and the record of how a picture was made. */

import { number, oneOf, shortened, text, wholeNumber } from "./checks.js";
import { RcdeployError } from "./errors.js";
import {
  MAX_PIXELS,
  MAX_GUIDANCE_SCALE,
  MAX_PROMPT_CHARACTERS,
  MAX_SEED,
  MAX_TRAIN_TIMESTEPS,
  MIN_SEED,
} from "./limits.js";
import { GENERATORS, type GeneratorName } from "./noise.js";
import type { SamplingDefaults } from "./manifest.js";
import { SAMPLERS, type SamplerName } from "./samplers.js";

export interface Step {
  /** UNet visits that are done, of all */
  completed: number;
  total: number;
  /** t of this one */
  timestep: number;
}

/** What is left out is the package's own, or stated here. */
export interface GenerateOptions {
  /** -2^63 to 2^64 - 1; beyond 2^53 as a bigint. By default a random one, which the record has. */
  seed?: number | bigint;
  steps?: number;
  /** in pixels */
  height?: number;
  width?: number;
  sampler?: SamplerName;
  /** classifier-free guidance; 1 or below skips the null branch and halves the work */
  guidanceScale?: number;
  /** takes the place of the null condition; "" by default */
  negativePrompt?: string;
  /** "philox" draws what numpy draws, "torch" what torch does, so that a seed gives diffusers' picture */
  generator?: GeneratorName;
  /** how much of the noise of ddim and tcd is fresh at each step, 0 to 1; 0 by default */
  eta?: number;
  /** cancels: between two steps, since a network that runs cannot be interrupted */
  signal?: AbortSignal;
  onStep?: (step: Step) => void;
}

/** How a picture was made, with the names of the Python runtime's record. */
export interface PictureRecord {
  prompts: [string];
  negative_prompt: string;
  /** a decimal string beyond 2^53, which JSON's numbers do not hold */
  seeds: [number | string];
  generator: GeneratorName;
  sampler: SamplerName;
  eta: number;
  num_inference_steps: number;
  guidance_scale: number;
  height: number;
  width: number;
  device: string;
  package: string;
  warnings: string[];
  seconds: { text: number; unet: number; decode: number; all: number };
}

/** The checked arguments of `generate`. */
export interface Settings {
  prompt: string;
  negativePrompt: string;
  seed: bigint;
  steps: number;
  height: number;
  width: number;
  sampler: SamplerName;
  guidanceScale: number;
  generator: GeneratorName;
  eta: number;
}

/** Sizes in pixels that a package draws: its own, and multiples of `multiple` unless it is fixed. */
export interface PictureSize {
  height: number;
  width: number;
  multiple: number;
  fixed: boolean;
}

/** @throws RcdeployError for the first argument that has a wrong type or lies out of range. */
export function checkSettings(
  size: PictureSize,
  sampling: SamplingDefaults,
  prompt: string,
  options: GenerateOptions,
): Settings {
  return {
    ...checkedSize(size, options),
    prompt: checkedPrompt("prompt", prompt),
    negativePrompt: checkedPrompt("negativePrompt", options.negativePrompt ?? ""),
    seed: checkedSeed(options.seed),
    steps: wholeNumber("steps", options.steps ?? sampling.numInferenceSteps, 1, MAX_TRAIN_TIMESTEPS),
    sampler: oneOf("sampler", options.sampler ?? sampling.sampler, SAMPLERS),
    guidanceScale: number("guidanceScale", options.guidanceScale ?? sampling.guidanceScale, 0, MAX_GUIDANCE_SCALE),
    generator: oneOf("generator", options.generator ?? "philox", GENERATORS),
    eta: number("eta", options.eta ?? 0, 0, 1),
  };
}

/** What of a record the settings say. */
export function settingsRecord(settings: Settings) {
  const exact = settings.seed >= Number.MIN_SAFE_INTEGER && settings.seed <= Number.MAX_SAFE_INTEGER;
  return {
    prompts: [settings.prompt] as [string],
    negative_prompt: settings.negativePrompt,
    seeds: [exact ? Number(settings.seed) : `${settings.seed}`] as [number | string],
    generator: settings.generator,
    sampler: settings.sampler,
    eta: settings.eta,
    num_inference_steps: settings.steps,
    guidance_scale: settings.guidanceScale,
    height: settings.height,
    width: settings.width,
  };
}

function checkedSize(size: PictureSize, options: GenerateOptions): { height: number; width: number } {
  const side = (name: "height" | "width") => {
    const pixels = wholeNumber(name, options[name] ?? size[name], 1, MAX_PIXELS);
    if (pixels % size.multiple) {
      const nearest = Math.max(size.multiple, Math.round(pixels / size.multiple) * size.multiple);
      throw new RcdeployError(
        `${name} is ${pixels}; this package draws multiples of ${size.multiple} pixels`,
        `Use ${nearest}.`,
      );
    }
    return pixels;
  };
  const chosen = { height: side("height"), width: side("width") };
  if (size.fixed && (chosen.height !== size.height || chosen.width !== size.width)) {
    throw new RcdeployError(
      `this package was exported for ${size.width} x ${size.height} pixels only`,
      "Export it without --static for any size.",
    );
  }
  checkPixels(chosen.height, chosen.width);
  return chosen;
}

/** @throws RcdeployError for a picture that would not fit into the memory of a browser. */
export function checkPixels(height: number, width: number): void {
  if (height * width <= MAX_PIXELS) return;
  throw new RcdeployError(
    `a picture has ${width} x ${height} pixels; at most ${MAX_PIXELS.toLocaleString("en")} fit into the 4 GiB of WebAssembly`,
    "Draw a smaller one, or draw with the Python runtime.",
  );
}

function checkedPrompt(name: string, prompt: unknown): string {
  if (text(name, prompt).length > MAX_PROMPT_CHARACTERS) {
    throw new RcdeployError(
      `${name} has ${(prompt as string).length} characters; at most ${MAX_PROMPT_CHARACTERS} are allowed`,
    );
  }
  if (/\p{Surrogate}/u.test(prompt as string)) {
    throw new RcdeployError(`${name} is no text that can be encoded: half of a pair of surrogates stands alone`);
  }
  return prompt as string;
}

function checkedSeed(seed: unknown): bigint {
  if (seed === undefined || seed === null) return BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);
  if (typeof seed !== "bigint" && !Number.isSafeInteger(seed)) {
    throw new RcdeployError(`seed is ${shortened(seed)}; it must be a whole number, beyond 2^53 a bigint`);
  }
  const value = BigInt(seed as number | bigint);
  if (value < MIN_SEED || value > MAX_SEED) throw new RcdeployError(`seed is ${value}; -2^63 to 2^64 - 1 are allowed`);
  return value;
}
