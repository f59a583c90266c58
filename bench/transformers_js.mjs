// A greedy continuation by transformers.js, for bench/onnx_javascript.py: node transformers_js.mjs MODULES JOB.json. The
// job has `folder` (config.json, tokenizer.json, tokenizer_config.json), `file` (the ONNX file in it), `text` and `steps`.
// Printed: one JSON object with the version, the text's ids, the chat template's text and the new tokens.
import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, jobFile] = process.argv.slice(2);
const job = JSON.parse(readFileSync(jobFile, "utf8"));
const home = `${modules}/@huggingface/transformers`;
const { version, exports } = JSON.parse(readFileSync(`${home}/package.json`, "utf8"));
const { AutoModelForCausalLM, AutoTokenizer, env, LogLevel } = await import(
  pathToFileURL(`${home}/${exports.node.import.default ?? exports.node.import}`)
);
env.allowRemoteModels = false;
env.localModelPath = dirname(job.folder);
const name = basename(job.folder);
const tokenizer = await AutoTokenizer.from_pretrained(name, { local_files_only: true });
const model = await AutoModelForCausalLM.from_pretrained(name, {
  local_files_only: true, subfolder: "", model_file_name: job.file.replace(/\.onnx$/, ""), dtype: "fp32", device: "cpu",
  session_options: { logSeverityLevel: 3 },
});
const inputs = tokenizer(job.text, { add_special_tokens: false });
const ids = inputs.input_ids.tolist()[0].map(Number);
const out = await model.generate({ ...inputs, max_new_tokens: job.steps, do_sample: false });
const chat = tokenizer.apply_chat_template([{ role: "user", content: "Hello?" }], {
  tokenize: false, add_generation_prompt: true,
});
console.log(JSON.stringify({ version, ids, chat, tokens: out.tolist()[0].map(Number).slice(ids.length) }));
