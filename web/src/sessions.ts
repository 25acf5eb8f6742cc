/** ONNX Runtime Web behind one function: named arrays in, arrays out. */

import type { InferenceSession, Tensor as OrtTensor, TypedTensor } from "onnxruntime-web";
import { RcdeployError } from "./errors.js";
import { fromHalf, toHalf } from "./float16.js";

/** Numbers with a shape; what a network takes and gives is converted from and to these. */
export interface Tensor {
  data: Float32Array | readonly number[];
  dims: readonly number[];
}

/** Of a network; the first where it has no name. dims: of a row, null for any. */
export interface Output {
  name?: string;
  dims: readonly (number | null)[];
}

export const BACKENDS = ["auto", "wasm", "webgpu"] as const;
export type Backend = (typeof BACKENDS)[number];

export interface EngineOptions {
  /** auto takes WebGPU where the browser has an adapter that can compute what the package needs, and wasm otherwise */
  backend?: Backend;
  /** of wasm; more than one needs a page that is cross-origin isolated. By default 4 at most there, and 1 elsewhere. */
  threads?: number;
  /** folder that has ONNX Runtime's .wasm and .mjs files; by default where its module lies */
  wasmPaths?: string;
}

type Ort = typeof import("onnxruntime-web");

/** ONNX Runtime on one backend; makes networks. */
export class Engine {
  private constructor(
    private readonly ort: Ort,
    readonly backend: "wasm" | "webgpu",
  ) {}

  /**
   * @param fp16 whether networks will compute in it, which not every GPU can.
   * @throws RcdeployError when the backend is not there.
   */
  static async start({ backend = "auto", threads, wasmPaths }: EngineOptions, fp16: boolean): Promise<Engine> {
    const missing = backend === "wasm" ? null : await missingForWebGpu(fp16);
    if (backend === "webgpu" && missing) throw new RcdeployError(missing, 'Use backend: "wasm".');
    const chosen = backend === "wasm" || missing ? "wasm" : "webgpu";
    let ort: Ort;
    try {
      ort = await (chosen === "webgpu" ? import("onnxruntime-web/webgpu") : import("onnxruntime-web/wasm"));
    } catch (error) {
      throw new RcdeployError(`ONNX Runtime Web cannot be loaded: ${(error as Error).message}`);
    }
    const isolated = (globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated ?? false;
    ort.env.wasm.numThreads = threads ?? (isolated ? Math.min(4, navigator.hardwareConcurrency) : 1);
    ort.env.logLevel = "error";
    if (wasmPaths) ort.env.wasm.wasmPaths = wasmPaths;
    return new Engine(ort, chosen);
  }

  /**
   * @param name of the network, for messages.
   * @param externalData its external weights, by the paths that the model has for them.
   */
  async load(
    name: string,
    model: Uint8Array<ArrayBuffer>,
    externalData: { path: string; data: Uint8Array<ArrayBuffer> }[],
  ): Promise<Network> {
    try {
      const options = { executionProviders: [this.backend], logSeverityLevel: 3 as const, externalData };
      return new Network(name, this.ort, await this.ort.InferenceSession.create(model, options));
    } catch (error) {
      throw new RcdeployError(
        `ONNX Runtime Web cannot load the ${name}: ${(error as Error).message}`,
        "If memory ran out, use a smaller package or close other tabs. Otherwise export the package anew.",
      );
    }
  }
}

/** Why WebGPU cannot be used; null when it can. */
async function missingForWebGpu(fp16: boolean): Promise<string | null> {
  type Gpu = { requestAdapter(): Promise<{ features: ReadonlySet<string> } | null> };
  const adapter = await (globalThis.navigator as { gpu?: Gpu } | undefined)?.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return "this browser has no WebGPU adapter";
  if (fp16 && !adapter.features.has("shader-f16"))
    return "this GPU does not compute in fp16, as the package's networks do";
  return null;
}

/** A loaded network. */
export class Network {
  /** the number of rows that it was exported for; null when any will do */
  readonly batchSize: number | null;
  private readonly types: ReadonlyMap<string, string>;

  constructor(
    private readonly name: string,
    private readonly ort: Ort,
    private readonly session: InferenceSession,
  ) {
    const inputs = session.inputMetadata.filter((input) => input.isTensor);
    this.types = new Map(inputs.map((input) => [input.name, input.type]));
    const rows = inputs[0]?.shape[0];
    this.batchSize = typeof rows === "number" ? rows : null;
  }

  /**
   * Runs rows of a batch, in parts where the network was exported for a fixed number of them.
   * @param rows arrays by input name, of each row, without the dimension of the batch.
   * @param shared arrays that have none.
   * @returns for each of `outputs` its rows, flat.
   * @throws RcdeployError when the network fails, or gives another shape, or NaN or infinity.
   */
  async run(
    rows: readonly Record<string, Tensor>[],
    shared: Record<string, Tensor>,
    ...outputs: Output[]
  ): Promise<Float32Array[][]> {
    const results = outputs.map((): Float32Array[] => []);
    const count = this.batchSize ?? rows.length;
    for (let start = 0; start < rows.length; start += count) {
      const part = Array.from({ length: count }, (_, i) => rows[Math.min(start + i, rows.length - 1)]); // the last, padded
      const names = outputs.map(({ name }) => name ?? this.session.outputNames[0]);
      const tensors = await this.runOnce({ ...stacked(part), ...shared }, names);
      for (const [k, tensor] of tensors.entries()) {
        const data = this.checked(tensor, [count, ...outputs[k].dims]);
        const size = data.length / count;
        for (let i = 0; i < count && results[k].length < rows.length; i++) {
          results[k].push(data.slice(i * size, (i + 1) * size));
        }
      }
    }
    return results;
  }

  release(): Promise<void> {
    return this.session.release();
  }

  private async runOnce(inputs: Record<string, Tensor>, names: string[]): Promise<OrtTensor[]> {
    try {
      const feeds = Object.entries(inputs).map(([name, tensor]) => [name, this.toOrt(name, tensor)]);
      const outputs = await this.session.run(Object.fromEntries(feeds), names);
      return names.map((name) => outputs[name]);
    } catch (error) {
      throw new RcdeployError(
        `ONNX Runtime Web cannot run the ${this.name}: ${(error as Error).message}`,
        "If memory ran out, use a smaller package or close other tabs. Otherwise export the package anew.",
      );
    }
  }

  private checked(tensor: OrtTensor, dims: readonly (number | null)[]): Float32Array {
    if (tensor.dims.length !== dims.length || dims.some((n, i) => n !== null && n !== tensor.dims[i])) {
      throw new RcdeployError(
        `the ${this.name} gave an array of shape [${tensor.dims}] where [${dims}] was expected`,
        "Its network is not what the package's manifest says: export it anew.",
      );
    }
    const data = toFloats(tensor);
    if (!data.every(Number.isFinite)) {
      throw new RcdeployError(
        `the ${this.name} gave NaN or infinity instead of an image`,
        "In fp16 a network may overflow: export it in fp32. In fp32 its weights are damaged.",
      );
    }
    return data;
  }

  private toOrt(name: string, { data, dims }: Tensor): OrtTensor {
    const { Tensor } = this.ort;
    const type = this.types.get(name);
    if (type === "float16") {
      const bits = Uint16Array.from(data, toHalf);
      return new Tensor("float16", asHalves(bits) as Uint16Array, dims);
    }
    if (type === "int64")
      return new Tensor(
        "int64",
        BigInt64Array.from(data as number[], (value) => BigInt(value)),
        dims,
      );
    if (type === "int32") return new Tensor("int32", Int32Array.from(data), dims);
    return new Tensor("float32", Float32Array.from(data), dims);
  }
}

/** Arrays of rows -> arrays with the batch as their first dimension. */
function stacked(rows: readonly Record<string, Tensor>[]): Record<string, Tensor> {
  const inputs = Object.entries(rows[0]).map(([name, { dims }]) => {
    const data = rows.flatMap((row) => Array.from(row[name].data));
    return [name, { data, dims: [rows.length, ...dims] }];
  });
  return Object.fromEntries(inputs);
}

/** ONNX Runtime takes a Float16Array where the engine has one. */
function asHalves(bits: Uint16Array<ArrayBuffer>): ArrayBufferView {
  const { Float16Array } = globalThis as { Float16Array?: new (buffer: ArrayBuffer) => ArrayBufferView };
  return Float16Array ? new Float16Array(bits.buffer) : bits;
}

function toFloats(tensor: OrtTensor): Float32Array {
  if (tensor.type !== "float16") return Float32Array.from(tensor.data as Float32Array);
  const { buffer, byteOffset, length } = (tensor as TypedTensor<"float16">).data;
  return Float32Array.from(new Uint16Array(buffer, byteOffset, length), fromHalf);
}
