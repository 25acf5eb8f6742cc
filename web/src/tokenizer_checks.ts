/**
 * Checks of a tokenizer.json from a stranger: text that it would insert, and patterns that could search without an end.
 *
 * They are the Python runtime's. What never has to give back what it has matched is all that CLIP, GPT-2 and BERT use:
 * alternatives of literal characters and classes, of which only the last one may be repeated.
 */

import { isObject, type JsonObject } from "./checks.js";
import { RcdeployError } from "./errors.js";

const MAX_INSERTIONS = 4;
const MAX_INSERTED_CHARACTERS = 4;
const MAX_PATTERNS = 4;
const MAX_PATTERN_CHARACTERS = 400;
const MAX_OPTIONALS = 2;

const PROPERTY = String.raw`\\[pP]\{\^?\w{1,30}\}`;
const ESCAPE = String.raw`\\[sSdDwWrntf]|\\[^\w\s]`;
const CLASS = String.raw`\[\^?(?:${PROPERTY}|${ESCAPE}|[^\[\]\\])+\]`;
const ATOM = String.raw`(?:${PROPERTY}|${ESCAPE}|${CLASS}|[^\\()\[\]{}*+?|^$])`;
/** GPT-2's `\s+(?!\S)` gives back one character at most. */
const LAST = String.raw`\\s\+\(\?!\\S\)|${ATOM}(?:[*+]|\{\d{1,3}(?:,\d{0,3})?\})`;
const TOKEN = new RegExp(`(?<last>${LAST})|(?<optional>${ATOM}\\?)|(?<atom>${ATOM})|(?<bar>\\|)`, "sy");

/** @throws RcdeployError for a tokenizer that would make much text of little, or search without an end. */
export function checkTokenizer(data: JsonObject): void {
  const normalizers = [...objects(data.normalizer)];
  const inserted = normalizers
    .flatMap((part) => [part.content, part.prepend])
    .filter((text) => typeof text === "string");
  const tooLong = inserted.some((text) => text.length > MAX_INSERTED_CHARACTERS);
  if (inserted.length > MAX_INSERTIONS || tooLong || normalizers.some((part) => part.type === "Precompiled")) {
    throw new RcdeployError(
      "tokenizer.json: its normalizer inserts more text than any that is known",
      "Export it anew.",
    );
  }
  const { model: _model, added_tokens: _added, ...parts } = data;
  const patterns = [...objects(parts)].map((part) => part.Regex).filter((pattern) => typeof pattern === "string");
  if (patterns.length > MAX_PATTERNS) {
    throw new RcdeployError(`tokenizer.json has ${patterns.length} patterns; at most ${MAX_PATTERNS} are allowed`);
  }
  for (const pattern of patterns) {
    const problem = patternProblem(pattern);
    if (problem) {
      throw new RcdeployError(
        `tokenizer.json: the pattern ${pattern.slice(0, 80)} is refused: ${problem}`,
        "Those of CLIP's tokenizer are taken: export the package anew with it.",
      );
    }
  }
}

/** Why a regular expression might take longer than a few passes over a prompt; null when it cannot. */
export function patternProblem(pattern: string): string | null {
  if (pattern.length > MAX_PATTERN_CHARACTERS) return `it has more than ${MAX_PATTERN_CHARACTERS} characters`;
  let [optionals, ended] = [0, false];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < pattern.length) {
    const at = TOKEN.lastIndex;
    const kinds = TOKEN.exec(pattern)?.groups;
    if (!kinds) {
      return `${pattern.slice(at, at + 10)} is a group, an anchor, a reference, or repeats what is repeated`;
    }
    if (kinds.bar) [optionals, ended] = [0, false];
    else if (ended) return "something follows what is repeated, so that the search would have to go back";
    else {
      optionals += kinds.optional ? 1 : 0;
      ended = kinds.last !== undefined;
    }
    if (optionals > MAX_OPTIONALS) return `an alternative has more than ${MAX_OPTIONALS} optional parts`;
  }
  return null;
}

/** All objects in a part of a tokenizer, at any depth. */
export function* objects(part: unknown): Generator<JsonObject> {
  if (isObject(part)) yield part;
  if (isObject(part) || Array.isArray(part)) for (const value of Object.values(part)) yield* objects(value);
}
