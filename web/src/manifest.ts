/** manifest.json, from a stranger: what kind of folder it is of, its files, and how the model wants to be sampled. */

import { isObject, number, object, oneOf, shortened, text, wholeNumber, type JsonObject } from "./checks.js";
import { RcdeployError } from "./errors.js";
import { MAX_GUIDANCE_SCALE, MAX_LATENT_SIDE, MAX_TRAIN_TIMESTEPS } from "./limits.js";

export const MANIFEST = "manifest.json";
const SCHEMA_VERSION = 1;

export interface ListedFile {
  sha256: string;
  /** in bytes */
  size: number;
}

/** How a package wants to be sampled. Those that record nothing have the paper's: 25 steps of DDIM, guidance 7.5. */
export interface SamplingDefaults {
  sampler: string;
  numInferenceSteps: number;
  guidanceScale: number;
}

/** How a package with two text encoders reads a prompt. */
export interface SdxlFacts {
  /** names of the outputs of both that make up the prompt's embeddings */
  hiddenStates: readonly [string, string];
  /** the null condition is zeros */
  zerosForEmptyPrompt: boolean;
}

/** @throws RcdeployError for what is no package, or a newer one. */
export function checkKind(manifest: JsonObject, source: string): void {
  const { kind, schema_version: version } = manifest;
  if (typeof kind !== "string") throw new RcdeployError(`${source}: ${MANIFEST} is no manifest of rcdeploy`);
  if (!Number.isInteger(version) || (version as number) < 1 || (version as number) > SCHEMA_VERSION) {
    throw new RcdeployError(
      `${source} has schema version ${shortened(version)}; this runtime reads up to ${SCHEMA_VERSION}`,
      "Upgrade rcdeploy-web.",
    );
  }
  if (kind !== "package") {
    throw new RcdeployError(`${source} is a ${shortened(kind)}, not a package`, "Make one with: rcdeploy export RUN");
  }
}

/** The files that a manifest lists, by their names. */
export function listedFiles(files: JsonObject): Map<string, ListedFile> {
  const listed = new Map<string, ListedFile>();
  for (const [name, entry] of Object.entries(files)) {
    if (!isInside(name)) throw new RcdeployError(`${MANIFEST}: ${shortened(name)} is no path inside the package`);
    const { sha256: digest, size } = isObject(entry) ? entry : {};
    if (!/^[0-9a-f]{64}$/.test(text(`files.${name}.sha256`, digest))) {
      throw new RcdeployError(`${MANIFEST}: files.${name}.sha256 is no digest`);
    }
    listed.set(name, {
      sha256: digest as string,
      size: wholeNumber(`files.${name}.size`, size, 0, Number.MAX_SAFE_INTEGER),
    });
  }
  return listed;
}

/** Whether a name is a relative path that stays below its folder, in any file system; in URLs it is escaped. */
export function isInside(name: string): boolean {
  return name.split("/").every((part) => /^[^\\:\0]+$/.test(part) && !/^\.+$/.test(part));
}

/** [channels, height, width] */
export function latentShape(shape: unknown): [number, number, number] {
  if (!Array.isArray(shape) || shape.length !== 3) {
    throw new RcdeployError(`latents.shape is ${shortened(shape)}; it must be channels, height and width`);
  }
  return shape.map((side, i) => wholeNumber(`latents.shape[${i}]`, side, 1, MAX_LATENT_SIDE)) as [
    number,
    number,
    number,
  ];
}

export function samplingDefaults(sampling: unknown): SamplingDefaults {
  const { sampler = "ddim", num_inference_steps = 25, guidance_scale = 7.5 } = isObject(sampling) ? sampling : {};
  return {
    sampler: text("facts.sampling.sampler", sampler),
    numInferenceSteps: wholeNumber("facts.sampling.num_inference_steps", num_inference_steps, 1, MAX_TRAIN_TIMESTEPS),
    guidanceScale: number("facts.sampling.guidance_scale", guidance_scale, 0, MAX_GUIDANCE_SCALE),
  };
}

/** null for a package with one text encoder. */
export function sdxlFacts(sdxl: unknown): SdxlFacts | null {
  if (sdxl == null) return null;
  const { hidden_states: names, zeros_for_empty_prompt: zeros } = object("facts.sdxl", sdxl);
  if (!Array.isArray(names) || names.length !== 2) {
    throw new RcdeployError(`facts.sdxl.hidden_states is ${shortened(names)}; it must be two names`);
  }
  const hiddenStates = names.map((name) => text("facts.sdxl.hidden_states", name)) as [string, string];
  return { hiddenStates, zerosForEmptyPrompt: oneOf("facts.sdxl.zeros_for_empty_prompt", zeros, [true, false]) };
}
