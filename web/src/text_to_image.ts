/** Text to image from a package: prompt -> embeddings -> denoising -> picture. */

import { number, oneOf, shortened, text, wholeNumber } from "./checks.js";
import { RcdeployError } from "./errors.js";
import { guidanceEmbedding } from "./guidance.js";
import { MAX_GUIDANCE_SCALE, MAX_PROMPT_CHARACTERS, MAX_SEED, MAX_TRAIN_TIMESTEPS, MIN_SEED } from "./limits.js";
import { GENERATORS, noiseGenerator, type GeneratorName } from "./noise.js";
import { NoiseSchedule, roundHalfEven } from "./noise_schedule.js";
import { externalFiles } from "./onnx_file.js";
import { Package, type Component, type OpenOptions } from "./package.js";
import { makeSampler, SAMPLERS, type Sampler, type SamplerName } from "./samplers.js";
import { BACKENDS, Engine, type EngineOptions, type Network } from "./sessions.js";
import { PromptTokenizer } from "./tokenizer.js";
import type { Source } from "./files.js";

const MAX_REMEMBERED_PROMPTS = 64;

export type LoadOptions = OpenOptions & EngineOptions;

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

/** RGBA, one byte each, row by row: an ImageData where there is one. */
export interface Picture {
  data: Uint8ClampedArray;
  width: number;
  height: number;
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

interface Settings {
  prompt: string;
  negativePrompt: string;
  seed: bigint;
  steps: number;
  sampler: SamplerName;
  guidanceScale: number;
  generator: GeneratorName;
  eta: number;
}

/** A loaded package. */
export class TextToImage {
  readonly package: Package;
  private readonly remembered = new Map<string, Float32Array>();

  private constructor(
    opened: Package,
    /** wasm or webgpu */
    readonly backend: string,
    private readonly schedule: NoiseSchedule,
    private readonly tokenizer: PromptTokenizer,
    private readonly networks: Record<Component, Network>,
  ) {
    this.package = opened;
  }

  /**
   * @param source the URL of a package's folder, or its files.
   * @throws RcdeployError: the package is damaged, foreign, too big, or cannot be executed here; an AbortError when the
   *   signal aborts.
   */
  static async load(source: Source, options: LoadOptions = {}): Promise<TextToImage> {
    oneOf("backend", options.backend ?? "auto", BACKENDS);
    const opened = await Package.open(source, options);
    const schedule = new NoiseSchedule(await opened.json("scheduler/scheduler_config.json"));
    const tokenizer = new PromptTokenizer(await opened.tokenizer(), await opened.json("tokenizer/tokenizer_config.json"));
    const engine = await Engine.start(options, opened.usesHalf);
    const loaded: Partial<Record<Component, Network>> = {};
    try {
      for (const component of ["text_encoder", "unet", "vae_decoder"] as const) {
        loaded[component] = await loadNetwork(engine, opened, component);
        options.signal?.throwIfAborted();
      }
    } catch (error) {
      await Promise.all(Object.values(loaded).map((network) => network.release()));
      throw error;
    }
    return new TextToImage(opened, engine.backend, schedule, tokenizer, loaded as Record<Component, Network>);
  }

  /**
   * Draws a picture.
   * @throws RcdeployError: an argument is out of range or of a wrong type, or a network gave NaN; an AbortError when the
   *   signal aborts.
   */
  async generate(prompt: string, options: GenerateOptions = {}): Promise<{ image: Picture; record: PictureRecord }> {
    const settings = this.checkSettings(prompt, options);
    const generator = noiseGenerator(settings.seed, settings.generator);
    const [channels, height, width] = this.package.latentShape;
    const noise = () => generator.standardNormal(channels * height * width);
    const sampler = makeSampler(settings.sampler, this.schedule, settings.steps, noise, settings.eta);
    const warnings: string[] = [];

    const started = performance.now();
    const condition = await this.condition(settings, warnings);
    const encoded = performance.now();
    const latents = await this.denoise(settings, sampler, noise(), condition, options);
    const denoised = performance.now();
    const image = await this.decode(latents);
    const decoded = performance.now();
    const seconds = {
      text: (encoded - started) / 1000,
      unet: (denoised - encoded) / 1000,
      decode: (decoded - denoised) / 1000,
      all: (decoded - started) / 1000,
    };
    return { image, record: this.record(settings, warnings, seconds) };
  }

  /** Frees the networks; nothing can be drawn afterwards. */
  async release(): Promise<void> {
    await Promise.all(Object.values(this.networks).map((network) => network.release()));
  }

  private checkSettings(prompt: string, options: GenerateOptions): Settings {
    const { sampling } = this.package;
    return {
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

  /** Embeddings of the UNet's rows: the null condition's, where it is needed, and the prompt's. */
  private async condition(settings: Settings, warnings: string[]): Promise<Float32Array[]> {
    const conditional = await this.embed(settings.prompt, warnings);
    const takesScale = this.package.guidanceWidth !== null;
    if (settings.negativePrompt && takesScale) {
      warnings.push("this model takes the guidance scale as an input: its negative prompt is left out");
    }
    if (settings.guidanceScale <= 1 || takesScale) return [conditional];
    return [await this.embed(settings.negativePrompt, warnings), conditional];
  }

  /** A prompt's embeddings, flat [context * width]. Known prompts are remembered. */
  private async embed(prompt: string, warnings: string[]): Promise<Float32Array> {
    const { ids, cut } = this.tokenizer.encode(prompt);
    if (cut) warnings.push(`the prompt has ${cut} tokens more than the ${ids.length} that fit; they were cut`);
    const known = this.remembered.get(prompt);
    if (known) return known;
    const row = { input_ids: { data: ids, dims: [ids.length] } };
    const [embeds] = await this.networks.text_encoder.run([row], {}, [ids.length, null]);
    if (this.remembered.size >= MAX_REMEMBERED_PROMPTS) this.remembered.delete(this.remembered.keys().next().value!);
    this.remembered.set(prompt, embeds);
    return embeds;
  }

  private async denoise(
    settings: Settings, sampler: Sampler, noise: Float32Array, condition: Float32Array[],
    { signal, onStep }: GenerateOptions,
  ): Promise<Float32Array> {
    let x = noise;
    for (const [i, t] of sampler.timesteps.entries()) {
      await turn(); // so that whoever cancels is heard, on a thread that only computes
      signal?.throwIfAborted();
      x = sampler.step(await this.predict(x, t, condition, settings.guidanceScale), i, x);
      onStep?.({ completed: i + 1, total: sampler.timesteps.length, timestep: t });
    }
    await turn();
    signal?.throwIfAborted();
    return x;
  }

  /** The UNet's output for x, guided where the condition has two rows. */
  private async predict(x: Float32Array, t: number, condition: Float32Array[], scale: number): Promise<Float32Array> {
    const { guidanceWidth, latentShape } = this.package;
    const context = this.tokenizer.context;
    const rows = condition.map((embeds) => ({
      sample: { data: x, dims: latentShape },
      encoder_hidden_states: { data: embeds, dims: [context, embeds.length / context] },
      ...(guidanceWidth && {
        timestep_cond: { data: guidanceEmbedding(Math.max(scale, 1), guidanceWidth), dims: [guidanceWidth] },
      }),
    }));
    const output = await this.networks.unet.run(rows, { timestep: { data: [t], dims: [] } }, latentShape);
    if (output.length === 1) return output[0];
    const [none, conditional] = output;
    const scale32 = Math.fround(scale);
    return none.map((value, i) => value + Math.fround(scale32 * Math.fround(conditional[i] - value)));
  }

  private async decode(latents: Float32Array): Promise<Picture> {
    const { height, width, latentShape, scalingFactor } = this.package;
    const factor = Math.fround(scalingFactor);
    const sample = { latent_sample: { data: latents.map((value) => value / factor), dims: latentShape } };
    const [pixels] = await this.networks.vae_decoder.run([sample], {}, [3, height, width]);
    return toPicture(pixels, width, height);
  }

  private record(settings: Settings, warnings: string[], seconds: PictureRecord["seconds"]): PictureRecord {
    const exact = settings.seed >= Number.MIN_SAFE_INTEGER && settings.seed <= Number.MAX_SAFE_INTEGER;
    return {
      prompts: [settings.prompt],
      negative_prompt: settings.negativePrompt,
      seeds: [exact ? Number(settings.seed) : `${settings.seed}`],
      generator: settings.generator,
      sampler: settings.sampler,
      eta: settings.eta,
      num_inference_steps: settings.steps,
      guidance_scale: settings.guidanceScale,
      height: this.package.height,
      width: this.package.width,
      device: this.backend,
      package: this.package.digest,
      warnings,
      seconds,
    };
  }
}

async function loadNetwork(engine: Engine, from: Package, component: Component): Promise<Network> {
  const name = `${component}/model.onnx`;
  const model = await from.file(name);
  const listed = from.externalFiles(component);
  const externalData: { path: string; data: Uint8Array<ArrayBuffer> }[] = [];
  for (const path of externalFiles(model, name)) {
    if (!listed.includes(`${component}/${path}`)) {
      throw new RcdeployError(`${name} needs ${shortened(path)}, which is not in the package`, "Export it anew.");
    }
    externalData.push({ path, data: await from.file(`${component}/${path}`) });
  }
  from.reportPreparing(name);
  return engine.load(component, model, externalData);
}

/** [3, height, width] in [-1, 1], clipped -> RGBA. */
function toPicture(pixels: Float32Array, width: number, height: number): Picture {
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

function checkedPrompt(name: string, prompt: unknown): string {
  if (text(name, prompt).length > MAX_PROMPT_CHARACTERS) {
    throw new RcdeployError(`${name} has ${(prompt as string).length} characters; at most ${MAX_PROMPT_CHARACTERS} are allowed`);
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

/** Lets the other tasks of this thread run. */
function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve));
}
