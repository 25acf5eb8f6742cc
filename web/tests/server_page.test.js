/** The page of rcdeploy-runtime serve in headless Chromium: draws, cancels, edits, survives a server that is gone. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium, launch } from "./site.js";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const PYTHON = process.env.PYTHON ?? path.join(ROOT, ".venv/bin/python");
const STUDENT = path.join(ROOT, "examples/students/fashion");
/** random weights, with the VAE's encoder */
const EDITOR = path.join(ROOT, "tests/fixtures/formats_0_1/package");
const PROMPT = "a photo of a blue bag on a white background";
const skip = !chromium ? "no Chromium is installed" : !existsSync(PYTHON) && "there is no .venv: `make test` makes it";

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.on("listening", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** A server for `models`, and a page of it that has loaded. */
async function open(t, ...models) {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}/`;
  const modules = ["", "runtime", "export"].map((folder) => path.join(ROOT, folder)).join(path.delimiter);
  const server = spawn(PYTHON, ["-m", "rcdeploy_runtime", "serve", ...models, "--port", String(port)], {
    env: { ...process.env, PYTHONPATH: modules },
    stdio: "ignore",
  });
  t.after(() => server.kill("SIGKILL"));
  while (!(await fetch(`${url}readyz`).catch(() => null))) await new Promise((resolve) => setTimeout(resolve, 100));
  const browser = await launch();
  t.after(() => browser.close());
  const page = await browser.newPage();
  page.setDefaultTimeout(120_000);
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  await page.goto(url);
  await idle(page);
  return { page, server, url, errors };
}

const idle = (page) => page.waitForFunction(() => !document.getElementById("draw").disabled);
const set = (page, id, value) => page.$eval(id, (field, text) => (field.value = text), String(value));
const says = (page, words) =>
  page.waitForFunction((start) => document.getElementById("status").textContent.startsWith(start), {}, words);
const shown = (page) => page.$$eval("#pictures img", (images) => images.map(({ src }) => src.split(",")[1]));

async function draw(page) {
  await page.focus("#prompt");
  await page.keyboard.press("Enter");
}

test("the server's page draws, cancels, and says that the server is gone", { skip }, async (t) => {
  const { page, server, url, errors } = await open(t, STUDENT);

  await t.test("draws the API's pictures, with their settings in them", async () => {
    await set(page, "#prompt", PROMPT);
    await set(page, "#seed", 3);
    await set(page, "#n", 2);
    await draw(page);
    await says(page, "Drawn in");
    const body = JSON.stringify({ prompt: PROMPT, seed: 3, n: 2 });
    const headers = { "content-type": "application/json" };
    const answer = await fetch(`${url}v1/images/generations`, { method: "POST", headers, body });
    const { data } = await answer.json();
    assert.deepEqual(
      await shown(page),
      data.map((image) => image.b64_json),
    );
    assert.match(Buffer.from(data[0].b64_json, "base64").toString("latin1"), /Steps: 2, Sampler: ddim/);
    assert.equal(await page.$$eval("#drawn button", (buttons) => buttons.length), 2);
  });

  await t.test("Escape cancels, and the next picture is drawn", async () => {
    await set(page, "#steps", 100);
    await draw(page);
    await page.waitForFunction(() => !document.getElementById("cancel").disabled);
    await page.keyboard.press("Escape");
    await says(page, "Cancelled");
    await set(page, "#steps", 2);
    await draw(page);
    await says(page, "Drawn in");
  });

  await t.test("a picture of the gallery brings its settings back", async () => {
    await page.$eval("#drawn li:last-child button", (button) => button.click());
    assert.equal(await page.$eval("#seed", (field) => field.value), "3");
  });

  await t.test("axe finds nothing, in light and dark, with everything open", async () => {
    const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
    await page.evaluate(readFileSync(axe, "utf8"));
    await page.$$eval("details", (all) => all.forEach((details) => (details.open = true)));
    for (const value of ["light", "dark"]) {
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value }]);
      const { violations } = await page.evaluate("axe.run()");
      assert.deepEqual(
        violations.map(({ id }) => id),
        [],
      );
    }
    await page.setViewport({ width: 390, height: 844 });
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 390);
  });

  await t.test("a server that dies in the middle is an error that one can read", async () => {
    assert.deepEqual(errors, []);
    await set(page, "#steps", 100);
    await draw(page);
    await page.waitForSelector("#pictures img");
    server.kill("SIGKILL");
    await says(page, "Not drawn");
    assert.match(
      await page.$eval("#error", (alert) => alert.textContent),
      /connection ended|cannot be reached|network/i,
    );
    await draw(page);
    await page.waitForFunction(() => document.getElementById("error").textContent.includes("cannot be reached"));
    await idle(page);
  });
});

test("a picture is changed where it was painted", { skip }, async (t) => {
  const { page, errors } = await open(t, EDITOR);
  const folder = mkdtempSync(path.join(tmpdir(), "page-"));
  t.after(() => rmSync(folder, { recursive: true }));
  await set(page, "#prompt", "a red bag");
  await set(page, "#steps", 4);
  await draw(page);
  await says(page, "Drawn in");
  const [first] = await shown(page);
  const file = path.join(folder, "picture.png");
  writeFileSync(file, Buffer.from(first, "base64"));
  await page.$eval("#editing", (details) => (details.open = true));
  await (await page.$("#image")).uploadFile(file);
  await page.waitForFunction(() => !document.getElementById("editor").hidden);
  const brush = await page.$("#brush");
  await brush.scrollIntoView();
  const { x, y, width, height } = await brush.boundingBox();
  await page.mouse.move(x + width / 2, y + height / 2);
  await page.mouse.down();
  await page.mouse.move(x + width * 0.6, y + height * 0.6);
  await page.mouse.up();
  await set(page, "#seed", 99);
  await draw(page);
  await says(page, "Drawn in");
  const [edited] = await shown(page);
  assert.match(await page.$eval("#record", (record) => record.textContent), /"strength": 0.8/);
  assert.deepEqual(errors, []);
  const differ = (a, b) => a.filter((value, k) => Math.abs(value - b[k]) > 2).length / a.length;
  const share = differ(await decode(page, edited), await decode(page, first));
  assert.ok(share > 0 && share < 0.5, `${share} of the values changed`);
});

test("two models draw beside each other, each as it does by default", { skip }, async (t) => {
  const { page, url, errors } = await open(t, STUDENT, EDITOR);
  await set(page, "#prompt", PROMPT);
  await set(page, "#seed", 3);
  await page.click("#beside");
  await draw(page);
  await says(page, "Drawn in");
  const alone = async (fields) => {
    const body = JSON.stringify({ prompt: PROMPT, seed: 3, ...fields });
    const headers = { "content-type": "application/json" };
    const answer = await fetch(`${url}v1/images/generations`, { method: "POST", headers, body });
    return (await answer.json()).data[0].b64_json;
  };
  assert.deepEqual(await shown(page), [await alone({}), await alone({ model: "package" })]);
  const captions = await page.$$eval("#pictures figcaption", (all) => all.map(({ textContent }) => textContent));
  assert.match(captions[0], /^fashion, 2 steps, [\d.]+ s$/);
  assert.match(captions[1], /^package, 25 steps, [\d.]+ s$/);

  await t.test("a picture of the gallery brings its model back", async () => {
    await page.$eval("#drawn li:first-child button", (button) => button.click());
    assert.equal(await page.$eval("#model", (field) => field.value), "package");
    assert.equal(await page.$eval("#steps", (field) => field.value), "25");
    await page.click("#beside");
    await draw(page);
    await says(page, "Drawn in");
    assert.deepEqual(await shown(page), [await alone({ model: "package" })]);
  });

  await t.test("axe finds nothing", async () => {
    await page.evaluate(readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8"));
    const { violations } = await page.evaluate("axe.run()");
    assert.deepEqual(
      violations.map(({ id }) => id),
      [],
    );
  });
  assert.deepEqual(errors, []);
});

/** RGBA of a png in base64: by an element, since the page's own rules let no script fetch data addresses. */
function decode(page, png) {
  return page.evaluate(async (data) => {
    const image = new Image();
    image.src = `data:image/png;base64,${data}`;
    await image.decode();
    const pen = new OffscreenCanvas(image.width, image.height).getContext("2d");
    pen.drawImage(image, 0, 0);
    return [...pen.getImageData(0, 0, image.width, image.height).data];
  }, png);
}
