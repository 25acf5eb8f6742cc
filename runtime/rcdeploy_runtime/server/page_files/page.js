/** The page: fields in, the server's own image API out, previews as they come, what was drawn kept in this tab. */

const EXAMPLES = 5;
const PREVIEWS = 3;
const MAX_GALLERY = 60;
const TOY_PIXELS = 128;
const PAINT = "#00a2ff";
const element = (id) => document.getElementById(id);
/** element ids -> the API's fields */
const NUMBERS = { seed: "seed", steps: "steps", n: "n", guidance: "guidance_scale" };

/** of the chosen model, and of each by its name */
let facts = null;
const known = new Map();
let running = null;
let token = sessionStorage.getItem("rcdeploy-token") ?? "";
/** the picture that an edit begins with, and the canvas of what was painted over it */
let original = null;
const painted = document.createElement("canvas");

void begin();

async function begin() {
  const answer = await ask("v1/page").catch((error) => fail(error));
  if (!answer) return;
  if (answer.status === 401) {
    element("token-form").hidden = false;
    show(0, token ? "That token was not accepted." : "A token is needed.");
    element("token").focus();
    return;
  }
  if (!answer.ok) return fail(await message(answer));
  element("token-form").hidden = true;
  facts = await answer.json();
  known.set(facts.model, facts);
  for (const name of facts.models.filter((other) => other !== facts.model)) {
    const other = await ask(`v1/page?model=${encodeURIComponent(name)}`).catch((error) => fail(error));
    if (!other?.ok) return other && fail(await message(other));
    known.set(name, await other.json());
  }
  element("models").hidden = known.size < 2;
  element("model").replaceChildren(...facts.models.map((name) => new Option(name, name)));
  element("prompt").value = facts.captions[0] ?? "";
  describe();
  show(0, "Ready.");
  update();
  const asked = new URLSearchParams(location.search);
  for (const id of ["prompt", "seed", "steps", "sampler", "guidance", "negative"]) {
    if (asked.has(id)) element(id).value = asked.get(id);
  }
  if (asked.has("draw")) void draw();
}

function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
  return fetch(path, { ...options, headers });
}

function describe() {
  document.title = element("title").textContent = facts.model;
  const sampler = element("sampler");
  sampler.replaceChildren(...facts.samplers.map((name) => new Option(name, name)));
  sampler.value = facts.sampler;
  element("steps").value = facts.steps;
  element("steps").max = facts.max_steps;
  element("guidance").value = facts.guidance_scale;
  element("prompt").maxLength = element("negative").maxLength = facts.max_prompt_characters;
  for (const side of ["width", "height"]) {
    Object.assign(element(side), { value: facts[side], step: facts.size_multiple, min: facts.size_multiple });
    element(side).disabled = facts.is_fixed_size;
  }
  element("editing").hidden = !facts.can_edit;
  element("examples").hidden = !facts.captions.length;
  showExamples();
}

function showExamples() {
  const captions = [...facts.captions].sort(() => Math.random() - 0.5).slice(0, EXAMPLES);
  element("captions").replaceChildren(
    ...captions.map((caption) => {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet" });
      button.textContent = caption;
      button.onclick = () => {
        element("prompt").value = caption;
        void draw();
      };
      return item(button);
    }),
  );
}

function item(child) {
  const li = document.createElement("li");
  li.append(child);
  return li;
}

/** the chosen model's request, by the form */
function chosen() {
  const fields = { model: facts.model, prompt: element("prompt").value, sampler: element("sampler").value };
  for (const [id, name] of Object.entries(NUMBERS)) fields[name] = element(id).valueAsNumber;
  fields.negative_prompt = element("negative").value;
  fields.size = `${element("width").value}x${element("height").value}`;
  return fields;
}

/** the same of another model, as that one draws by itself */
function beside(other, fields) {
  const { sampler, steps, guidance_scale } = other;
  const size = other.is_fixed_size ? `${other.width}x${other.height}` : fields.size;
  return { ...fields, model: other.model, sampler, steps, guidance_scale, size };
}

async function draw() {
  if (running || !facts || !element("form").reportValidity()) return;
  const requests = [chosen()];
  if (known.size > 1 && element("beside").checked) {
    const others = [...known.values()].filter((other) => other !== facts && (!original || other.can_edit));
    requests.push(...others.map((other) => beside(other, requests[0])));
  }
  running = new AbortController();
  element("error").hidden = true;
  element("pictures").replaceChildren();
  element("record-details").hidden = true;
  show(null, "Waiting for its turn …");
  element("status").scrollIntoView({ block: "nearest", behavior: "smooth" });
  update();
  try {
    const records = [];
    for (const fields of requests) {
      const started = performance.now();
      const answer = await ask(...(await request({ ...fields, stream: true, partial_images: PREVIEWS })));
      if (!answer.ok) throw new Error(await message(answer));
      const done = await read(answer, fields, records.length);
      if (done.length < fields.n) throw new Error("The connection ended before the picture was whole.");
      const seconds = (performance.now() - started) / 1000;
      const { n, ...settings } = fields;
      const edit = original ? { strength: Number(element("strength").value) } : {};
      records.push(...done.map(({ seed, url }) => ({ url, seconds, record: { ...settings, seed, ...edit } })));
    }
    finish(records);
  } catch (error) {
    if (running.signal.aborted) show(0, "Cancelled.");
    else fail(error);
  } finally {
    running = null;
    update();
  }
}

/** path and options of fetch: a generation, or an edit where there is a picture to begin with */
async function request(fields) {
  const { signal } = running;
  if (!original) {
    const body = JSON.stringify(fields);
    const headers = { "content-type": "application/json" };
    return ["v1/images/generations", { method: "POST", headers, body, signal }];
  }
  const { size, ...rest } = fields; // that of the picture
  const body = new FormData();
  for (const [name, value] of Object.entries(rest)) body.append(name, value);
  body.append("strength", element("strength").value);
  body.append("image", await blob(original), "image.png");
  const mask = maskOfPaint();
  if (mask) body.append("mask", await blob(mask), "mask.png");
  return ["v1/images/edits", { method: "POST", body, signal }];
}

/** The images of a stream of server-sent events, by index; previews are shown as they come, from place `first` on. */
async function read(answer, fields, first) {
  const done = [];
  let rest = "";
  for await (const text of texts(answer.body)) {
    const events = (rest + text).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = JSON.parse(event.slice(event.indexOf("data: ") + 6));
      if (data.error) throw new Error(data.error.message);
      const url = `data:image/${data.output_format};base64,${data.b64_json}`;
      place(first + data.index, url, fields);
      if (data.type.endsWith(".completed")) done.push({ ...data, url });
      else show((data.partial_image_index + 1) / (PREVIEWS + 1), "Drawing …");
    }
  }
  return done.sort((a, b) => a.index - b.index);
}

async function* texts(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

function place(index, url, { prompt, model }) {
  const pictures = element("pictures");
  while (pictures.children.length <= index) {
    const figure = document.createElement("figure");
    figure.append(document.createElement("img"));
    if (known.size > 1) figure.append(Object.assign(document.createElement("figcaption"), { textContent: model }));
    pictures.append(figure);
  }
  const img = pictures.children[index].querySelector("img");
  Object.assign(img, { src: url, alt: prompt });
  img.className = sharp(model);
}

function sharp(model) {
  return known.get(model).width <= TOY_PIXELS ? "toy" : "";
}

function finish(records) {
  const times = new Map(records.map(({ record, seconds }) => [record.model, `${seconds.toFixed(2)} s`]));
  show(1, `Drawn in ${[...times.values()].join(", then ")}.`);
  present(records);
  for (const entry of records) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const img = Object.assign(document.createElement("img"), { src: entry.url, alt: "" });
    img.className = sharp(entry.record.model);
    const label = document.createElement("span");
    label.textContent = entry.record.prompt;
    button.append(img, label);
    button.onclick = () => {
      if (running) return;
      element("pictures").replaceChildren();
      place(0, entry.url, entry.record);
      recall(entry.record);
      present([entry]);
      show(1, "Its settings are in the form.");
    };
    element("drawn").prepend(item(button));
  }
  while (element("drawn").children.length > MAX_GALLERY) element("drawn").lastChild.remove();
  element("gallery").hidden = false;
}

/** A link that saves each picture, and how they were made. */
function present(records) {
  const pictures = element("pictures");
  records.forEach(({ url, record, seconds }, index) => {
    const link = Object.assign(document.createElement("a"), { href: url, download: `${record.seed}.png` });
    link.title = "Save as PNG; its settings are in the file";
    const figure = pictures.children[index];
    const img = figure.querySelector("img");
    img.alt = `${record.prompt} (save as PNG)`;
    img.replaceWith(link);
    link.append(img);
    if (known.size < 2) return;
    const steps = `${record.steps} ${record.steps === 1 ? "step" : "steps"}`;
    figure.querySelector("figcaption").textContent = `${record.model}, ${steps}, ${seconds.toFixed(2)} s`;
  });
  element("record").textContent = JSON.stringify(records.map(({ record }) => record), null, 2);
  element("record-details").hidden = false;
}

function recall(record) {
  chooseModel(record.model);
  const values = { prompt: "prompt", seed: "seed", steps: "steps", sampler: "sampler", guidance: "guidance_scale" };
  for (const [id, name] of Object.entries(values)) element(id).value = record[name];
  element("negative").value = record.negative_prompt;
  [element("width").value, element("height").value] = record.size.split("x");
}

function chooseModel(name) {
  facts = known.get(name);
  element("model").value = name;
  describe();
}

/** The picture, opaque, and transparent where it was painted, as OpenAI's masks are; null where nothing was. */
function maskOfPaint() {
  const { width, height } = painted;
  const pixels = painted.getContext("2d").getImageData(0, 0, width, height);
  if (!pixels.data.some((value, k) => k % 4 === 3 && value)) return null;
  for (let k = 3; k < pixels.data.length; k += 4) pixels.data[k] = pixels.data[k] ? 0 : 255;
  const mask = Object.assign(document.createElement("canvas"), { width, height });
  mask.getContext("2d").putImageData(pixels, 0, 0);
  return mask;
}

function blob(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** The chosen picture, cut to the shape of what the model draws. */
async function choose(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return fail("That file is no picture that this browser can open.");
  const width = element("width").valueAsNumber;
  const height = element("height").valueAsNumber;
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  original = Object.assign(document.createElement("canvas"), { width, height });
  original.getContext("2d").drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
  Object.assign(painted, { width, height });
  Object.assign(element("brush"), { width, height });
  element("brush").className = width <= TOY_PIXELS ? "toy" : "";
  element("editor").hidden = false;
  showPaint();
}

function showPaint() {
  const canvas = element("brush");
  const pen = canvas.getContext("2d");
  pen.drawImage(original, 0, 0);
  pen.globalAlpha = 0.6;
  pen.drawImage(painted, 0, 0);
  pen.globalAlpha = 1;
}

function paint(event) {
  if (!original || !(event.buttons & 1)) return;
  const box = element("brush").getBoundingClientRect();
  const pen = painted.getContext("2d");
  pen.fillStyle = PAINT;
  pen.beginPath();
  const x = ((event.clientX - box.left) / box.width) * painted.width;
  const y = ((event.clientY - box.top) / box.height) * painted.height;
  pen.arc(x, y, (element("radius").valueAsNumber / 100) * painted.width, 0, 2 * Math.PI);
  pen.fill();
  showPaint();
}

function paintAll(fill) {
  const pen = painted.getContext("2d");
  pen.clearRect(0, 0, painted.width, painted.height);
  pen.fillStyle = PAINT;
  if (fill) pen.fillRect(0, 0, painted.width, painted.height);
  showPaint();
}

function withoutPicture() {
  original = null;
  element("image").value = "";
  element("editor").hidden = true;
}

async function message(answer) {
  const body = await answer.json().catch(() => null);
  if (answer.status === 429) {
    return `The server is full; it says to ask again in ${answer.headers.get("retry-after")} s.`;
  }
  return body?.error?.message ?? `The server answered ${answer.status}.`;
}

function fail(error) {
  const reason = String(error.message ?? error);
  element("error").textContent = error instanceof TypeError ? `The server cannot be reached: ${reason}` : reason;
  element("error").hidden = false;
  show(0, "Not drawn.");
}

/** share: of the work that is done; null where that is not known */
function show(share, text) {
  if (share === null) element("progress").removeAttribute("value");
  else element("progress").value = share;
  element("status").textContent = text;
}

function update() {
  element("draw").disabled = !facts || running !== null;
  element("cancel").disabled = running === null;
}

function anotherSeed() {
  element("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
}

element("form").onsubmit = (event) => {
  event.preventDefault();
  void draw();
};
element("token-form").onsubmit = (event) => {
  event.preventDefault();
  token = element("token").value.trim();
  sessionStorage.setItem("rcdeploy-token", token);
  void begin();
};
element("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  void draw();
};
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
element("cancel").onclick = () => running?.abort();
element("dice").onclick = anotherSeed;
element("others").onclick = showExamples;
element("image").onchange = (event) => event.target.files[0] && void choose(event.target.files[0]);
element("brush").onpointerdown = (event) => {
  event.target.setPointerCapture(event.pointerId);
  paint(event);
};
element("brush").onpointermove = paint;
element("all").onclick = () => paintAll(true);
element("clear").onclick = () => paintAll(false);
element("without").onclick = withoutPicture;
element("model").onchange = (event) => chooseModel(event.target.value);
for (const side of ["width", "height"]) element(side).onchange = withoutPicture;
