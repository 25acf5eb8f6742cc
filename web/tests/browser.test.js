/** The demo in headless Chromium: draws Python's picture, cancels, remembers, says what is wrong. */

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { fixtures, greyLevels, pictures, STUDENT } from "./fixtures.js";
import { build } from "esbuild";
import { launch, pixels, ready, serve, skip } from "./site.js";

const LIBRARY = fileURLToPath(new URL("../dist/index.js", import.meta.url));

const status = (page) => page.$eval("#status", (shown) => shown.textContent);
const type = async (page, id, text) => {
  await page.$eval(id, (field) => (field.value = ""));
  await page.type(id, text);
};

test("the demo in Chromium", { skip }, async (t) => {
  const site = await serve();
  const browser = await launch();
  t.after(async () => {
    await browser.close();
    site.close();
  });
  const page = await browser.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  await page.goto(site.url);
  await ready(page);
  assert.match(await status(page), /Ready after/);
  const firstLoad = site.bytes;

  await t.test("draws the picture that Python draws, to one grey level", async () => {
    const { prompt, seed } = fixtures.pictures[0];
    await type(page, "#prompt", prompt);
    await type(page, "#seed", String(seed));
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.getElementById("status").textContent.startsWith("Drawn"));
    t.diagnostic(await status(page));
    const levels = greyLevels(await pixels(page), pictures()[0]);
    t.diagnostic(`differs by ${levels} grey levels at most`);
    assert.ok(levels <= 1);
    const record = JSON.parse(await page.$eval("#record", (shown) => shown.textContent));
    assert.deepEqual([record.prompts, record.seeds, record.num_inference_steps], [[prompt], [seed], 2]);
    assert.equal(await page.$$eval("#pictures img", (images) => images.length), 1);
  });

  await t.test("an example of the package's captions is drawn by a click", async () => {
    await page.click("#captions button");
    await page.waitForFunction(() => document.querySelectorAll("#pictures img").length === 2);
  });

  await t.test("Escape cancels, and the next picture is drawn", async () => {
    await type(page, "#steps", "100");
    await page.focus("#prompt");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.getElementById("status").textContent.startsWith("Step"));
    await page.keyboard.press("Escape");
    await page.waitForFunction(() => document.getElementById("status").textContent === "Cancelled.");
    await ready(page);
    await type(page, "#steps", "1");
    await page.click("#draw");
    await page.waitForFunction(() => document.querySelectorAll("#pictures img").length === 3);
  });

  await t.test("what the package cannot do is said, not thrown", async () => {
    await type(page, "#steps", "60");
    await page.$eval("#sampler", (field) => (field.value = "lcm"));
    await page.focus("#prompt");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#error:not([hidden])");
    assert.match(await page.$eval("#error", (shown) => shown.textContent), /steps is 60: this sampler takes 1 to 50/);
  });

  await t.test("no errors, and nothing that axe objects to, in light and dark", async () => {
    assert.deepEqual(errors, []);
    await page.addScriptTag({ path: createRequire(import.meta.url).resolve("axe-core") });
    for (const value of ["light", "dark"]) {
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value }]);
      const { violations } = await page.evaluate(() => globalThis.axe.run());
      assert.deepEqual(
        violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html)]),
        [],
      );
    }
  });

  await t.test("a second visit takes the package from the browser's cache", async () => {
    site.bytes = 0;
    await page.reload();
    await ready(page);
    t.diagnostic(`first visit ${firstLoad} bytes, second ${site.bytes}`);
    assert.ok(site.bytes < firstLoad - 4_500_000);
  });

  await t.test("a folder that the visitor chooses is opened", async () => {
    const field = await page.$("#folder");
    await page.$eval("details", (details) => (details.open = true));
    await field.uploadFile(STUDENT.replace(/\/$/, ""));
    await page.waitForFunction(() => document.getElementById("draw").disabled);
    await ready(page);
    assert.match(await status(page), /Ready/);
  });

  await t.test("loading is cancelled while a network is being made, and begun again", async () => {
    await page.reload({ waitUntil: "domcontentloaded" });
    await page.waitForFunction(() => document.getElementById("status").textContent.startsWith("Preparing unet"));
    await page.keyboard.press("Escape");
    await page.waitForFunction(() => document.getElementById("status").textContent === "Cancelled.");
    await page.click("#draw");
    await ready(page);
  });

  await t.test("a package that is not there is said", async () => {
    await page.goto(`${site.url}?package=gone`);
    await page.waitForSelector("#error:not([hidden])");
    assert.match(await page.$eval("#error", (shown) => shown.textContent), /gone\/manifest.json was answered with 404/);
  });
});

test("the library in a page of one's own, in Chromium", { skip }, async (t) => {
  const { outputFiles } = await build({ entryPoints: [LIBRARY], bundle: true, format: "esm", write: false });
  const site = await serve({}, { "library.js": outputFiles[0].text });
  const browser = await launch();
  t.after(async () => {
    await browser.close();
    site.close();
  });
  const page = await browser.newPage();
  await page.goto(`${site.url}style.css`); // a page without any script
  await page.evaluate(async (url) => {
    const { TextToImageWorker } = await import(`${url}library.js`);
    globalThis.model = await TextToImageWorker.load(`${url}package/`, { backend: "wasm", cache: false });
  }, site.url);

  await t.test("draws every picture that Python draws, to one grey level", async () => {
    const drawn = await page.evaluate(
      (all) =>
        Promise.all(all.map(async ({ prompt, ...options }) => [...(await model.generate(prompt, options)).image.data])),
      fixtures.pictures,
    );
    for (const [k, data] of drawn.entries()) assert.ok(greyLevels(data, pictures()[k]) <= 1, `picture ${k}`);
  });

  await t.test("says what is wrong with its type, is cancelled, and is closed", async () => {
    const failures = await page.evaluate(async () => {
      const failed = (promise) => promise.then(String, ({ name, message, fix }) => [name, message.split("\n")[0], fix]);
      const controller = new AbortController();
      const onStep = () => controller.abort();
      const wrong = await failed(model.generate("a boot", { steps: 0 }));
      const cancelled = await failed(model.generate("a boot", { steps: 50, onStep, signal: controller.signal }));
      const waiting = failed(model.generate("a boot"));
      model.close();
      return [wrong, cancelled, await waiting, await failed(model.generate("a boot"))];
    });
    assert.deepEqual(
      failures.map(([name]) => name),
      ["RcdeployError", "AbortError", "RcdeployError", "RcdeployError"],
    );
    assert.match(failures[0][1], /steps is 0; it must be a whole number/);
    assert.equal(failures[3][1], "the worker was closed");
  });
});

test("in a page that is cross-origin isolated, by several threads", { skip }, async (t) => {
  const site = await serve({
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
  });
  const browser = await launch();
  t.after(async () => {
    await browser.close();
    site.close();
  });
  const page = await browser.newPage();
  await page.goto(`${site.url}?package=tiny/`);
  await ready(page);
  assert.ok(await page.evaluate(() => globalThis.crossOriginIsolated));
  await page.click("#draw");
  await page.waitForSelector("#pictures img");
  const { prompt, seed } = fixtures.tinyPictures[0];
  assert.deepEqual([await page.$eval("#prompt", (field) => field.value), seed], [prompt, 7]);
  assert.ok(greyLevels(await pixels(page), pictures()[fixtures.pictures.length]) <= 1);
});

test("by WebGPU, on a software adapter", { skip }, async (t) => {
  const site = await serve();
  const browser = await launch(["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]);
  t.after(async () => {
    await browser.close();
    site.close();
  });
  const page = await browser.newPage();
  await page.goto(`${site.url}?package=tiny/`);
  await ready(page);
  if (!(await page.evaluate(() => navigator.gpu?.requestAdapter().then(Boolean)))) {
    t.skip("this Chromium has no software adapter");
    return;
  }
  await page.$eval("details", (details) => (details.open = true));
  await page.select("#backend", "webgpu");
  await page.waitForFunction(() => document.getElementById("draw").textContent === "Load");
  await ready(page);
  await page.click("#draw");
  await page.waitForSelector("#pictures img", { timeout: 120_000 });
  assert.equal(JSON.parse(await page.$eval("#record", (shown) => shown.textContent)).device, "webgpu");
  assert.ok(greyLevels(await pixels(page), pictures()[fixtures.pictures.length]) <= 1);
});
