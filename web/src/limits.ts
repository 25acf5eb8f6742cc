/** Bounds on what a caller asks for and on what a package holds, in one place; all are checked before memory is spent. */

export const MAX_PROMPT_CHARACTERS = 10_000;
export const MAX_GUIDANCE_SCALE = 1_000;
export const MIN_SEED = -(2n ** 63n);
export const MAX_SEED = 2n ** 64n - 1n;
export const MAX_TRAIN_TIMESTEPS = 100_000;
export const MAX_SCALE = 1_000;

export const MAX_JSON_BYTES = 8 * 2 ** 20;
export const MAX_TOKENIZER_BYTES = 64 * 2 ** 20;
export const MAX_CONTEXT = 4_096;
export const MAX_LATENT_SIDE = 4_096;
export const MAX_PIXELS_PER_LATENT = 64;
export const MAX_SCALING_FACTOR = 1_000;

/** Of all files that are opened, unless the caller says otherwise: what a tab may take without asking. */
export const DEFAULT_MAX_BYTES = 2 ** 30;
/** WebAssembly addresses 4 GiB; half of it is left for what networks compute. */
export const MAX_WASM_BYTES = 2 ** 31;
/** Of one file: browsers refuse an ArrayBuffer of 2 GiB, and a protobuf cannot be larger. */
export const MAX_FILE_BYTES = 2 ** 31 - 1;
/** Of a picture: an estimated 2 GiB for the decoder of Stable Diffusion, of the 4 that WebAssembly has. */
export const MAX_PIXELS = 768 * 768;
