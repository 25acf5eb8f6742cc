/**
 * External files and operators of an ONNX file, found without its weights.
 *
 * The protobuf is walked by hand: ModelProto.graph (7) and functions (25), their nodes (1) with operator (4) and
 * attributes (5), initializers (5) and sub-graphs; TensorProto.external_data (13) of key (1) and value (2).
 */

import { RcdeployError } from "./errors.js";

const NESTED: Record<string, Record<number, string>> = {
  model: { 7: "graph", 25: "function" },
  graph: { 1: "node", 5: "tensor", 15: "sparse" },
  function: { 7: "node", 11: "attribute" },
  node: { 4: "operator", 5: "attribute" },
  attribute: { 5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse" },
  sparse: { 1: "tensor", 2: "tensor" },
  tensor: { 13: "entry" },
  entry: { 1: "key", 2: "value" },
};
const MAX_DEPTH = 60;
/** no network that we export has them, and a Loop of 2^62 turns never ends */
const CONTROL_FLOW = ["Loop", "If", "Scan", "SequenceMap"];

/**
 * The names of the files that hold a network's external weights.
 * @param file the network's name, for messages.
 * @throws RcdeployError when it is no ONNX model, or has control flow.
 */
export function externalFiles(bytes: Uint8Array, file: string): string[] {
  const found = { operators: new Set<string>(), locations: new Set<string>() };
  try {
    walk(bytes, "model", found, 0);
  } catch (error) {
    throw new RcdeployError(
      `${file} is no ONNX model: ${(error as Error).message}`,
      "Copy it again, or export it anew.",
    );
  }
  const refused = CONTROL_FLOW.filter((operator) => found.operators.has(operator));
  if (refused.length) {
    throw new RcdeployError(
      `${file} has the operators ${refused.join(", ")}; networks with control flow are refused`,
      "Export the model with rcdeploy export, which needs none.",
    );
  }
  return [...found.locations];
}

function walk(
  bytes: Uint8Array,
  message: string,
  found: { operators: Set<string>; locations: Set<string> },
  depth: number,
): void {
  if (depth > MAX_DEPTH) throw new Error("nested too deeply");
  const entry = { key: "", value: "" };
  for (const [field, content] of fields(bytes)) {
    const inner = NESTED[message][field];
    if (inner === "operator") found.operators.add(decoded(content));
    else if (inner === "key" || inner === "value") entry[inner] = decoded(content);
    else if (inner) walk(content, inner, found, depth + 1);
  }
  if (entry.key === "location") found.locations.add(entry.value);
}

function decoded(content: Uint8Array): string {
  if (content.length > 2 ** 16) throw new Error("a name is too long");
  return new TextDecoder("utf-8", { fatal: true }).decode(content);
}

/** [number, content] of the length-delimited fields of a message; the others are stepped over. */
function* fields(bytes: Uint8Array): Generator<[number, Uint8Array]> {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; scale < 2 ** 70; scale *= 128) {
      if (at >= bytes.length) throw new Error("it ends in the middle of a number");
      const byte = bytes[at++];
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
    }
    throw new Error("a number without an end");
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = varint();
      if (length > bytes.length - at) throw new Error("a field is longer than the file");
      yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
      at += length;
    } else throw new Error(`wire type ${kind}`);
  }
  if (at !== bytes.length) throw new Error("it ends in the middle of a field");
}
