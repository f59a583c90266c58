// What a page does for bench/onnx_browser.py: /job.json has `runtime` (wasm, webgpu or transformers), `file`, `ids`,
// `text`, `steps`, `data` (whether there is a file of weights) and `adapter` (name → dims, from /adapter/NAME). The last
// logits of every step go to /logits, and what came of it, as JSON, to /said.
import { greedy } from "./onnx_greedy.mjs";

const bytes = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer());
const modules = `${location.origin}/modules`;
const dist = `${modules}/onnxruntime-web/dist/`;

async function byNames(job) {
  const ort = await import(`${dist}${job.runtime === "wasm" ? "ort.wasm.min.mjs" : "ort.webgpu.min.mjs"}`);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = dist;
  ort.env.logLevel = "error";
  if (job.runtime === "webgpu" && !(await navigator.gpu?.requestAdapter())) throw new Error("no WebGPU adapter");
  const externalData = job.data ? [{ path: `${job.file}.data`, data: await bytes(`/model/${job.file}.data`) }] : [];
  const session = await ort.InferenceSession.create(await bytes(`/model/${job.file}`), {
    externalData, executionProviders: [job.runtime], logSeverityLevel: 3,
  });
  const extra = {};
  for (const [name, dims] of Object.entries(job.adapter)) {
    const part = await bytes(`/adapter/${name}`);
    extra[name] = new ort.Tensor("float32", new Float32Array(part.buffer), dims);
  }
  const { tokens, logits } = await greedy(ort, session, job.ids, job.steps, extra);
  await fetch("/logits", { method: "POST", body: logits });
  return { tokens };
}

async function byTransformers(job) {
  const { AutoModelForCausalLM, AutoTokenizer, env } = await import(
    `${modules}/@huggingface/transformers/dist/transformers.web.min.js`
  );
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.useBrowserCache = false;
  env.localModelPath = "/";
  env.backends.onnx.wasm.numThreads = 1;
  env.backends.onnx.wasm.wasmPaths = new URL(".", import.meta.resolve("onnxruntime-web/webgpu")).href;
  const data = `${job.file}.data`;
  const tokenizer = await AutoTokenizer.from_pretrained("model", { local_files_only: true });
  const model = await AutoModelForCausalLM.from_pretrained("model", {
    local_files_only: true, subfolder: "", model_file_name: job.file.replace(/\.onnx$/, ""), dtype: "fp32",
    device: "wasm", session_options: { logSeverityLevel: 3, ...(job.data ? { externalData: [{ path: data, data }] } : {}) },
  });
  const inputs = tokenizer(job.text, { add_special_tokens: false });
  const ids = inputs.input_ids.tolist()[0].map(Number);
  const out = await model.generate({ ...inputs, max_new_tokens: job.steps, do_sample: false });
  return { ids, tokens: out.tolist()[0].map(Number).slice(ids.length) };
}

let said;
try {
  const job = await (await fetch("/job.json")).json();
  said = await (job.runtime === "transformers" ? byTransformers(job) : byNames(job));
} catch (error) {
  said = { failed: `${error}` };
}
await fetch("/said", { method: "POST", body: JSON.stringify(said) });
