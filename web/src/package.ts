/** A package is data: opened, checked, and nothing of it is read that its manifest does not list. */

import { isObject, number, object, parsedJson, shortened, text, wholeNumber, type JsonObject } from "./checks.js";
import { RcdeployError } from "./errors.js";
import { browserCache, fileSource, readFile, sha256, type FileCache, type FileSource, type Source } from "./files.js";
import {
  DEFAULT_MAX_BYTES, MAX_FILE_BYTES, MAX_GUIDANCE_SCALE, MAX_JSON_BYTES, MAX_LATENT_SIDE, MAX_PIXELS,
  MAX_PIXELS_PER_LATENT, MAX_SCALING_FACTOR, MAX_TOKENIZER_BYTES, MAX_TRAIN_TIMESTEPS, MAX_WASM_BYTES,
} from "./limits.js";

const MANIFEST = "manifest.json";
const SCHEMA_VERSION = 1;
export const COMPONENTS = ["text_encoder", "unet", "vae_decoder"] as const;
export type Component = (typeof COMPONENTS)[number];
const SHARED_FILES = ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"];

export interface LoadProgress {
  /** the file that is being read */
  file: string;
  /** bytes that are there, of all that are needed */
  loaded: number;
  total: number;
  /** of these, bytes that did not come from the cache */
  downloaded: number;
  /** the file is there, and its network is being made */
  preparing: boolean;
}

export interface OpenOptions {
  signal?: AbortSignal;
  onProgress?: (progress: LoadProgress) => void;
  /** where files are remembered by their digest; by default Cache Storage where there is one. null: nowhere. */
  cache?: FileCache | null;
  /** most bytes of all files that are opened; 1 GiB by default */
  maxBytes?: number;
  /** "sha256:...", which `rcdeploy package digest` prints: open that very package and no other */
  digest?: string;
}

/** How a package wants to be sampled. Those that record nothing have the paper's: 25 steps of DDIM, guidance 7.5. */
export interface SamplingDefaults {
  sampler: string;
  numInferenceSteps: number;
  guidanceScale: number;
}

export class Package {
  readonly facts: JsonObject;
  readonly sampling: SamplingDefaults;
  /** [channels, height, width] of its own size */
  readonly latentShape: readonly [number, number, number];
  readonly scalingFactor: number;
  readonly pixelsPerLatent: number;
  /** of its pictures, in pixels */
  readonly height: number;
  readonly width: number;
  /** of the embedding of the guidance scale that its UNet takes; null where it takes none */
  readonly guidanceWidth: number | null;
  private readonly files: Map<string, { sha256: string; size: number }>;
  private readonly progress: LoadProgress;

  private constructor(
    private readonly source: FileSource,
    manifest: JsonObject,
    /** "sha256:...", of manifest.json and so of every file that it lists */
    readonly digest: string,
    private readonly options: OpenOptions,
  ) {
    checkKind(manifest, source.name);
    this.files = listedFiles(object(`${MANIFEST}: files`, manifest.files));
    this.facts = object(`${MANIFEST}: facts`, manifest.facts);
    this.checkFormat();
    const latents = object(`${MANIFEST}: latents`, manifest.latents);
    this.latentShape = latentShape(latents.shape);
    this.scalingFactor = number("latents.scaling_factor", latents.scaling_factor, Number.MIN_VALUE, MAX_SCALING_FACTOR);
    this.pixelsPerLatent = wholeNumber("facts.pixels_per_latent", this.facts.pixels_per_latent, 1, MAX_PIXELS_PER_LATENT);
    this.guidanceWidth =
      this.facts.guidance_embedding == null
        ? null
        : wholeNumber("facts.guidance_embedding", this.facts.guidance_embedding, 4, MAX_LATENT_SIDE);
    this.sampling = samplingDefaults(this.facts.sampling);
    [this.height, this.width] = [this.latentShape[1] * this.pixelsPerLatent, this.latentShape[2] * this.pixelsPerLatent];
    if (this.height * this.width > MAX_PIXELS) {
      throw new RcdeployError(
        `${source.name} draws pictures of ${this.width} x ${this.height} pixels; ` +
          `at most ${MAX_PIXELS.toLocaleString("en")} pixels fit into the 4 GiB that WebAssembly has`,
        "Export it for a smaller size (rcdeploy export --size), or draw with the Python runtime.",
      );
    }
    this.progress = { file: MANIFEST, loaded: 0, total: this.checkSize(), downloaded: 0, preparing: false };
  }

  /** @throws RcdeployError: the package is damaged (the file is named), newer, foreign, too big, or of another digest. */
  static async open(source: Source, options: OpenOptions = {}): Promise<Package> {
    const from = fileSource(source);
    if (options.digest !== undefined && !/^sha256:[0-9a-f]{64}$/i.test(options.digest)) {
      throw new RcdeployError(`digest is ${shortened(options.digest)}; it must be sha256: and 64 hex digits`);
    }
    const bytes = await readFile(from, MANIFEST, MAX_JSON_BYTES, { signal: options.signal });
    const digest = `sha256:${await sha256(bytes)}`;
    if (options.digest !== undefined && digest !== options.digest.toLowerCase()) {
      throw new RcdeployError(`${from.name} is not the expected package: its digest is ${digest}`);
    }
    const cache = options.cache === undefined ? browserCache() : options.cache;
    return new Package(from, parsedJson(MANIFEST, bytes), digest, { ...options, cache });
  }

  /** The names of a component's files besides its network and its config: those that may hold external weights. */
  externalFiles(component: Component): string[] {
    const others = [`${component}/model.onnx`, `${component}/config.json`];
    return [...this.files.keys()].filter((name) => name.startsWith(`${component}/`) && !others.includes(name));
  }

  /** The bytes of a file that the manifest lists, compared with its digest: the one door to a package's files. */
  async file(name: string): Promise<Uint8Array<ArrayBuffer>> {
    const { progress, source } = this;
    const { cache, onProgress, signal } = this.options;
    const expected = this.files.get(name);
    if (!expected) throw new RcdeployError(`${source.name}: ${name} is not in its manifest`, "Export it anew.");
    const report = (count: number) => {
      Object.assign(progress, { file: name, loaded: progress.loaded + count, preparing: false });
      onProgress?.({ ...progress });
    };
    signal?.throwIfAborted();
    const known = await cache?.get(expected.sha256).catch(() => undefined);
    if (known?.length === expected.size && (await sha256(known)) === expected.sha256) {
      report(known.length);
      return known;
    }
    const bytes = await readFile(source, name, expected.size, {
      signal,
      onBytes: (count) => {
        progress.downloaded += count;
        report(count);
      },
    });
    if (bytes.length !== expected.size) {
      throw new RcdeployError(
        `${source.name}: ${name} has ${bytes.length} bytes, its manifest says ${expected.size}`,
        "It was cut short or changed. Copy the whole package again.",
      );
    }
    if ((await sha256(bytes)) !== expected.sha256) {
      throw new RcdeployError(
        `${source.name}: the contents of ${name} are not those that were packed`,
        "It was damaged or changed. Copy the whole package again, or export it anew.",
      );
    }
    await cache?.put(expected.sha256, bytes).catch(() => undefined); // no room: it is downloaded again next time
    return bytes;
  }

  /** Reports that the network of a file, which is there, is being made. */
  reportPreparing(name: string): void {
    Object.assign(this.progress, { file: name, preparing: true });
    this.options.onProgress?.({ ...this.progress });
  }

  /** The object in a JSON file that the manifest lists. */
  async json(name: string, maxBytes = MAX_JSON_BYTES): Promise<JsonObject> {
    const size = this.files.get(name)?.size ?? 0;
    if (size > maxBytes) throw new RcdeployError(`${name} is too large to be what it is called (${size} bytes)`);
    return parsedJson(`${this.source.name}: ${name}`, await this.file(name));
  }

  tokenizer(): Promise<JsonObject> {
    return this.json("tokenizer/tokenizer.json", MAX_TOKENIZER_BYTES);
  }

  /** The captions that the model is used with, one a line; none where the package carries none as text. */
  async captions(): Promise<string[]> {
    const name = this.facts.captions;
    if (typeof name !== "string" || !name.endsWith(".txt") || !this.files.has(name)) return [];
    const lines = new TextDecoder().decode(await this.file(name)).split("\n");
    return lines.map((line) => line.trim()).filter(Boolean);
  }

  /** Whether a network computes in fp16. */
  get usesHalf(): boolean {
    return isObject(this.facts.precision) && Object.values(this.facts.precision).includes("fp16");
  }

  private checkFormat(): void {
    const { format, sdxl } = this.facts;
    if (format !== "onnx") {
      throw new RcdeployError(
        `${this.source.name} has the format ${shortened(format)}; browsers run onnx`, "rcdeploy export RUN --format onnx",
      );
    }
    if (sdxl != null) {
      throw new RcdeployError(
        `${this.source.name} has two text encoders (SDXL), which this runtime does not know yet`,
        "Draw with the Python runtime.",
      );
    }
  }

  /** Bytes of all files that are opened. Throws when a file is missing, or when they are more than a browser takes. */
  private checkSize(): number {
    const networks = COMPONENTS.map((component) => `${component}/model.onnx`);
    for (const name of [...SHARED_FILES, ...networks]) {
      if (!this.files.has(name)) {
        throw new RcdeployError(`${this.source.name}: its manifest lists no ${name}`, "Export it anew.");
      }
    }
    const needed = [...SHARED_FILES, ...networks, ...COMPONENTS.flatMap((component) => this.externalFiles(component))];
    const sizes = needed.map((name) => this.files.get(name)!.size);
    const total = sizes.reduce((sum, size) => sum + size, 0);
    const large = needed.find((_, i) => sizes[i] > MAX_FILE_BYTES);
    const inWords = (bytes: number) => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
    if (large) {
      throw new RcdeployError(
        `${this.source.name}: ${large} has ${inWords(this.files.get(large)!.size)}; browsers hold less than 2 GiB in one file`,
        "Export it in fp16, or with external data.",
      );
    }
    if (total > MAX_WASM_BYTES) {
      throw new RcdeployError(
        `${this.source.name} needs ${inWords(total)}; WebAssembly has 4 GiB, of which networks may take 2`,
        "Export it in fp16 or int8, or distil a smaller student.",
      );
    }
    const most = this.options.maxBytes ?? DEFAULT_MAX_BYTES;
    if (total > number("maxBytes", most, 0, Number.MAX_SAFE_INTEGER)) {
      throw new RcdeployError(
        `${this.source.name} needs ${total.toLocaleString("en")} bytes; maxBytes allows ${most.toLocaleString("en")}`,
        "Raise maxBytes (2 GiB at most), or export the package in fp16 or int8.",
      );
    }
    return total;
  }
}

function checkKind(manifest: JsonObject, source: string): void {
  const { kind, schema_version: version } = manifest;
  if (typeof kind !== "string") throw new RcdeployError(`${source}: ${MANIFEST} is no manifest of rcdeploy`);
  if (!Number.isInteger(version) || (version as number) < 1 || (version as number) > SCHEMA_VERSION) {
    throw new RcdeployError(
      `${source} has schema version ${shortened(version)}; this runtime reads up to ${SCHEMA_VERSION}`, "Upgrade rcdeploy-web.",
    );
  }
  if (kind !== "package") {
    throw new RcdeployError(`${source} is a ${shortened(kind)}, not a package`, "Make one with: rcdeploy export RUN");
  }
}

function listedFiles(files: JsonObject): Map<string, { sha256: string; size: number }> {
  const listed = new Map<string, { sha256: string; size: number }>();
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

/** Whether a name is a plain relative path: nothing that leads elsewhere in a file system or a URL. */
export function isInside(name: string): boolean {
  return name.split("/").every((part) => /^[\w.+=, -]+$/.test(part) && !/^\.+$/.test(part));
}

function latentShape(shape: unknown): [number, number, number] {
  if (!Array.isArray(shape) || shape.length !== 3) {
    throw new RcdeployError(`latents.shape is ${shortened(shape)}; it must be channels, height and width`);
  }
  return shape.map((side, i) => wholeNumber(`latents.shape[${i}]`, side, 1, MAX_LATENT_SIDE)) as [number, number, number];
}

function samplingDefaults(sampling: unknown): SamplingDefaults {
  const { sampler = "ddim", num_inference_steps = 25, guidance_scale = 7.5 } = isObject(sampling) ? sampling : {};
  return {
    sampler: text("facts.sampling.sampler", sampler),
    numInferenceSteps: wholeNumber("facts.sampling.num_inference_steps", num_inference_steps, 1, MAX_TRAIN_TIMESTEPS),
    guidanceScale: number("facts.sampling.guidance_scale", guidance_scale, 0, MAX_GUIDANCE_SCALE),
  };
}
