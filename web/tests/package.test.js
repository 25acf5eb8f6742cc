/** Packages that are damaged, foreign, too big, or far away. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import path from "node:path";
import { test } from "node:test";
import { Package, TextToImage } from "../dist/index.js";
import { folder } from "../dist/node.js";
import { externalFiles } from "../dist/onnx_file.js";
import { isInside } from "../dist/manifest.js";
import { checkTokenizer, patternProblem } from "../dist/tokenizer_checks.js";
import { STUDENT, TINY } from "./fixtures.js";

const UNET = "unet/model.onnx";

/** The tiny package as a Map of files, with changes to its manifest and its files (null: none). */
function tiny({ manifest = (data) => data, files = {} } = {}) {
  const contents = new Map();
  for (const name of readdirSync(TINY, { recursive: true })) {
    if (statSync(path.join(TINY, name)).isFile()) contents.set(name, new Blob([readFileSync(path.join(TINY, name))]));
  }
  const data = JSON.parse(readFileSync(path.join(TINY, "manifest.json"), "utf8"));
  contents.set("manifest.json", new Blob([JSON.stringify(manifest(data) ?? data)]));
  for (const [name, bytes] of Object.entries(files)) {
    if (bytes === null) contents.delete(name);
    else contents.set(name, new Blob([bytes]));
  }
  return contents;
}

const listed = (bytes) => ({ size: bytes.length, sha256: createHash("sha256").update(bytes).digest("hex") });
const refused = (promise, message) => assert.rejects(promise, { name: "RcdeployError", message });

test("a manifest that is damaged or of something else is refused", async () => {
  const open = (manifest) => Package.open(tiny({ manifest }));
  await refused(Package.open(tiny({ files: { "manifest.json": "{" } })), /manifest.json is not JSON/);
  await refused(Package.open(tiny({ files: { "manifest.json": null } })), /has no manifest.json/);
  await refused(
    Package.open(tiny({ files: { "manifest.json": Buffer.alloc(9 * 2 ** 20) } })),
    /more than 8,388,608 bytes/,
  );
  await refused(
    open((data) => void (data.kind = "run")),
    /is a "run", not a package/,
  );
  await refused(
    open((data) => void (data.schema_version = 2)),
    /schema version 2.*up to 1/s,
  );
  await refused(
    open((data) => void (data.facts.format = "openvino")),
    /"openvino"; browsers run onnx/,
  );
  await refused(
    open((data) => void (data.facts.sdxl = {})),
    /facts.sdxl.hidden_states is undefined/,
  );
  await refused(
    open((data) => void delete data.files[UNET]),
    /lists no unet\/model.onnx/,
  );
  await refused(
    open((data) => void (data.files["../x"] = data.files[UNET])),
    /no path inside the package/,
  );
  await refused(
    open((data) => void (data.files[UNET].size = -1)),
    /size is -1/,
  );
  await refused(
    open((data) => void (data.files[UNET].sha256 = "abc")),
    /is no digest/,
  );
  await refused(
    open((data) => void (data.latents.shape = [4, 8])),
    /latents.shape is \[4,8\]/,
  );
  await refused(
    open((data) => void (data.facts.sampling.num_inference_steps = 0)),
    /num_inference_steps is 0/,
  );
  await refused(
    open((data) => void (data.facts.static_size = [64])),
    /static_size is \[64\]/,
  );
  await refused(
    open((data) => void (data.facts.size_multiple = 12)),
    /size_multiple is 12/,
  );
  await refused(Package.open("http://", {}), /no URL/);
});

test("a package that is too big for a browser is refused by the limit that it exceeds", async () => {
  const sized = (size, options) =>
    Package.open(tiny({ manifest: (data) => void (data.files[UNET].size = size) }), options);
  await refused(sized(3 * 2 ** 30), /unet\/model.onnx has 3.00 GiB; browsers hold less than 2 GiB in one file/);
  await refused(sized(2 ** 31 - 1), /needs 2.00 GiB; WebAssembly has 4 GiB/);
  await refused(sized(2 ** 30), /maxBytes allows 1,073,741,824/);
  await refused(Package.open(tiny(), { maxBytes: 100 }), /maxBytes allows 100/);
  await refused(
    Package.open(tiny({ manifest: (data) => void (data.facts.static_size = [1024, 1024]) })),
    /1024 x 1024 pixels; at most 589,824 fit/,
  );
});

test("a file that is cut, changed, missing or not listed is refused, by its name", async () => {
  const whole = readFileSync(path.join(TINY, UNET));
  const read = async (files, name = UNET) => (await Package.open(tiny({ files }))).file(name);
  assert.deepEqual(Buffer.from(await read({})), whole);
  await refused(read({ [UNET]: whole.subarray(1) }), /has 473 bytes, its manifest says 474/);
  await refused(read({ [UNET]: Buffer.concat([whole, whole]) }), /has more than 474 bytes/);
  await refused(read({ [UNET]: Buffer.from(whole).fill(0, 5, 6) }), /not those that were packed/);
  await refused(read({ [UNET]: null }), /has no unet\/model.onnx/);
  await refused(read({}, "manifest.json"), /manifest.json is not in its manifest/);
  await refused((await Package.open(folder(`${TINY}unet/..`))).file("unet/gone"), /not in its manifest/);
  await refused(Package.open(folder("/nowhere")), /no file manifest.json/);
});

test("a digest names the very package", async () => {
  const { digest } = await Package.open(tiny());
  assert.equal((await Package.open(tiny(), { digest })).digest, digest);
  await refused(
    Package.open(tiny(), { digest: `sha256:${"0".repeat(64)}` }),
    /not the expected package: its digest is sha256:/,
  );
  await refused(Package.open(tiny(), { digest: "abc" }), /64 hex digits/);
});

test("names stay inside the package", () => {
  for (const name of ["unet/model.onnx", "a b/c-1.data", "captions (1) é?#%2e.txt"]) assert.ok(isInside(name), name);
  for (const name of ["", "/x", "../x", "a/../x", "a//b", "a\\b", "c:x", "a\0b", ".", "a/."]) {
    assert.ok(!isInside(name), name);
  }
});

test("external weights must be listed, and control flow is refused", async () => {
  const decoder = readFileSync(path.join(TINY, "vae_decoder/model.onnx"));
  assert.deepEqual(externalFiles(decoder, "x"), ["model.onnx.data"]);
  const unlisted = tiny({ manifest: (data) => void delete data.files["vae_decoder/model.onnx.data"] });
  await refused(TextToImage.load(unlisted), /needs "model.onnx.data", which is not in the package/);
  const field = (number, content) => Buffer.from([8 * number + 2, content.length, ...content]);
  const loop = field(7, field(1, field(4, Buffer.from("Loop"))));
  assert.throws(() => externalFiles(loop, "unet"), /operators Loop; networks with control flow are refused/);
  assert.throws(() => externalFiles(loop.subarray(0, 4), "unet"), /unet is no ONNX model/);
  assert.throws(() => externalFiles(Buffer.alloc(20, 0xff), "unet"), /unet is no ONNX model/);
  const damaged = tiny({
    manifest: (data) => void (data.files[UNET] = listed(loop.fill("x", 6))),
    files: { [UNET]: loop },
  });
  await refused(TextToImage.load(damaged), /ONNX Runtime Web cannot load the unet/);
});

test("a tokenizer that could search without an end is refused", async () => {
  for (const pattern of [String.raw`'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+`, String.raw`\s+(?!\S)|\s+`, "a?b+"]) {
    assert.equal(patternProblem(pattern), null, pattern);
  }
  for (const pattern of ["(a+)+b", "a+b", "a+a+", "a?a?a?", "^a", String.raw`(a)\1`, "x".repeat(401)]) {
    assert.ok(patternProblem(pattern), pattern);
  }
  assert.throws(() => checkTokenizer({ normalizer: { type: "Prepend", prepend: "x".repeat(5) } }), /inserts more text/);
  assert.throws(
    () => checkTokenizer({ pre_tokenizer: { pattern: { Regex: "(a+)+" } } }),
    /the pattern \(a\+\)\+ is refused/,
  );
});

test("progress is in bytes, and a second load comes from the cache", async () => {
  const known = new Map();
  const cache = {
    get: async (digest) => known.get(digest),
    put: async (digest, bytes) => void known.set(digest, bytes),
  };
  const load = async () => {
    const reports = [];
    const model = await TextToImage.load(tiny(), { cache, onProgress: (progress) => reports.push(progress) });
    await model.release();
    for (const [i, { loaded }] of reports.entries())
      assert.ok(!i || loaded > reports[i - 1].loaded || reports[i].preparing);
    return reports.at(-1);
  };
  const first = await load();
  assert.equal(first.loaded, first.total);
  assert.equal(first.downloaded, first.total);
  assert.equal(known.size, 7);
  assert.equal((await load()).downloaded, 0);
  const [[digest, bytes]] = known;
  known.set(digest, bytes.slice().fill(0)); // damaged: it is read anew
  assert.equal((await load()).downloaded, bytes.length);
  assert.notEqual(known.get(digest)[0], 0);
});

test("loading is cancelled by a signal", async () => {
  const controller = new AbortController();
  const onProgress = () => controller.abort();
  await assert.rejects(TextToImage.load(tiny(), { signal: controller.signal, onProgress }), { name: "AbortError" });
  await assert.rejects(Package.open(tiny(), { signal: AbortSignal.abort() }), { name: "AbortError" });
});

test("from a server: whole, missing, broken off, endless, gone", async (t) => {
  const manifest = JSON.parse(readFileSync(path.join(STUDENT, "manifest.json"), "utf8"));
  const odd = "captions (1) é?#%2e.txt";
  manifest.files[odd] = manifest.files["captions.txt"];
  let serve = (name, response) => response.end(readFileSync(path.join(STUDENT, name)));
  const server = createServer((request, response) => {
    const name = decodeURIComponent(request.url.replace("/student/", ""));
    if (name === "manifest.json") response.end(JSON.stringify(manifest));
    else serve(name, response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => server.close());
  const url = `http://127.0.0.1:${server.address().port}/student`;
  const opened = await Package.open(url);
  const asked = [];
  const usual = serve;
  serve = (name, response) => (asked.push(name), usual("captions.txt", response));
  await opened.file(odd);
  assert.deepEqual(asked, [odd]);
  assert.equal((await opened.captions())[0], "a photo of a small red t-shirt on the left on a yellow background");
  serve = (_, response) => response.writeHead(404).end();
  await refused(opened.file(UNET), /unet\/model.onnx was answered with 404/);
  serve = (_, response) => void (response.write("x"), setTimeout(() => response.destroy(), 20));
  await refused(opened.file(UNET), /reading unet\/model.onnx broke off/);
  let sent = 0;
  serve = (_, response) => {
    const more = () => {
      while (!response.destroyed && response.write(Buffer.alloc(2 ** 16))) sent += 2 ** 16;
    };
    response.on("drain", more);
    more();
  };
  await refused(opened.file("tokenizer/merges.txt"), /has more than 782 bytes/);
  assert.ok(sent < 2 ** 24);
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  await refused(opened.file(UNET), /cannot be fetched/);
});
