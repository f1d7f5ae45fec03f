// What a picture's file says of how it was made: Triptych's own record, or the text that other tools write.

import type { Json, Parameters } from "./types";

const SOLVERS: Record<string, string> = {
  euler: "euler",
  "euler a": "euler_ancestral",
  heun: "heun",
  "dpm++ 2m": "dpmpp_2m",
  unipc: "unipc",
  lcm: "lcm",
};
const SCHEDULES = ["karras", "exponential", "beta"];

/** The parameters in a file, or null where it says none. */
export async function recorded(file: Blob): Promise<Parameters | null> {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const texts = isPng(bytes) ? await textsOf(bytes) : recordOfXmp(bytes);
  try {
    const record = JSON.parse(texts["triptych"] ?? "null") as { request?: Parameters } | null;
    if (record?.request) return record.request;
  } catch {
    // some other program's text
  }
  return texts["parameters"] ? fromText(texts["parameters"]) : null;
}

const isPng = (bytes: Uint8Array): boolean => [0x89, 0x50, 0x4e, 0x47].every((byte, at) => bytes[at] === byte);

/** The text chunks of a PNG: tEXt, zTXt and iTXt. */
async function textsOf(bytes: Uint8Array): Promise<Record<string, string>> {
  const view = new DataView(bytes.buffer);
  const texts: Record<string, string> = {};
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const kind = latin1(bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    const [key, rest] = upToZero(data);
    if (kind === "tEXt") texts[latin1(key)] = latin1(rest);
    if (kind === "zTXt") texts[latin1(key)] = latin1(await inflated(rest.subarray(1)));
    if (kind === "iTXt") {
      const text = upToZero(upToZero(rest.subarray(2))[1])[1];
      texts[latin1(key)] = new TextDecoder().decode(rest[0] ? await inflated(text) : text);
    }
    at += 12 + length;
  }
  return texts;
}

/** The record in the XMP of a WebP or JPEG file. */
function recordOfXmp(bytes: Uint8Array): Record<string, string> {
  const text = new TextDecoder().decode(bytes);
  const found = /record="([^"]*)"|<[\w-]+:record>([^<]*)</.exec(text);
  const names: Record<string, string> = { quot: '"', amp: "&", lt: "<", gt: ">", apos: "'" };
  const plain = (found?.[1] ?? found?.[2])?.replace(/&(#x?[\da-fA-F]+|\w+);/g, (whole, name: string) => {
    if (!name.startsWith("#")) return names[name] ?? whole;
    return String.fromCodePoint(name[1] === "x" ? parseInt(name.slice(2), 16) : Number(name.slice(1)));
  });
  return plain ? { triptych: plain } : {};
}

function upToZero(bytes: Uint8Array): [Uint8Array, Uint8Array] {
  const end = bytes.indexOf(0);
  return end < 0 ? [bytes, new Uint8Array()] : [bytes.subarray(0, end), bytes.subarray(end + 1)];
}

const latin1 = (bytes: Uint8Array): string => new TextDecoder("latin1").decode(bytes);

async function inflated(bytes: Uint8Array): Promise<Uint8Array> {
  const stream = new Blob([bytes as BlobPart]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The text of AUTOMATIC1111's web UI: prompt, "Negative prompt: ...", and a line of settings. */
function fromText(text: string): Parameters | null {
  const lines = text.trim().split("\n");
  const settings = Object.fromEntries(
    [...(lines.at(-1) ?? "").matchAll(/([\w ]+): ("(?:[^"\\]|\\.)*"|[^,]*)(?:, |$)/g)].map((match) => [
      match[1]!.trim().toLowerCase(),
      match[2]!,
    ]),
  ) as Record<string, string>;
  if (!settings["steps"]) return null;
  const said = lines.slice(0, -1).join("\n").split("\nNegative prompt: ");
  const sampler = (settings["sampler"] ?? "").toLowerCase();
  const schedule = (settings["schedule type"] ?? sampler.split(" ").at(-1) ?? "").toLowerCase();
  const solver = SOLVERS[sampler.replace(new RegExp(` (${SCHEDULES.join("|")})$`), "")];
  const size = /^(\d+)x(\d+)$/.exec(settings["size"] ?? "");
  const parameters: Record<string, Json | undefined> = {
    prompts: [said[0] ?? ""],
    negative_prompts: said[1] ? [said[1]] : undefined,
    num_inference_steps: Number(settings["steps"]),
    guidance_scale: settings["cfg scale"] ? Number(settings["cfg scale"]) : undefined,
    seeds: settings["seed"] ? [settings["seed"]] : undefined,
    width: size ? Number(size[1]) : undefined,
    height: size ? Number(size[2]) : undefined,
    solver: solver ? { [solver]: {} } : undefined,
    sigma_schedule: SCHEDULES.includes(schedule) ? { [schedule]: {} } : undefined,
  };
  return Object.fromEntries(Object.entries(parameters).filter(([, value]) => value !== undefined)) as Parameters;
}
