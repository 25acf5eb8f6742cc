/** TextToImage on a thread of its own, so that the page stays responsive while networks are loaded and run. */

import { RcdeployError } from "./errors.js";
import type { Source } from "./files.js";
import type { GenerateOptions, PictureRecord, Step } from "./generation.js";
import type { Picture } from "./images.js";
import type { Answer, PackageDescription, PostedLoadOptions, Request } from "./messages.js";
import type { LoadProgress } from "./package.js";

export type { PackageDescription } from "./messages.js";

export type WorkerLoadOptions = PostedLoadOptions & {
  signal?: AbortSignal;
  onProgress?: (progress: LoadProgress) => void;
  /** a module worker that runs rcdeploy-web/worker; by default one is started from the file beside this one */
  worker?: Worker;
};

/** Distributes over the members of a union. */
type WithoutId<T> = T extends unknown ? Omit<T, "id"> : never;

interface Waiting {
  resolve: (answer: Answer) => void;
  reject: (error: unknown) => void;
  onAnswer: (answer: Answer) => void;
}

/** A package that a worker has loaded. Requests are answered one after the other. */
export class TextToImageWorker {
  private readonly waiting = new Map<number, Waiting>();
  private lastId = 0;
  private closed: Error | null = null;
  private loaded: PackageDescription | null = null;

  private constructor(private readonly worker: Worker) {
    worker.addEventListener("message", ({ data }: MessageEvent<Answer>) => this.receive(data));
    worker.addEventListener("error", (event) => {
      this.fail(new RcdeployError(`the worker stopped: ${event.message || "its script cannot be loaded"}`));
    });
  }

  /** As TextToImage.load; `source` must be a URL or a Map of files, which can be handed to a worker. */
  static async load(
    source: Exclude<Source, { open: unknown }>,
    options: WorkerLoadOptions = {},
  ): Promise<TextToImageWorker> {
    const { signal, onProgress, worker, ...others } = options;
    signal?.throwIfAborted();
    const client = new TextToImageWorker(
      worker ?? new Worker(new URL("./worker.js", import.meta.url), { type: "module" }),
    );
    // an address is relative to the page, not to the worker's script
    const posted = source instanceof Map ? source : new URL(source as string | URL, location.href).href;
    const onAnswer = (answer: Answer) => answer.kind === "progress" && onProgress?.(answer.progress);
    // a worker that makes a network hears nothing: it is ended, not asked
    const cancel = () => client.fail(new DOMException("loading was cancelled", "AbortError"));
    signal?.addEventListener("abort", cancel);
    try {
      const answer = await client.request({ kind: "load", source: posted, options: others }, onAnswer);
      if (answer.kind === "loaded") client.loaded = answer.description;
    } catch (error) {
      client.close();
      throw error;
    } finally {
      signal?.removeEventListener("abort", cancel);
    }
    return client;
  }

  get description(): PackageDescription {
    return this.loaded!;
  }

  /** As TextToImage.generate. */
  async generate(prompt: string, options: GenerateOptions = {}): Promise<{ image: Picture; record: PictureRecord }> {
    const { signal, onStep, ...others } = options;
    const onAnswer = (answer: Answer) => answer.kind === "step" && onStep?.(answer.step as Step);
    const answer = await this.request({ kind: "generate", prompt, options: others }, onAnswer, signal);
    if (answer.kind !== "drawn") throw new Error(`the worker answered ${answer.kind}`);
    return { image: answer.image, record: answer.record };
  }

  /** Ends the worker, whatever it does. What is still waited for fails. */
  close(): void {
    this.worker.terminate();
    this.fail(new RcdeployError("the worker was closed"));
  }

  private request(
    request: WithoutId<Exclude<Request, { kind: "cancel" }>>,
    onAnswer: (answer: Answer) => void,
    signal?: AbortSignal,
  ): Promise<Answer> {
    signal?.throwIfAborted();
    if (this.closed) throw this.closed;
    const id = ++this.lastId;
    const cancel = () => this.worker.postMessage({ id, kind: "cancel" } satisfies Request);
    signal?.addEventListener("abort", cancel);
    const answer = new Promise<Answer>((resolve, reject) => this.waiting.set(id, { resolve, reject, onAnswer }));
    this.worker.postMessage({ id, ...request });
    return answer.finally(() => signal?.removeEventListener("abort", cancel));
  }

  private receive(answer: Answer): void {
    const waiting = this.waiting.get(answer.id);
    if (!waiting) return;
    if (answer.kind === "progress" || answer.kind === "step") return waiting.onAnswer(answer);
    this.waiting.delete(answer.id);
    if (answer.kind !== "failed") waiting.resolve(answer);
    else if (answer.problem !== undefined) waiting.reject(new RcdeployError(answer.problem, answer.fix));
    else if (answer.name === "AbortError") waiting.reject(new DOMException(answer.message, "AbortError"));
    else waiting.reject(Object.assign(new Error(answer.message), { name: answer.name }));
  }

  private fail(error: Error): void {
    this.closed ??= error;
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }
}
