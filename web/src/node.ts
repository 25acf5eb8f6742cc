/** Packages in folders of this machine, for Node. */

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import path from "node:path";
import { Readable } from "node:stream";
import { RcdeployError } from "./errors.js";
import type { FileSource } from "./files.js";

/** The files of a package in a folder. */
export function folder(root: string): FileSource {
  return {
    name: root,
    async open(file) {
      const location = path.join(root, file);
      const found = await stat(location).catch(() => null);
      if (!found?.isFile()) throw new RcdeployError(`${root} has no file ${file}`, "Copy the whole package again.");
      return Readable.toWeb(createReadStream(location)) as ReadableStream<Uint8Array>;
    },
  };
}
