// The greedy continuation that node (onnx_javascript.mjs) and a browser (onnx_browser.mjs) run: the exported files as they
// are. `ort`: onnxruntime-node or -web; `extra`: inputs of an adapter, fed on every run.
export async function greedy(ort, session, ids, steps, extra) {
  const long = (values, dims) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
  const past = {};
  for (const input of session.inputMetadata) {
    if (!input.name.startsWith("past_key_values.")) continue;
    past[input.name] = new ort.Tensor("float32", new Float32Array(0), [1, input.shape[1], 0, input.shape[3]]);
  }
  let fresh = ids;
  let length = 0;
  const tokens = [];
  const rows = [];
  for (let step = 0; step < steps; step++) {
    const positions = fresh.map((_, i) => length + i);
    length += fresh.length;
    const feeds = {
      input_ids: long(fresh, [1, fresh.length]),
      attention_mask: long(Array(length).fill(1), [1, length]),
      ...past,
      ...extra,
    };
    if (session.inputNames.includes("position_ids")) feeds.position_ids = long(positions, [1, fresh.length]);
    const found = await session.run(feeds);
    for (const name of Object.keys(past)) past[name] = found[name.replace("past_key_values", "present")];
    const last = found.logits.data.slice((fresh.length - 1) * found.logits.dims[2]);
    rows.push(last);
    fresh = [last.indexOf(last.reduce((a, b) => (b > a ? b : a), -Infinity))];
    tokens.push(fresh[0]);
  }
  const whole = new Float32Array(rows.length * rows[0].length);
  rows.forEach((row, i) => whole.set(row, i * row.length));
  return { tokens, logits: new Uint8Array(whole.buffer) };
}
