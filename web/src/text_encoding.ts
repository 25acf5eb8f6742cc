/** Prompts to the UNet's condition: one text encoder, or SDXL's two with pooled text. */

import type { SdxlFacts } from "./manifest.js";
import type { Network } from "./sessions.js";
import type { PromptTokenizer } from "./tokenizer.js";

const MAX_REMEMBERED_PROMPTS = 64;
/** SDXL: an output of the second text encoder, and an input of the UNet */
export const POOLED = "text_embeds";

export interface Condition {
  /** flat [context, width] */
  embeds: Float32Array;
  /** SDXL's, else null */
  pooled: Float32Array | null;
}

/** The tokenizers and text encoders of a package: one of each, or SDXL's two. Known prompts are remembered. */
export class TextEncoding {
  private readonly remembered = new Map<string, Condition>();

  constructor(
    private readonly tokenizers: readonly PromptTokenizer[],
    private readonly encoders: readonly Network[],
    private readonly sdxl: SdxlFacts | null,
  ) {}

  /** tokens of a prompt */
  get context(): number {
    return this.tokenizers[0].context;
  }

  /** The condition of an empty or negative prompt. */
  async nullCondition(negativePrompt: string, warnings: string[]): Promise<Condition> {
    const { embeds, pooled } = await this.condition(negativePrompt, warnings);
    if (negativePrompt || !this.sdxl?.zerosForEmptyPrompt) return { embeds, pooled };
    return { embeds: embeds.map(() => 0), pooled: pooled && pooled.map(() => 0) };
  }

  /** @param warnings takes the remark that a prompt was cut. */
  async condition(prompt: string, warnings: string[]): Promise<Condition> {
    const tokens = this.tokenizers.map((tokenizer) => tokenizer.encode(prompt));
    const { ids, cut } = tokens[0];
    if (cut) warnings.push(`the prompt has ${cut} tokens more than the ${ids.length} that fit; they were cut`);
    const known = this.remembered.get(prompt);
    if (known) return known;
    const made = await this.encode(tokens.map((each) => each.ids));
    if (this.remembered.size >= MAX_REMEMBERED_PROMPTS) this.remembered.delete(this.remembered.keys().next().value!);
    this.remembered.set(prompt, made);
    return made;
  }

  private async encode([ids, ids2]: number[][]): Promise<Condition> {
    const rows = (data: number[]) => [{ input_ids: { data, dims: [data.length] } }];
    const dims = [this.context, null];
    const [encoder, encoder2] = this.encoders;
    if (!this.sdxl) {
      const [[embeds]] = await encoder.run(rows(ids), {}, { dims });
      return { embeds, pooled: null };
    }
    const [name, name2] = this.sdxl.hiddenStates;
    const [[hidden]] = await encoder.run(rows(ids), {}, { name, dims });
    const [[hidden2], [pooled]] = await encoder2.run(
      rows(ids2),
      {},
      { name: name2, dims },
      { name: POOLED, dims: [null] },
    );
    return { embeds: besideEachOther(hidden, hidden2, this.context), pooled };
  }
}

/** [rows, m] and [rows, n], flat -> [rows, m + n] */
function besideEachOther(first: Float32Array, second: Float32Array, rows: number): Float32Array {
  const [m, n] = [first.length / rows, second.length / rows];
  const both = new Float32Array(first.length + second.length);
  for (let row = 0; row < rows; row++) {
    both.set(first.subarray(row * m, (row + 1) * m), row * (m + n));
    both.set(second.subarray(row * n, (row + 1) * n), row * (m + n) + m);
  }
  return both;
}
