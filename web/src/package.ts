/** A package is data: opened, checked, and nothing of it is read that its manifest does not list. */

import { isObject, number, object, parsedJson, shortened, wholeNumber, type JsonObject } from "./checks.js";
import { RcdeployError } from "./errors.js";
import { checkPixels, type PictureSize } from "./generation.js";
import { browserCache, fileSource, readFile, sha256, type FileCache, type FileSource, type Source } from "./files.js";
import {
  DEFAULT_MAX_BYTES,
  MAX_FILE_BYTES,
  MAX_JSON_BYTES,
  MAX_LATENT_SIDE,
  MAX_PIXELS_PER_LATENT,
  MAX_SCALING_FACTOR,
  MAX_TOKENIZER_BYTES,
  MAX_WASM_BYTES,
} from "./limits.js";
import {
  checkKind,
  latentShape,
  listedFiles,
  MANIFEST,
  samplingDefaults,
  sdxlFacts,
  type ListedFile,
  type SamplingDefaults,
  type SdxlFacts,
} from "./manifest.js";
import { PromptTokenizer } from "./tokenizer.js";

const MAX_PACKAGE_SIDE = MAX_PIXELS_PER_LATENT * MAX_LATENT_SIDE;
export type Component = "text_encoder" | "text_encoder_2" | "unet" | "vae_decoder";
const SCHEDULER = "scheduler/scheduler_config.json";

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

export class Package {
  readonly facts: JsonObject;
  readonly sampling: SamplingDefaults;
  readonly sdxl: SdxlFacts | null;
  /** [channels, height, width] of its own size */
  readonly latentShape: readonly [number, number, number];
  readonly scalingFactor: number;
  readonly pixelsPerLatent: number;
  readonly size: PictureSize;
  /** of the embedding of the guidance scale that its UNet takes; null where it takes none */
  readonly guidanceWidth: number | null;
  private readonly files: Map<string, ListedFile>;
  /** the files that drawing needs, whose progress is reported */
  private readonly needed: string[];
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
    this.pixelsPerLatent = wholeNumber(
      "facts.pixels_per_latent",
      this.facts.pixels_per_latent,
      1,
      MAX_PIXELS_PER_LATENT,
    );
    this.guidanceWidth =
      this.facts.guidance_embedding == null
        ? null
        : wholeNumber("facts.guidance_embedding", this.facts.guidance_embedding, 4, MAX_LATENT_SIDE);
    this.sdxl = sdxlFacts(this.facts.sdxl);
    this.sampling = samplingDefaults(this.facts.sampling);
    this.size = this.pictureSize();
    this.needed = this.neededFiles();
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
    const report = (count: number, downloaded: number) => {
      if (!this.needed.includes(name)) return;
      Object.assign(progress, { file: name, preparing: false });
      progress.loaded += count;
      progress.downloaded += downloaded;
      onProgress?.({ ...progress });
    };
    signal?.throwIfAborted();
    const known = await cache?.get(expected.sha256).catch(() => undefined);
    if (known?.length === expected.size && (await sha256(known)) === expected.sha256) {
      report(known.length, 0);
      return known;
    }
    const bytes = await readFile(source, name, expected.size, { signal, onBytes: (count) => report(count, count) });
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

  /** The tokenizers, of as many text encoders. */
  readTokenizers(): Promise<PromptTokenizer[]> {
    const read = async (name: string) => {
      const data = await this.json(`${name}/tokenizer.json`, MAX_TOKENIZER_BYTES);
      return new PromptTokenizer(data, await this.json(`${name}/tokenizer_config.json`));
    };
    return Promise.all(this.tokenizers.map(read));
  }

  /** The noise schedule's configuration. */
  scheduler(): Promise<JsonObject> {
    return this.json(SCHEDULER);
  }

  get components(): Component[] {
    return ["text_encoder", ...(this.sdxl ? ["text_encoder_2" as const] : []), "unet", "vae_decoder"];
  }

  private get tokenizers(): string[] {
    return this.sdxl ? ["tokenizer", "tokenizer_2"] : ["tokenizer"];
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

  private pictureSize(): PictureSize {
    const { size_multiple, static_size: fixed } = this.facts;
    if (fixed != null && !(Array.isArray(fixed) && fixed.length === 2)) {
      throw new RcdeployError(`facts.static_size is ${shortened(fixed)}; it must be a height and a width`);
    }
    const own = fixed ?? this.latentShape.slice(1).map((side) => side * this.pixelsPerLatent);
    const [height, width] = own.map((side: unknown) => wholeNumber("facts.static_size", side, 1, MAX_PACKAGE_SIDE));
    const multiple = wholeNumber("facts.size_multiple", size_multiple, 1, MAX_PACKAGE_SIDE);
    if (multiple % this.pixelsPerLatent) {
      throw new RcdeployError(`facts.size_multiple is ${multiple}, which is no whole number of latents`);
    }
    if (fixed) checkPixels(height, width); // of others a smaller picture may be drawn
    return { height, width, multiple, fixed: fixed != null };
  }

  private checkFormat(): void {
    if (this.facts.format !== "onnx") {
      throw new RcdeployError(
        `${this.source.name} has the format ${shortened(this.facts.format)}; browsers run onnx`,
        "rcdeploy export RUN --format onnx",
      );
    }
  }

  private neededFiles(): string[] {
    const tokenizers = this.tokenizers.flatMap((name) => [`${name}/tokenizer.json`, `${name}/tokenizer_config.json`]);
    const networks = this.components.map((component) => `${component}/model.onnx`);
    for (const name of [...tokenizers, SCHEDULER, ...networks]) {
      if (!this.files.has(name)) {
        throw new RcdeployError(`${this.source.name}: its manifest lists no ${name}`, "Export it anew.");
      }
    }
    const external = this.components.flatMap((component) => this.externalFiles(component));
    return [...tokenizers, SCHEDULER, ...networks, ...external];
  }

  /** Bytes of all files that are opened. Throws when they are more than a browser takes. */
  private checkSize(): number {
    const size = (name: string) => this.files.get(name)!.size;
    const total = this.needed.reduce((sum, name) => sum + size(name), 0);
    const large = this.needed.find((name) => size(name) > MAX_FILE_BYTES);
    const inWords = (bytes: number) => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
    if (large) {
      throw new RcdeployError(
        `${this.source.name}: ${large} has ${inWords(size(large))}; browsers hold less than 2 GiB in one file`,
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
