/** The same seed gives the same picture as in Python, to one grey level. */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { folder } from "../dist/node.js";
import { TextToImage } from "../dist/index.js";
import { fixtures, greyLevels, pictures, STUDENT, TINY, TINY_SDXL } from "./fixtures.js";

const BOOT = "a photo of a red boot on a white background";
let model;

before(async () => {
  model = await TextToImage.load(folder(STUDENT));
});
after(() => model?.release());

const expected = pictures();

for (const [k, pixels] of expected.slice(0, fixtures.pictures.length).entries()) {
  const { prompt, ...settings } = fixtures.pictures[k];
  test(`${prompt} ${JSON.stringify(settings)}`, async (t) => {
    const { image } = await model.generate(prompt, settings);
    assert.deepEqual(
      [image.width, image.height, image.data.length],
      [settings.width ?? 64, 64, (4 * pixels.length) / 3],
    );
    const levels = greyLevels(image.data, pixels);
    t.diagnostic(`differs by ${levels} grey levels at most`);
    assert.ok(levels <= 1);
  });
}

test("fp32, v prediction, a fixed batch, external weights, a UNet that takes the guidance scale", async () => {
  const tiny = await TextToImage.load(folder(TINY));
  for (const [k, { prompt, ...settings }] of fixtures.tinyPictures.entries()) {
    const { image } = await tiny.generate(prompt, settings);
    assert.ok(greyLevels(image.data, expected[fixtures.pictures.length + k]) <= 1);
  }
  await assert.rejects(tiny.generate(BOOT, { width: 128 }), /exported for 64 x 64 pixels only/);
  const { record } = await tiny.generate(BOOT, { negativePrompt: "red" });
  assert.match(record.warnings[0], /its negative prompt is left out/);
  await tiny.release();
});

test("two text encoders, pooled text, image sizes, zeros as the null condition (SDXL)", async () => {
  const tiny = await TextToImage.load(folder(TINY_SDXL));
  const first = fixtures.pictures.length + fixtures.tinyPictures.length;
  for (const [k, { prompt, ...settings }] of fixtures.tinySdxlPictures.entries()) {
    const { image } = await tiny.generate(prompt, settings);
    assert.ok(greyLevels(image.data, expected[first + k]) <= 1);
  }
  await tiny.release();
});

test("another seed gives another picture, and a record says how it was made", async () => {
  const first = await model.generate(BOOT, { seed: 7 });
  const second = await model.generate(BOOT, { seed: 2n ** 63n });
  assert.notDeepEqual(first.image.data, second.image.data);
  const { seconds, ...record } = first.record;
  assert.ok(seconds.all > 0 && seconds.all >= seconds.unet);
  assert.deepEqual(record, {
    prompts: [BOOT],
    negative_prompt: "",
    seeds: [7],
    generator: "philox",
    sampler: "ddim",
    eta: 0,
    num_inference_steps: 2,
    guidance_scale: 1,
    height: 64,
    width: 64,
    device: "wasm",
    package: model.package.digest,
    warnings: [],
  });
  assert.deepEqual(second.record.seeds, ["9223372036854775808"]);
  const { record: third } = await model.generate("boot ".repeat(40));
  assert.match(third.warnings[0], /10 tokens more than the 32 that fit/);
  assert.ok(Number.isInteger(third.seeds[0]));
});

test("two calls at once give what they give alone", async () => {
  const drawn = await Promise.all([7, 8].map((seed) => model.generate(BOOT, { seed })));
  for (const [k, { image }] of drawn.entries()) assert.ok(greyLevels(image.data, expected[k]) <= 1);
});

test("steps are reported, and a signal cancels between them", async () => {
  const steps = [];
  const controller = new AbortController();
  const onStep = (step) => {
    steps.push(step);
    if (step.completed === 2) controller.abort();
  };
  await assert.rejects(model.generate(BOOT, { steps: 4, onStep, signal: controller.signal }), { name: "AbortError" });
  assert.deepEqual(steps, [
    { completed: 1, total: 4, timestep: 999 },
    { completed: 2, total: 4, timestep: 749 },
  ]);
});

test("arguments that are wrong are refused by name", async () => {
  for (const [options, message] of [
    [{ seed: 1.5 }, /seed is 1.5/],
    [{ seed: 2n ** 64n }, /seed is 18446744073709551616/],
    [{ steps: 0 }, /steps is 0/],
    [{ steps: 1001 }, /takes 1 to 1000 steps/],
    [{ width: 100 }, /width is 100; this package draws multiples of 32 pixels\nUse 96./],
    [{ width: 1024, height: 1024 }, /1024 x 1024 pixels; at most 589,824 fit/],
    [{ sampler: "euler" }, /sampler is "euler"; one of ddim, lcm, tcd/],
    [{ guidanceScale: NaN }, /guidanceScale is NaN/],
    [{ negativePrompt: 3 }, /negativePrompt is 3/],
    [{ generator: "numpy" }, /generator is "numpy"/],
    [{ eta: 2 }, /eta is 2/],
  ]) {
    await assert.rejects(model.generate("a boot", options), { name: "RcdeployError", message });
  }
  await assert.rejects(model.generate(["a boot"]), /prompt is \["a boot"\]/);
  await assert.rejects(model.generate("a \ud83d boot"), /surrogates stands alone/);
  await assert.rejects(model.generate("a".repeat(10_001)), /at most 10000/);
});
