// A greedy continuation by onnxruntime-node or onnxruntime-web, for bench/onnx_javascript.py: the exported files as they
// are. node onnx_javascript.mjs RUNTIME MODULES JOB.json: MODULES is the folder of node_modules; the job has `model`,
// `ids`, `steps`, `out` and perhaps `adapter` (name → {dims, file}, fed as ordinary inputs: there is no LoraAdapter here).
// Written to `out`: the last logits of every step, float32; printed: one JSON object.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename } from "node:path";

const [runtime, modules, jobFile] = process.argv.slice(2);
const require = createRequire(`${modules}/x.js`);
const job = JSON.parse(readFileSync(jobFile, "utf8"));
const ort = require(runtime);
const floats = (file) => new Float32Array(new Uint8Array(readFileSync(file)).buffer);
const long = (values, dims) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);

async function open(path) {
  if (runtime === "onnxruntime-node") {
    return ort.InferenceSession.create(path, { intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 3 });
  }
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const data = { path: basename(path) + ".data", data: new Uint8Array(readFileSync(path + ".data")) };
  return ort.InferenceSession.create(new Uint8Array(readFileSync(path)), {
    externalData: [data], executionProviders: ["wasm"], logSeverityLevel: 3,
  });
}

const session = await open(job.model);
const extra = {};
for (const [name, part] of Object.entries(job.adapter ?? {})) {
  extra[name] = new ort.Tensor("float32", floats(part.file), part.dims);
}
const past = {};
for (const input of session.inputMetadata) {
  if (!input.name.startsWith("past_key_values.")) continue;
  past[input.name] = new ort.Tensor("float32", new Float32Array(0), [1, input.shape[1], 0, input.shape[3]]);
}
let fresh = job.ids;
let length = 0;
const tokens = [];
const rows = [];
for (let step = 0; step < job.steps; step++) {
  const positions = fresh.map((_, i) => length + i);
  length += fresh.length;
  const found = await session.run({
    input_ids: long(fresh, [1, fresh.length]),
    attention_mask: long(Array(length).fill(1), [1, length]),
    position_ids: long(positions, [1, fresh.length]),
    ...past,
    ...extra,
  });
  for (const name of Object.keys(past)) past[name] = found[name.replace("past_key_values", "present")];
  const words = found.logits.dims[2];
  const last = found.logits.data.slice((fresh.length - 1) * words);
  rows.push(last);
  fresh = [last.indexOf(last.reduce((a, b) => (b > a ? b : a), -Infinity))];
  tokens.push(fresh[0]);
}
const whole = new Float32Array(rows.length * rows[0].length);
rows.forEach((row, i) => whole.set(row, i * row.length));
writeFileSync(job.out, new Uint8Array(whole.buffer));
const { version } = JSON.parse(readFileSync(`${modules}/${runtime}/package.json`, "utf8"));
console.log(JSON.stringify({ version, tokens }));
