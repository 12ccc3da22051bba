// Edit a PNG with an export, in JavaScript on onnxruntime-node: the same steps as edit.py beside it (docs/graphs.md).
//
//     cd docs/graphs && npm install && node edit.js EXPORT IMAGE.png INSTRUCTION OUTPUT.png [SEED]

const { readFileSync, writeFileSync } = require("node:fs");
const { join } = require("node:path");
const { InferenceSession, Tensor } = require("onnxruntime-node");
const { Tokenizer } = require("@huggingface/tokenizers");
const { PNG } = require("pngjs");

const [folder, image, instruction, output, seed = "0"] = process.argv.slice(2);
const json = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
const float = (values, ...dims) => new Tensor("float32", Float32Array.from(values), dims);
const hypot1 = (sigma) => Math.sqrt(sigma * sigma + 1);

// Rows of a tensor along its first dimension, in the order that is given
function rows(tensor, order) {
  const size = tensor.data.length / tensor.dims[0];
  const data = new Float32Array(order.length * size);
  order.forEach((row, i) => data.set(tensor.data.subarray(row * size, (row + 1) * size), i * size));
  return new Tensor("float32", data, [order.length, ...tensor.dims.slice(1)]);
}

// The numbers of torch.randn on the CPU: the Mersenne Twister and Box–Muller in groups of sixteen
function* mersenne(seed) {
  const words = new Uint32Array(624);
  words[0] = seed;
  for (let i = 1; i < 624; i++) words[i] = Math.imul(1812433253, words[i - 1] ^ (words[i - 1] >>> 30)) + i;
  for (;;) {
    for (let i = 0; i < 624; i++) {
      const mixed = (words[i] & 0x80000000) | (words[(i + 1) % 624] & 0x7fffffff);
      words[i] = words[(i + 397) % 624] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
    }
    for (let word of words) {
      word ^= word >>> 11;
      word ^= (word << 7) & 0x9d2c5680;
      word ^= (word << 15) & 0xefc60000;
      yield (word ^ (word >>> 18)) & 0xffffff; // torch uses 24 bits
    }
  }
}
function normal(random, count) {
  const uniform = Float32Array.from({ length: count }, () => random.next().value / 2 ** 24);
  return uniform.map((_, i) => {
    const pair = i % 16 < 8 ? i : i - 8;
    const radius = Math.sqrt(-2 * Math.log(1 - uniform[pair])), angle = 2 * Math.PI * uniform[pair + 8];
    return radius * (i % 16 < 8 ? Math.cos(angle) : Math.sin(angle));
  });
}

async function main() {
  const manifest = json("manifest.json"), config = json("scheduler/scheduler_config.json");
  const { geometry, defaults } = manifest;
  const sampler = defaults.scheduler ?? manifest.scheduler, steps = defaults.num_inference_steps;
  if (sampler !== "euler" || config.timestep_spacing !== "linspace") throw Error(`no ${sampler} here; see docs/graphs.md`);
  const sessions = {};
  async function run(graph, values) {
    const { path } = manifest.artifacts.find((artifact) => artifact.role === graph && artifact.runtime === "onnx");
    const session = (sessions[graph] ??= await InferenceSession.create(join(folder, path)));
    return session.run(Object.fromEntries(session.inputNames.map((name) => [name, values[name]])));
  }

  // 1. Texts: the instruction, the empty text, and the text that says "no faults"
  const tokenizer = new Tokenizer(json("tokenizer/tokenizer.json"), {});
  const length = geometry.text_length, ids = new BigInt64Array(3 * length).fill(BigInt(geometry.pad_token_id));
  [instruction, "", "None; None; None"].forEach((text, row) => {
    let tokens = tokenizer.encode(text).ids;
    if (tokens.length > length) tokens = [...tokens.slice(0, length - 1), geometry.eos_token_id];
    tokens.forEach((token, i) => (ids[row * length + i] = BigInt(token)));
  });
  const { states, pooled } = await run("text_encoder", { input_ids: new Tensor("int64", ids, [3, length]) });

  // 2. The image, whose sides are multiples of the model's
  const { width, height, data } = PNG.sync.read(readFileSync(image));
  if (width % geometry.multiple || height % geometry.multiple) throw Error(`sides must be multiples of ${geometry.multiple}`);
  const area = width * height, pixels = new Float32Array(3 * area);
  for (let i = 0; i < 3 * area; i++) pixels[i] = data[(i % area) * 4 + Math.floor(i / area)] / 127.5 - 1;
  const source = (await run("vae_encoder", { images: float(pixels, 1, 3, height, width) })).latents;
  const [, channels, high, wide] = source.dims, count = source.data.length;

  // 3. Noise levels and timesteps, then all that depends on texts, reward and timesteps alone
  const total = config.num_train_timesteps, [start, end] = [config.beta_start ** 0.5, config.beta_end ** 0.5];
  let alpha = 1;
  const levels = Array.from({ length: total }, (_, i) => {
    alpha *= 1 - (start + ((end - start) * i) / (total - 1)) ** 2;
    return Math.sqrt(1 / alpha - 1);
  });
  const timesteps = Array.from({ length: steps }, (_, i) => (steps > 1 ? (total - 1) * (1 - i / (steps - 1)) : 0));
  const between = (t) => levels[Math.floor(t)] + (t % 1) * (levels[Math.ceil(t)] - levels[Math.floor(t)]);
  const sigmas = [...timesteps.map(between), 0];
  const conditions = await run("conditioner", {
    timesteps: float(timesteps, steps), text_states: rows(states, [0, 1]),
    reward_scores: float([5, 5, 5], 1, 3), reward_text: rows(pooled, [2]),
  });

  // 4. Two inputs, with and without the source; three branches: with text and image, image alone, neither
  const text = defaults.guidance_scale, picture = text > 1 ? defaults.image_guidance_scale : 1; // as in diffusers
  const constant = {
    branch: new Tensor("int64", BigInt64Array.from([0n, 0n, 1n]), [3]), text_kv: rows(conditions.text_kv, [0, 1, 1]),
    guidance: float([text, picture - text, 1 - picture], 1, 3),
  };
  for (const name of ["gate", "gate_bias", "base", "update"])
    if (conditions[name]) constant[name] = rows(conditions[name], [0, 0]);

  // 5. The loop: Euler's method
  const latents = normal(mersenne(Number(seed)), count).map((value) => value * Math.max(...sigmas));
  for (let step = 0; step < steps; step++) {
    const [here, after] = sigmas.slice(step), scale = hypot1(here), sample = new Float32Array(4 * count);
    for (let i = 0; i < count; i++) sample[i] = sample[2 * count + i] = latents[i] / scale;
    sample.set(source.data, count); // the second input sees zeros in its place
    const width = conditions.time_bias.data.length / steps;
    const bias = conditions.time_bias.data.subarray(step * width, (step + 1) * width);
    const time_bias = float([...bias, ...bias], 2, width);
    const { noise } = await run("unet", { sample: float(sample, 2, 2 * channels, high, wide), time_bias, ...constant });
    for (let i = 0; i < count; i++) {
      let predicted = noise.data[i];
      if (config.prediction_type === "v_prediction") predicted = ((latents[i] * here) / scale + predicted) / scale;
      latents[i] += (after - here) * predicted;
    }
  }

  // 6. The image again
  const { images } = await run("vae_decoder", { latents: float(latents, 1, channels, high, wide) });
  const png = new PNG({ width, height });
  png.data.fill(255); // alpha
  for (let i = 0; i < 3 * area; i++) {
    const unit = Math.min(1, Math.max(0, images.data[i] / 2 + 0.5));
    png.data[(i % area) * 4 + Math.floor(i / area)] = Math.round(unit * 255);
  }
  writeFileSync(output, PNG.sync.write(png));
}

main();
