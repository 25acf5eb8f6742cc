/** One image by ONNX Runtime Web in Node, of an ONNX package: FOLDER SETTINGS (JSON) IMAGE (raw RGB). */

import { writeFileSync } from "node:fs";
import { TextToImage } from "../../web/dist/index.js";
import { folder } from "../../web/dist/node.js";

const [source, settings, file] = process.argv.slice(2);
const { prompt, seed, num_inference_steps: steps, guidance_scale: guidanceScale, height, width } = JSON.parse(settings);
const model = await TextToImage.load(folder(source));
const { image } = await model.generate(prompt, { seed, steps, guidanceScale, height, width });
writeFileSync(file, image.data.filter((_, index) => index % 4 < 3)); // without alpha
await model.release();
