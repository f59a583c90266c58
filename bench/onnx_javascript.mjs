// A greedy continuation by onnxruntime-node or onnxruntime-web, for bench/onnx_javascript.py: the exported files as they
// are. node onnx_javascript.mjs RUNTIME MODULES JOB.json: MODULES is the folder of node_modules; the job has `model`,
// `ids`, `steps`, `out` and perhaps `adapter` (name → {dims, file}, fed as ordinary inputs: there is no LoraAdapter here).
// Written to `out`: the last logits of every step, float32; printed: one JSON object.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename } from "node:path";
import { greedy } from "./onnx_greedy.mjs";

const [runtime, modules, jobFile] = process.argv.slice(2);
const require = createRequire(`${modules}/x.js`);
const job = JSON.parse(readFileSync(jobFile, "utf8"));
const ort = require(runtime);
const floats = (file) => new Float32Array(new Uint8Array(readFileSync(file)).buffer);

async function open(path) {
  if (runtime === "onnxruntime-node") {
    return ort.InferenceSession.create(path, { intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 3 });
  }
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const beside = path + ".data";
  const data = { path: basename(beside), data: existsSync(beside) ? new Uint8Array(readFileSync(beside)) : null };
  return ort.InferenceSession.create(new Uint8Array(readFileSync(path)), {
    externalData: data.data ? [data] : [], executionProviders: ["wasm"], logSeverityLevel: 3,
  });
}

const session = await open(job.model);
const extra = {};
for (const [name, part] of Object.entries(job.adapter ?? {})) {
  extra[name] = new ort.Tensor("float32", floats(part.file), part.dims);
}
const { tokens, logits } = await greedy(ort, session, job.ids, job.steps, extra);
writeFileSync(job.out, logits);
const { version } = JSON.parse(readFileSync(`${modules}/${runtime}/package.json`, "utf8"));
console.log(JSON.stringify({ version, tokens }));
