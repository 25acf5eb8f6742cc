/**
 * Seconds of loading and drawing from examples/students/fashion, medians, in Node and in Chromium where there is one.
 *
 *     node scripts/bench.js [REPEATS]
 */

import { setTimeout as sleep } from "node:timers/promises";
import { TextToImage } from "../dist/index.js";
import { folder } from "../dist/node.js";
import { STUDENT } from "../tests/fixtures.js";
import { launch, ready, serve, skip } from "../tests/site.js";

const PROMPT = "a photo of a red boot on a white background";
const PICTURES = 10;
const repeats = Number(process.argv[2] ?? 3);

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
const report = (where, what, values) => {
  const all = values.map((value) => value.toFixed(2)).join(", ");
  console.log(`${where}: ${what} ${median(values).toFixed(2)} s (${all})`);
};

async function node() {
  const times = { load: [], first: [], next: [] };
  for (let i = 0; i < repeats; i++) {
    const started = performance.now();
    const model = await TextToImage.load(folder(STUDENT));
    times.load.push((performance.now() - started) / 1000);
    for (let k = 0; k < PICTURES; k++) {
      const { record } = await model.generate(PROMPT, { seed: k });
      times[k ? "next" : "first"].push(record.seconds.all);
    }
    await model.release();
  }
  for (const [what, values] of Object.entries(times)) report("Node", what, values);
}

async function chromium() {
  const times = { load: [], first: [], next: [] };
  for (let i = 0; i < repeats; i++) {
    const site = await serve();
    const browser = await launch();
    const page = await browser.newPage();
    const started = performance.now();
    await page.goto(site.url);
    await ready(page);
    times.load.push((performance.now() - started) / 1000);
    for (let k = 0; k < PICTURES; k++) {
      await page.click("#draw");
      await page.waitForFunction((n) => document.querySelectorAll("#pictures img").length === n, {}, k + 1);
      const record = JSON.parse(await page.$eval("#record", (shown) => shown.textContent));
      times[k ? "next" : "first"].push(record.seconds.all);
    }
    if (!i) console.log(`Chromium: ${site.bytes} bytes at the first visit`);
    await browser.close();
    site.close();
    await sleep(500);
  }
  for (const [what, values] of Object.entries(times)) report("Chromium", what, values);
}

await node();
if (skip) console.log(`Chromium: not timed, because ${skip}`);
else await chromium();
