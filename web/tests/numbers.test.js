/** Noise, timesteps, samplers, half precision and tokens are the Python runtime's. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fromHalf, toHalf } from "../dist/float16.js";
import { guidanceEmbedding } from "../dist/guidance.js";
import { makeSampler, noiseGenerator, NoiseSchedule } from "../dist/index.js";
import { spacedTimesteps } from "../dist/noise_schedule.js";
import { PromptTokenizer } from "../dist/tokenizer.js";
import { close, digest, fixtures, STUDENT } from "./fixtures.js";

for (const { generator, seed, values } of fixtures.noise) {
  test(`${values[0].length} numbers of ${generator}, seed ${seed}, and as many after them`, () => {
    const noise = noiseGenerator(BigInt(seed), generator);
    const tolerance = generator === "philox" ? 0 : 2e-6; // torch's own last bits depend on the processor
    for (const expected of values) close(noise.standardNormal(expected.length), expected, tolerance);
  });
}

test("many numbers of philox: strips, wedges and tail", () => {
  const { seed, count, tailBegins, tail, sha256 } = fixtures.longNoise;
  const values = noiseGenerator(BigInt(seed)).standardNormal(count);
  const inTail = (value) => Math.abs(value) > tailBegins;
  close(values.filter(inTail), tail);
  assert.equal(digest(values.map((value) => (inTail(value) ? 0 : value))), sha256);
});

for (const { spacing, trainTimesteps, stepsOffset, sha256 } of fixtures.timesteps) {
  test(`timesteps of every number of steps: ${spacing}, ${trainTimesteps}`, () => {
    const all = Array.from({ length: trainTimesteps }, (_, i) =>
      spacedTimesteps(spacing, i + 1, trainTimesteps, stepsOffset),
    );
    assert.equal(digest(Int32Array.from(all.flat())), sha256);
  });
}

for (const { config, alphas, runs } of fixtures.samplers) {
  test(`samplers on ${JSON.stringify(config)}`, () => {
    const schedule = new NoiseSchedule(config);
    assert.equal(digest(schedule.alphasCumprod), alphas);
    for (const { sampler: name, steps, eta, refused, timesteps, x: expected } of runs) {
      const noise = noiseGenerator(3n);
      const draw = () => noise.standardNormal(24);
      let x = draw();
      if (refused) {
        assert.throws(() => makeSampler(name, schedule, steps, draw, eta), { name: "RcdeployError" }, refused);
        continue;
      }
      const sampler = makeSampler(name, schedule, steps, draw, eta);
      assert.deepEqual(sampler.timesteps, timesteps);
      for (const i of timesteps.keys()) x = sampler.step(noiseGenerator(BigInt(100 + i)).standardNormal(24), i, x);
      close(x, expected);
    }
  });
}

test("what no sampler here can follow is refused by name", () => {
  assert.throws(() => new NoiseSchedule({ beta_schedule: "sigmoid" }), /beta_schedule is "sigmoid"/);
  assert.throws(() => new NoiseSchedule({ thresholding: true }), /thresholding/);
  assert.throws(() => new NoiseSchedule({ beta_end: 2 }), /beta_end is 2/);
  assert.throws(() => new NoiseSchedule({ trained_betas: [0.5, 1] }), /alphas_cumprod/);
  assert.throws(() => makeSampler("lcm", new NoiseSchedule({}), 2, null, 0.5), /lcm has none/);
});

test("the embedding of a guidance scale", () => {
  // angles are thousands of radians, and the last bit of a float32 of that size is 2e-4
  for (const { scale, values } of fixtures.guidance) close(guidanceEmbedding(scale, values.length), values, 1e-3);
});

test("half precision rounds to nearest, ties to even", () => {
  for (const { value, bits } of fixtures.halves) {
    assert.equal(toHalf(value), bits, `${value}`);
    if (Number.isFinite(value) && Math.abs(value) < 65520)
      assert.ok(Math.abs(fromHalf(bits) - value) <= Math.abs(value) / 2048 + 2 ** -25);
  }
  for (let bits = 0; bits < 2 ** 16; bits++) {
    const value = fromHalf(bits);
    if (!Number.isNaN(value)) assert.equal(toHalf(value), bits);
  }
  assert.equal(toHalf(65520), 0x7c00);
  assert.equal(toHalf(-Infinity), 0xfc00);
  assert.ok(Number.isNaN(fromHalf(toHalf(NaN))));
});

test("tokens", () => {
  const read = (name) => JSON.parse(readFileSync(`${STUDENT}tokenizer/${name}`, "utf8"));
  const tokenizer = new PromptTokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
  for (const { prompt, ids } of fixtures.tokens) assert.deepEqual(tokenizer.encode(prompt).ids, ids, prompt);
  assert.equal(tokenizer.encode("a boot").cut, 0);
  assert.equal(tokenizer.encode("boot ".repeat(40)).cut, 10);
});
