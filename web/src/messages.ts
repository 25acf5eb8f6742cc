/** What the page and its worker say to each other. Each request has a number, which its answers carry. */

import type { Source } from "./files.js";
import type { GenerateOptions, PictureRecord, PictureSize, Step } from "./generation.js";
import type { Picture } from "./images.js";
import type { SamplingDefaults } from "./manifest.js";
import type { LoadProgress, OpenOptions } from "./package.js";
import type { EngineOptions } from "./sessions.js";

/** What a page knows of a package that its worker has loaded. */
export interface PackageDescription {
  digest: string;
  size: PictureSize;
  sampling: SamplingDefaults;
  backend: string;
  captions: string[];
}

/** Options that can be posted to a worker. cache: false for none. */
export type PostedLoadOptions = Pick<OpenOptions, "maxBytes" | "digest"> & EngineOptions & { cache?: boolean };
export type PostedGenerateOptions = Omit<GenerateOptions, "signal" | "onStep">;

export type Request =
  | { id: number; kind: "load"; source: Exclude<Source, { open: unknown } | URL>; options: PostedLoadOptions }
  | { id: number; kind: "generate"; prompt: string; options: PostedGenerateOptions }
  | { id: number; kind: "cancel" };

export type Answer =
  | { id: number; kind: "progress"; progress: LoadProgress }
  | { id: number; kind: "step"; step: Step }
  | { id: number; kind: "loaded"; description: PackageDescription }
  | { id: number; kind: "drawn"; image: Picture; record: PictureRecord }
  | { id: number; kind: "failed"; name: string; message: string; problem?: string; fix?: string };
