// OpenAI's own package against a gateway: node openai_images.mjs URL writes what it was answered.
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { prompt: "a red cube", size: "64x48", num_inference_steps: 3, seed: 7 };

const generated = (await client.images.generate({ ...asked, n: 2 })).data.map((one) => one.b64_json);
const streamed = [];
for await (const event of await client.images.generate({ ...asked, stream: true, partial_images: 1 }))
  if (event.type === "image_generation.completed") streamed.push(event.b64_json);
const image = await toFile(Buffer.from(generated[0], "base64"), "cube.png", { type: "image/png" });
const edited = (await client.images.edit({ ...asked, image })).data[0].b64_json;
const { status, param, type } = await client.images.generate({ ...asked, size: "3" }).catch((error) => error);
console.log(JSON.stringify({ generated, streamed, edited, refused: { status, param, type } }));
