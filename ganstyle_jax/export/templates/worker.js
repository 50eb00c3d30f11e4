// Runs the network beside the page, so that the page answers while it is painted. It is told where the runtime and the
// model are, {kind: "begin"}, and then sent pictures, {kind: "paint"}; it answers with "ready", "painted" or "failed".
"use strict";
let ort = null, session = null;

self.onmessage = async ({data}) => {
  try {
    if (data.kind === "begin") self.postMessage({kind: "ready", ...await begin(data)});
    else {
      const painted = await paint(data);
      self.postMessage({kind: "painted", id: data.id, ...painted}, [painted.pixels.buffer]);
    }
  } catch (error) {
    self.postMessage({kind: "failed", id: data.id, missing: error.missing || null, message: String(error.message || error)});
  }
};

// A file of the page, {name, bytes, url} or {name, bytes, content} where it lies within the page, as an ArrayBuffer.
async function read(file) {
  const refuse = why => Object.assign(new Error(`${file.name} ${why}`), {missing: file.name});
  if (file.content) return file.content;
  let response;
  try { response = await fetch(file.url); } catch { throw refuse("cannot be read"); }
  if (!response.ok) throw refuse(response.status === 404 ? "is missing" : `cannot be read (the server answers ${response.status})`);
  const content = await response.arrayBuffer();
  if (content.byteLength !== file.bytes)
    throw refuse(`is of another export or cut off: it has ${content.byteLength} bytes in the place of ${file.bytes}`);
  return content;
}

async function begin({runtimes, model, check, styles, threads, gpu}) {
  const weights = new Uint8Array(await read(model));
  const reasons = [];
  for (const provider of ["webgpu", "wasm"]) {
    if (!runtimes[provider] || (provider === "webgpu" && !(gpu && await hasGpu()))) continue;
    try {
      await load(provider, runtimes[provider], weights, threads);
      const wrong = await deviation(check, styles);
      if (!(wrong < 0.02)) throw new Error(`what it paints is wrong by ${wrong.toPrecision(2)}`);
      return {provider, threads: provider === "wasm" ? ort.env.wasm.numThreads : 0, reasons, deviation: wrong};
    } catch (error) {
      if (error.missing || provider === "wasm") throw error;
      reasons.push(String(error.message || error).slice(0, 200));
    }
  }
  throw new Error("the page holds no runtime that this browser can use");
}

async function hasGpu() {
  try { return Boolean(self.navigator.gpu && await self.navigator.gpu.requestAdapter()); } catch { return false; }
}

async function load(provider, {script, wasm}, weights, threads) {
  const [program, binary] = await Promise.all([read(script), read(wasm)]);
  // A program within the page has no address yet; one of a server keeps its own, by which it starts its threads.
  const url = script.url || URL.createObjectURL(new Blob([program], {type: "text/javascript"}));
  ort = await import(url);
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(weights, {executionProviders: [provider], logSeverityLevel: 3});
}

// The largest difference from what the network paints of a pattern, at the pixels that the page knows.
async function deviation(check, styles) {
  const {height, width, painted} = check, planes = new Float32Array(3 * height * width);
  for (let i = 0; i < planes.length; i++) planes[i] = (i * 37 % 256) / 127.5 - 1;
  const style = new Float32Array(styles).fill(1 / styles), values = await run(planes, width, height, style);
  return Math.max(...painted.map((value, i) => Math.abs(value - values[i * check.every])));
}

async function run(planes, width, height, style) {
  const feeds = {
    image: new ort.Tensor("float32", planes, [1, 3, height, width]),
    style: new ort.Tensor("float32", style, [1, style.length]),
  };
  const {painted} = await session.run(feeds), values = await painted.getData();
  if (painted.dispose) painted.dispose();
  return values;
}

// pixels: RGBA of 8 bits. exact: give the network's own numbers too, three planes in [-1, 1].
async function paint({pixels, width, height, style, exact}) {
  const begun = performance.now(), n = width * height, planes = new Float32Array(3 * n);
  for (let i = 0; i < n; i++)
    for (let c = 0; c < 3; c++) planes[c * n + i] = pixels[4 * i + c] / 127.5 - 1;
  const values = await run(planes, width, height, style), made = new Uint8ClampedArray(4 * n);
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < 3; c++) made[4 * i + c] = (values[c * n + i] + 1) * 127.5;  // rounded by the array
    made[4 * i + 3] = 255;
  }
  return {pixels: made, width, height, milliseconds: performance.now() - begun, exact: exact ? values : null};
}
