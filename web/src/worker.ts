/** The worker's side of TextToImageWorker: loads one package and draws, on a thread of its own. */

import { RcdeployError } from "./errors.js";
import type { Step } from "./generation.js";
import type { Answer, Request } from "./messages.js";
import { TextToImage } from "./text_to_image.js";

const post = (answer: Answer) => postMessage(answer);
const running = new Map<number, AbortController>();
let model: TextToImage | null = null;

addEventListener("message", ({ data }: MessageEvent<Request>) => {
  if (data.kind === "cancel") running.get(data.id)?.abort();
  else void answer(data);
});

async function answer(request: Exclude<Request, { kind: "cancel" }>): Promise<void> {
  const { id } = request;
  const controller = new AbortController();
  running.set(id, controller);
  try {
    if (request.kind === "load") await load(request, controller.signal);
    else await draw(request, controller.signal);
  } catch (error) {
    const { name, message } = error as Error;
    const further = error instanceof RcdeployError ? { problem: error.problem, fix: error.fix } : {};
    post({ id, kind: "failed", name, message, ...further });
  } finally {
    running.delete(id);
  }
}

async function load({ id, source, options }: Extract<Request, { kind: "load" }>, signal: AbortSignal): Promise<void> {
  const { cache, ...others } = options;
  await model?.release();
  model = null;
  model = await TextToImage.load(source, {
    ...others,
    ...(cache === false && { cache: null }),
    signal,
    onProgress: (progress) => post({ id, kind: "progress", progress }),
  });
  const { digest, size, sampling } = model.package;
  const captions = await model.package.captions().catch(() => []);
  post({ id, kind: "loaded", description: { digest, size, sampling, backend: model.backend, captions } });
}

async function draw(
  { id, prompt, options }: Extract<Request, { kind: "generate" }>,
  signal: AbortSignal,
): Promise<void> {
  if (!model) throw new RcdeployError("no package is loaded");
  const onStep = (step: Step) => post({ id, kind: "step", step });
  const { image, record } = await model.generate(prompt, { ...options, signal, onStep });
  post({ id, kind: "drawn", image, record });
}
