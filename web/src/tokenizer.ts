/** Prompts to token ids with Hugging Face's tokenizers in JavaScript, as the Python runtime makes them. */

import { Tokenizer } from "@huggingface/tokenizers";
import { isObject, wholeNumber, type JsonObject } from "./checks.js";
import { RcdeployError } from "./errors.js";
import { MAX_CONTEXT } from "./limits.js";
import { checkTokenizer, objects } from "./tokenizer_checks.js";

const DEFAULT_PAD_TOKEN = "<|endoftext|>";

export interface Tokens {
  /** [context] */
  ids: number[];
  /** how many tokens did not fit */
  cut: number;
}

export class PromptTokenizer {
  /** number of tokens that a prompt is cut or padded to */
  readonly context: number;
  private readonly tokenizer: Tokenizer;
  private readonly padId: number;
  private readonly lowercases: boolean;
  /** special tokens at the end, which stay when a prompt is cut */
  private readonly ending: number[];

  /** @param data tokenizer.json. @param config tokenizer_config.json. */
  constructor(data: JsonObject, config: JsonObject) {
    checkTokenizer(data);
    this.context = wholeNumber("tokenizer_config.json: model_max_length", config.model_max_length, 1, MAX_CONTEXT);
    try {
      this.tokenizer = new Tokenizer(data, config);
      const bare = this.tokenizer.encode("").ids;
      this.ending = bare.slice(Math.ceil(bare.length / 2));
    } catch (error) {
      throw new RcdeployError(`tokenizer.json cannot be used: ${(error as Error).message}`, "Export the package anew.");
    }
    this.lowercases = [...objects(data.normalizer)].some(({ type }) => type === "Lowercase");
    const padding = config.pad_token || config.eos_token || DEFAULT_PAD_TOKEN;
    const pad = String(isObject(padding) ? padding.content : padding);
    const padId = this.tokenizer.token_to_id(pad);
    if (padId === undefined) throw new RcdeployError(`the padding token ${pad} is not in tokenizer.json`);
    this.padId = padId;
  }

  encode(prompt: string): Tokens {
    // JavaScript lowercases a sigma by its place in the word, the Python runtime's library each letter alone
    const { ids } = this.tokenizer.encode(this.lowercases ? prompt.replaceAll("\u03a3", "\u03c3") : prompt);
    const cut = Math.max(0, ids.length - this.context);
    if (cut) ids.splice(this.context - this.ending.length, Infinity, ...this.ending);
    while (ids.length < this.context) ids.push(this.padId);
    return { ids, cut };
  }
}
