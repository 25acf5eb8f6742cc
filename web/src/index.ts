/** What the package rcdeploy-web exports. */

export { RcdeployError } from "./errors.js";
export { browserCache, type FileCache, type FileSource, type Source } from "./files.js";
export { GENERATORS, noiseGenerator, type GeneratorName, type NoiseGenerator } from "./noise.js";
export { NoiseSchedule } from "./noise_schedule.js";
export type { SamplingDefaults } from "./manifest.js";
export { Package, type LoadProgress, type OpenOptions } from "./package.js";
export { makeSampler, SAMPLERS, type Sampler, type SamplerName } from "./samplers.js";
export type { Backend, EngineOptions } from "./sessions.js";
export type { GenerateOptions, PictureRecord, Step } from "./generation.js";
export type { Picture } from "./images.js";
export { TextToImage, type LoadOptions } from "./text_to_image.js";
export { TextToImageWorker, type PackageDescription, type WorkerLoadOptions } from "./worker_client.js";
