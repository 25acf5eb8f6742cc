/** The built demo on a loopback address, and a Chromium that looks at it. */

import { createReadStream, existsSync, statSync } from "node:fs";
import { createServer } from "node:http";
import path from "node:path";
import { fileURLToPath } from "node:url";
import puppeteer from "puppeteer-core";
import { TINY } from "./fixtures.js";

const DEMO = fileURLToPath(new URL("../build/demo/", import.meta.url));
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm" };
const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

export const chromium = process.env.CHROMIUM ?? PLACES.find((place) => existsSync(place));
/** Why there is nothing to test, or false. */
export const skip = chromium ? !existsSync(`${DEMO}index.html`) && "the demo is not built" : "no Chromium is installed";

/**
 * Serves the demo below /some/place/ with the tiny package, and with no header that a static host would not send.
 * @param headers further ones.
 * @param scripts further ones, text by name.
 */
export async function serve(headers = {}, scripts = {}) {
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    const name = decodeURIComponent(pathname).replace(/^\/some\/place\//, "") || "index.html";
    const file = name.startsWith("tiny/") ? path.join(TINY, "..", name) : path.join(DEMO, name);
    if (name in scripts) {
      response.writeHead(200, { "content-type": TYPES[".js"] }).end(scripts[name]);
      return;
    }
    if (!statSync(file, { throwIfNoEntry: false })?.isFile()) {
      response.writeHead(404).end();
      return;
    }
    site.bytes += statSync(file).size;
    response.writeHead(200, { "content-type": TYPES[path.extname(file)] ?? "application/octet-stream", ...headers });
    createReadStream(file).pipe(response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const site = {
    url: `http://127.0.0.1:${server.address().port}/some/place/`,
    /** bytes that were sent */
    bytes: 0,
    close: () => (server.closeAllConnections(), server.close()),
  };
  return site;
}

export function launch(args = []) {
  return puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox", ...args] });
}

/** Waits until the page has an enabled button to draw with, and nothing is running. */
export function ready(page) {
  const isReady = () => {
    const { disabled, textContent } = document.getElementById("draw");
    return !disabled && textContent === "Draw";
  };
  return page.waitForFunction(isReady, { timeout: 120_000 });
}

/** RGBA of the page's canvas. */
export function pixels(page) {
  return page.$eval("#canvas", (canvas) => [
    ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data,
  ]);
}
