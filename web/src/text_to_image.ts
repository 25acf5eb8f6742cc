/** Text to image from a package: prompt -> embeddings -> denoising -> picture. */

import { oneOf, shortened } from "./checks.js";
import { RcdeployError } from "./errors.js";
import type { Source } from "./files.js";
import {
  checkSettings,
  settingsRecord,
  type GenerateOptions,
  type PictureRecord,
  type Settings,
} from "./generation.js";
import { guidanceEmbedding } from "./guidance.js";
import { toPicture, type Picture } from "./images.js";
import { noiseGenerator } from "./noise.js";
import { NoiseSchedule } from "./noise_schedule.js";
import { externalFiles } from "./onnx_file.js";
import { Package, type Component, type OpenOptions } from "./package.js";
import { makeSampler, type Sampler } from "./samplers.js";
import { BACKENDS, Engine, type EngineOptions, type Network } from "./sessions.js";
import { POOLED, TextEncoding, type Condition } from "./text_encoding.js";
import type { PromptTokenizer } from "./tokenizer.js";

export type LoadOptions = OpenOptions & EngineOptions;

/** A loaded package. */
export class TextToImage {
  readonly package: Package;
  private readonly text: TextEncoding;
  private readonly unet: Network;
  private readonly vaeDecoder: Network;
  /** settles when nothing is drawn any more */
  private idle: Promise<unknown> = Promise.resolve();

  private constructor(
    opened: Package,
    /** wasm or webgpu */
    readonly backend: string,
    private readonly schedule: NoiseSchedule,
    tokenizers: PromptTokenizer[],
    private readonly networks: ReadonlyMap<Component, Network>,
  ) {
    this.package = opened;
    const encoders = opened.components.filter((component) => component.startsWith("text_encoder"));
    this.text = new TextEncoding(
      tokenizers,
      encoders.map((name) => networks.get(name)!),
      opened.sdxl,
    );
    this.unet = networks.get("unet")!;
    this.vaeDecoder = networks.get("vae_decoder")!;
  }

  /**
   * @param source the URL of a package's folder, or its files.
   * @throws RcdeployError: the package is damaged, foreign, too big, or cannot be executed here; an AbortError when the
   *   signal aborts.
   */
  static async load(source: Source, options: LoadOptions = {}): Promise<TextToImage> {
    oneOf("backend", options.backend ?? "auto", BACKENDS);
    const opened = await Package.open(source, options);
    const schedule = new NoiseSchedule(await opened.scheduler());
    const tokenizers = await opened.readTokenizers();
    const engine = await Engine.start(options, opened.usesHalf);
    const networks = new Map<Component, Network>();
    try {
      for (const component of opened.components) {
        networks.set(component, await loadNetwork(engine, opened, component));
        options.signal?.throwIfAborted();
      }
    } catch (error) {
      await Promise.all([...networks.values()].map((network) => network.release()));
      throw error;
    }
    return new TextToImage(opened, engine.backend, schedule, tokenizers, networks);
  }

  /**
   * Draws a picture. Calls at the same time are drawn one after the other.
   * @throws RcdeployError: an argument is out of range or of a wrong type, or a network gave NaN; an AbortError when the
   *   signal aborts.
   */
  async generate(prompt: string, options: GenerateOptions = {}): Promise<{ image: Picture; record: PictureRecord }> {
    const settings = checkSettings(this.package.size, this.package.sampling, prompt, options);
    const generator = noiseGenerator(settings.seed, settings.generator);
    const count = this.latentDims(settings).reduce((product, side) => product * side);
    const noise = () => generator.standardNormal(count);
    const sampler = makeSampler(settings.sampler, this.schedule, settings.steps, noise, settings.eta);
    const drawn = this.idle.then(() => this.draw(settings, sampler, noise(), options));
    this.idle = drawn.catch(() => undefined);
    return drawn;
  }

  private async draw(
    settings: Settings,
    sampler: Sampler,
    noise: Float32Array,
    options: GenerateOptions,
  ): Promise<{ image: Picture; record: PictureRecord }> {
    const warnings: string[] = [];
    const started = performance.now();
    const conditions = await this.conditions(settings, warnings);
    const encoded = performance.now();
    const latents = await this.denoise(settings, sampler, noise, conditions, options);
    const denoised = performance.now();
    const image = await this.decode(latents, settings);
    const decoded = performance.now();
    const seconds = {
      text: (encoded - started) / 1000,
      unet: (denoised - encoded) / 1000,
      decode: (decoded - denoised) / 1000,
      all: (decoded - started) / 1000,
    };
    const { digest } = this.package;
    const record = { ...settingsRecord(settings), device: this.backend, package: digest, warnings, seconds };
    return { image, record };
  }

  /** Frees the networks; nothing can be drawn afterwards. */
  async release(): Promise<void> {
    await this.idle;
    await Promise.all([...this.networks.values()].map((network) => network.release()));
  }

  /** The conditions of the UNet's rows: the null condition, where it is needed, and the prompt's. */
  private async conditions(settings: Settings, warnings: string[]): Promise<Condition[]> {
    const condition = await this.text.condition(settings.prompt, warnings);
    const takesScale = this.package.guidanceWidth !== null;
    if (settings.negativePrompt && takesScale) {
      warnings.push("this model takes the guidance scale as an input: its negative prompt is left out");
    }
    if (settings.guidanceScale <= 1 || takesScale) return [condition];
    return [await this.text.nullCondition(settings.negativePrompt, warnings), condition];
  }

  /** [channels, height, width] of a picture's latents */
  private latentDims({ height, width }: Settings): number[] {
    const { latentShape, pixelsPerLatent } = this.package;
    return [latentShape[0], height / pixelsPerLatent, width / pixelsPerLatent];
  }

  private async denoise(
    settings: Settings,
    sampler: Sampler,
    noise: Float32Array,
    conditions: Condition[],
    { signal, onStep }: GenerateOptions,
  ): Promise<Float32Array> {
    let x = noise;
    for (const [i, t] of sampler.timesteps.entries()) {
      await turn(); // so that whoever cancels is heard, on a thread that only computes
      signal?.throwIfAborted();
      x = sampler.step(await this.predict(x, t, conditions, settings), i, x);
      onStep?.({ completed: i + 1, total: sampler.timesteps.length, timestep: t });
    }
    await turn();
    signal?.throwIfAborted();
    return x;
  }

  /** The UNet's output for x, guided where there are two conditions. */
  private async predict(
    x: Float32Array,
    t: number,
    conditions: Condition[],
    settings: Settings,
  ): Promise<Float32Array> {
    const { guidanceScale, height, width } = settings;
    const { guidanceWidth } = this.package;
    const { context } = this.text;
    const dims = this.latentDims(settings);
    const rows = conditions.map(({ embeds, pooled }) => ({
      sample: { data: x, dims },
      encoder_hidden_states: { data: embeds, dims: [context, embeds.length / context] },
      ...(guidanceWidth && {
        timestep_cond: { data: guidanceEmbedding(Math.max(guidanceScale, 1), guidanceWidth), dims: [guidanceWidth] },
      }),
      ...(pooled && {
        [POOLED]: { data: pooled, dims: [pooled.length] },
        time_ids: { data: [height, width, 0, 0, height, width], dims: [6] }, // neither cropped nor resized
      }),
    }));
    const [output] = await this.unet.run(rows, { timestep: { data: [t], dims: [] } }, { dims });
    if (output.length === 1) return output[0];
    const [none, conditional] = output;
    const scale = Math.fround(guidanceScale);
    return none.map((value, i) => value + Math.fround(scale * Math.fround(conditional[i] - value)));
  }

  private async decode(latents: Float32Array, settings: Settings): Promise<Picture> {
    const { height, width } = settings;
    const factor = Math.fround(this.package.scalingFactor);
    const dims = this.latentDims(settings);
    const sample = { latent_sample: { data: latents.map((value) => value / factor), dims } };
    const [[pixels]] = await this.vaeDecoder.run([sample], {}, { dims: [3, height, width] });
    return toPicture(pixels, width, height);
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

/** Lets the other tasks of this thread run. */
function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve));
}
