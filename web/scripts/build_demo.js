/**
 * The demo as one folder of static files, build/demo: the page, its worker, ONNX Runtime's WebAssembly, and a package.
 *
 *     node scripts/build_demo.js [PACKAGE]      by default examples/students/fashion
 */

import { cpSync, existsSync, mkdirSync, rmSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = fileURLToPath(new URL("../", import.meta.url));
const target = path.join(root, "build/demo");
const from = process.argv[2] ?? path.join(root, "../examples/students/fashion");
const modules = path.join(root, "node_modules");

if (!existsSync(path.join(from, "manifest.json"))) {
  console.error(`${from} is no package: it has no manifest.json. Make one with: rcdeploy export RUN --format onnx`);
  process.exit(2);
}
rmSync(target, { recursive: true, force: true });
mkdirSync(target, { recursive: true });
await build({
  entryPoints: { main: path.join(root, "demo/main.js"), worker: path.join(root, "dist/worker.js") },
  outdir: target,
  bundle: true,
  format: "esm",
  splitting: true, // ONNX Runtime is fetched by the worker alone, and only the part for its backend
  minify: true,
  target: "es2022",
  external: ["node:*", "fs", "module", "path", "url", "worker_threads"], // of ONNX Runtime, in Node only
  logLevel: "warning",
});
for (const name of ["index.html", "style.css", "licences"])
  cpSync(path.join(root, "demo", name), path.join(target, name), { recursive: true });
cpSync(from, path.join(target, "package"), { recursive: true });
for (const name of ["ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.asyncify.wasm"]) {
  // the second for WebGPU
  cpSync(path.join(modules, "onnxruntime-web/dist", name), path.join(target, name));
}
cpSync(path.join(root, "../LICENSE"), path.join(target, "licences/rcdeploy.txt"));
cpSync(path.join(modules, "@huggingface/tokenizers/LICENSE"), path.join(target, "licences/tokenizers.txt"));
