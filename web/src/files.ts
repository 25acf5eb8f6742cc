/** Where the files of a package come from, and how they are read: streamed, never beyond the size that was stated. */

import { RcdeployError } from "./errors.js";

export interface FileSource {
  /** for messages */
  readonly name: string;
  /** The bytes of a file of the package. `file` is a relative path that was checked. */
  open(file: string, signal?: AbortSignal): Promise<ReadableStream<Uint8Array>>;
}

/** A URL of a package's folder, the files of one that a user chose (relative path -> Blob), or a source of your own. */
export type Source = string | URL | ReadonlyMap<string, Blob> | FileSource;

export function fileSource(source: Source): FileSource {
  if (typeof source === "string" || source instanceof URL) return new UrlSource(source);
  if (source instanceof Map) return new BlobSource(source);
  return source as FileSource;
}

class UrlSource implements FileSource {
  readonly name: string;
  private readonly folder: URL;

  constructor(url: string | URL) {
    const base = typeof location === "undefined" ? undefined : location.href;
    try {
      this.folder = new URL(url, base);
    } catch {
      throw new RcdeployError(`${url} is no URL of a package's folder`);
    }
    this.folder.pathname = this.folder.pathname.replace(/\/*$/, "/");
    this.name = this.folder.href;
  }

  async open(file: string, signal?: AbortSignal): Promise<ReadableStream<Uint8Array>> {
    const url = new URL(this.folder);
    url.pathname += file.split("/").map(encodeURIComponent).join("/");
    let response: Response;
    try {
      response = await fetch(url, { signal, cache: "no-cache" }); // a stale file would not have the manifest's digest
    } catch (error) {
      signal?.throwIfAborted();
      throw new RcdeployError(
        `${url.href} cannot be fetched: ${(error as Error).message}`,
        "Is the address right, and does its server allow other origins (CORS)?",
      );
    }
    if (!response.ok || !response.body) {
      throw new RcdeployError(`${url.href} was answered with ${response.status}`, "Copy the whole package there.");
    }
    return response.body;
  }
}

class BlobSource implements FileSource {
  readonly name = "the chosen folder";

  constructor(private readonly files: ReadonlyMap<string, Blob>) {}

  async open(file: string): Promise<ReadableStream<Uint8Array>> {
    const blob = this.files.get(file);
    if (!blob)
      throw new RcdeployError(`${this.name} has no ${file}`, "Choose the folder of a package, with all its files.");
    return blob.stream();
  }
}

export interface ReadOptions {
  signal?: AbortSignal;
  /** called with the number of bytes of each chunk */
  onBytes?: (count: number) => void;
}

/** All bytes of a file. @throws RcdeployError when it has more than maxBytes; reading stops there. */
export async function readFile(
  source: FileSource,
  file: string,
  maxBytes: number,
  { signal, onBytes }: ReadOptions = {},
): Promise<Uint8Array<ArrayBuffer>> {
  signal?.throwIfAborted();
  const reader = (await source.open(file, signal)).getReader();
  const chunks: Uint8Array[] = [];
  let size = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      signal?.throwIfAborted();
      if (done) break;
      size += value.length;
      if (size > maxBytes) {
        throw new RcdeployError(`${source.name}: ${file} has more than ${maxBytes.toLocaleString("en")} bytes`);
      }
      chunks.push(value);
      onBytes?.(value.length);
    }
  } catch (error) {
    void reader.cancel().catch(() => undefined);
    signal?.throwIfAborted();
    if (error instanceof RcdeployError) throw error;
    throw new RcdeployError(`${source.name}: reading ${file} broke off: ${(error as Error).message}`, "Try again.");
  }
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return bytes;
}

export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  if (!globalThis.crypto?.subtle) {
    throw new RcdeployError(
      "this page cannot compute digests, because it does not come from a secure address",
      "Serve it over https, or from localhost.",
    );
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Remembers files by their SHA-256. What it returns is compared with the digest again. */
export interface FileCache {
  get(sha256: string): Promise<Uint8Array<ArrayBuffer> | undefined>;
  put(sha256: string, bytes: Uint8Array<ArrayBuffer>): Promise<void>;
}

/** The browser's Cache Storage, where the page may use it; else undefined. */
export function browserCache(name = "rcdeploy"): FileCache | undefined {
  if (typeof caches === "undefined" || typeof location === "undefined") return undefined;
  const key = (digest: string) => new URL(`/rcdeploy-sha256/${digest}`, location.origin).href;
  return {
    async get(digest) {
      const response = await (await caches.open(name)).match(key(digest));
      return response && new Uint8Array(await response.arrayBuffer());
    },
    async put(digest, bytes) {
      await (await caches.open(name)).put(key(digest), new Response(bytes));
    },
  };
}
