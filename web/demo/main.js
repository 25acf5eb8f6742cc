/** The page: loads the package beside it, draws what is asked for, keeps what was drawn. */

import { TextToImageWorker } from "../dist/index.js";

const EXAMPLES = 5;
const element = (id) => document.getElementById(id);
const form = element("form");
const canvas = element("canvas");
/** element ids -> options of generate */
const NUMBERS = { seed: "seed", steps: "steps", guidance: "guidanceScale" };
const TEXTS = { sampler: "sampler", generator: "generator", negative: "negativePrompt" };

let model = null;
let running = null;

/** the package: beside the page, or ?package=ADDRESS, or the files of a folder that was chosen */
let source = new URL(new URLSearchParams(location.search).get("package") ?? "package/", location.href);
void load();

async function load() {
  model?.close();
  model = null;
  const started = performance.now();
  const loaded = await run("Loading", async (signal) => {
    const onProgress = ({ file, loaded, total, preparing }) => {
      const doing = `${preparing ? "Preparing" : "Loading"} ${file.split("/")[0].replace("_", " ")}`;
      show(loaded / total, `${doing}: ${megabytes(loaded)} of ${megabytes(total)} are here`);
    };
    const backend = element("backend").value;
    const made = await TextToImageWorker.load(source, { backend, signal, onProgress });
    return { made, seconds: (performance.now() - started) / 1000 };
  });
  if (!loaded) return;
  model = loaded.made;
  describe(model.description);
  show(0, `Ready after ${loaded.seconds.toFixed(1)} s. Press Draw.`);
  update();
}

function describe({ size, sampling, captions }) {
  element("size").textContent = `${size.width} × ${size.height}`;
  element("steps").value = sampling.numInferenceSteps;
  element("guidance").value = sampling.guidanceScale;
  element("sampler").value = sampling.sampler;
  if (!element("sampler").value) element("sampler").value = "ddim"; // the package's own is not known here
  element("examples").hidden = !captions.length;
  showExamples(captions);
  element("others").onclick = () => showExamples(captions);
}

function showExamples(captions) {
  const chosen = new Set();
  while (chosen.size < Math.min(EXAMPLES, captions.length)) {
    chosen.add(captions[Math.floor(Math.random() * captions.length)]);
  }
  const buttons = [...chosen].map((caption) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet" });
    button.textContent = caption;
    button.onclick = () => {
      element("prompt").value = caption;
      void draw();
    };
    return listItem(button);
  });
  element("captions").replaceChildren(...buttons);
}

async function draw() {
  if (running || !form.reportValidity()) return;
  if (!model) return void load(); // it was cancelled, or failed
  const prompt = element("prompt").value;
  const options = {};
  for (const [id, name] of Object.entries(NUMBERS)) options[name] = element(id).valueAsNumber;
  for (const [id, name] of Object.entries(TEXTS)) options[name] = element(id).value;
  canvas.scrollIntoView({ block: "nearest", behavior: "smooth" });
  const drawn = await run("Drawing", (signal) => {
    const onStep = ({ completed, total }) => show(completed / total, `Step ${completed} of ${total}`);
    return model.generate(prompt, { ...options, signal, onStep });
  });
  if (drawn) await present(drawn);
}

/** Shows a picture, and keeps it in the gallery. */
async function present({ image, record }) {
  Object.assign(canvas, { width: image.width, height: image.height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", record.prompts[0]);
  const { all, text, unet, decode } = record.seconds;
  const parts = [`text ${seconds(text)}`, `UNet ${seconds(unet)}`, `decoder ${seconds(decode)}`];
  show(1, [`Drawn in ${seconds(all)} (${parts.join(", ")}).`, ...record.warnings].join(" "));
  element("record").textContent = JSON.stringify(record, null, 1);
  element("record-details").hidden = false;
  const blob = await new Promise((resolve) => canvas.toBlob(resolve));
  const url = URL.createObjectURL(blob);
  Object.assign(element("save"), { href: url, hidden: false });
  keep(url, record);
}

function keep(picture, record) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet" });
  const label = document.createElement("span");
  label.textContent = record.prompts[0];
  button.append(Object.assign(new Image(), { src: picture, alt: "" }), label);
  button.title = `${record.prompts[0]}, seed ${record.seeds[0]}`;
  button.onclick = () => {
    element("prompt").value = record.prompts[0];
    element("seed").value = record.seeds[0];
    element("steps").value = record.num_inference_steps;
    element("guidance").value = record.guidance_scale;
    element("sampler").value = record.sampler;
    element("generator").value = record.generator;
    element("negative").value = record.negative_prompt;
    void draw();
  };
  element("pictures").prepend(listItem(button));
  element("gallery").hidden = false;
}

/** Runs one thing at a time, which Cancel aborts; null when it was cancelled or failed, which is shown. */
async function run(doing, work) {
  running = new AbortController();
  element("error").hidden = true;
  show(0, `${doing} …`);
  update();
  try {
    return await work(running.signal);
  } catch (error) {
    show(0, error.name === "AbortError" ? "Cancelled." : "");
    if (error.name !== "AbortError") Object.assign(element("error"), { textContent: error.message, hidden: false });
    return null;
  } finally {
    running = null;
    update();
  }
}

function update() {
  for (const id of ["draw", "backend", "folder"]) element(id).disabled = running !== null;
  element("draw").textContent = model ? "Draw" : "Load";
  element("cancel").disabled = running === null;
  canvas.ariaBusy = String(running !== null);
}

function show(share, status) {
  element("progress").value = share;
  element("status").textContent = status;
}

function listItem(content) {
  const item = document.createElement("li");
  item.append(content);
  return item;
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const seconds = (value) => `${value.toFixed(2)} s`;

form.onsubmit = (event) => {
  event.preventDefault();
  void draw();
};
element("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  void draw();
};
element("dice").onclick = () => {
  element("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
};
element("cancel").onclick = () => running?.abort();
document.onkeydown = (event) => {
  if (event.key === "Escape") running?.abort();
};
element("own").hidden = !("webkitdirectory" in element("folder"));
element("folder").onchange = ({ target }) => {
  // the first part of each path is the folder's own name
  const files = [...target.files].map((file) => [file.webkitRelativePath.split("/").slice(1).join("/"), file]);
  if (!files.length) return;
  source = new Map(files);
  void load();
};
element("engine").hidden = !navigator.gpu;
element("backend").onchange = load;
