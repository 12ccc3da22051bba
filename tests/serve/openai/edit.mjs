// OpenAI's client for Node, unchanged: `node edit.mjs URL KEY PHOTO` prints what it got, as JSON.
import fs from "node:fs";
import OpenAI from "openai";

const [url, key, photo] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key });
const file = () => fs.createReadStream(photo);
const edit = (options) => client.images.edit({ prompt: "make it sepia", ...options });

const one = await edit({ image: file(), seed: 4, reward_scores: [5, 4.5, 5] });
const list = await edit({ image: [file()], model: "mini", seed: 5, output_format: "webp" });

const events = [];
for await (const event of await edit({ image: file(), seed: 6, stream: true, partial_images: 1 })) {
  events.push({ type: event.type, b64_json: event.b64_json });
}

async function failure(other, options) {
  try {
    await other.images.edit({ image: file(), prompt: "make it sepia", ...options });
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, param: error.param, id: error.requestID };
  }
}

const errors = [
  await failure(client, { mask: file() }),
  await failure(client, { model: "gpt-image-1" }),
  await failure(new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong" }), {}),
];
console.log(JSON.stringify({ one, list, events, errors }));
