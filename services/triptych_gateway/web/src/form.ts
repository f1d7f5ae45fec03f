// What the person asks for: the state of the form, as GenerationParameters and from them.

import { computed, effect, signal } from "@preact/signals";
import type { Json, Message, Model, Parameters } from "./types";

export interface Lora {
  name: string;
  weight: number;
}

export interface Form {
  prompt: string;
  negative: string;
  /** How strongly a negative prompt is weighed, where that is beside the model's own guidance. */
  trueCfg: number;
  width: number;
  height: number;
  steps: number;
  guidance: number;
  count: number;
  seed: string;
  seedLocked: boolean;
  loras: Lora[];
  /** Other parameters, as the proto has them. */
  more: Message;
}

/** Parameters that have a place of their own in the form, or none in a page. */
export const OWN = new Set([
  "prompts",
  "negative_prompts",
  "width",
  "height",
  "num_inference_steps",
  "guidance_scale",
  "true_cfg_scale",
  "num_images_per_prompt",
  "seeds",
  "model",
  "image",
  "mask",
  "strength",
  "margins",
  "preserve",
  "references",
  "read_as_diffusers",
  "latents",
  "return_latents",
  "preview_every",
  "loras",
]);

const KEPT = "triptych-form";
const TRUE_CFG = 3.5;

export const model = signal<Model | null>(null);
export const form = signal<Form | null>(null);

export function change(values: Partial<Form>): void {
  if (form.value) form.value = { ...form.value, ...values };
}

/** The form of the last visit in this tab, as far as the model allows it, or the model's defaults. */
export function begin(served: Model): void {
  model.value = served;
  const defaults = defaultForm(served);
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null") as (Form & { model: string }) | null;
  form.value ??= kept?.model === served.name ? { ...defaults, ...kept } : { ...defaults, prompt: kept?.prompt ?? "" };
}

effect(() => {
  if (form.value) sessionStorage.setItem(KEPT, JSON.stringify({ ...form.value, model: model.peek()?.name }));
});

export function defaultForm(served: Model): Form {
  return {
    prompt: "",
    negative: "",
    trueCfg: TRUE_CFG,
    width: served.default_width,
    height: served.default_height,
    steps: served.default_num_inference_steps,
    guidance: served.default_guidance_scale,
    count: 1,
    seed: drawnSeed(),
    seedLocked: false,
    loras: [],
    more: {},
  };
}

/** Whether the model's guidance weighs a prompt against a negative one; others do so with a scale of its own. */
export const hasBranches = computed(() => model.value?.guidance === "GUIDANCE_INPUT_BRANCHES");
/** Whether the model takes a guidance scale at all. */
export const takesGuidance = computed(() => model.value?.guidance !== "GUIDANCE_INPUT_NONE");

export function drawnSeed(): string {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

/** A whole number that a seed can be, or null. */
export function readSeed(text: string): string | null {
  return /^\d{1,20}$/.test(text.trim()) && BigInt(text) < 1n << 64n ? String(BigInt(text)) : null;
}

/** What the form asks for, without an input picture. */
export function asked({ ...said }: Form): Parameters {
  const explicitSteps = chosen(said.more["sigma_schedule"]) === "explicit";
  const explicitScales = chosen(said.more["guidance_schedule"]) === "explicit";
  return {
    prompts: [said.prompt],
    ...(said.negative.trim() ? { negative_prompts: [said.negative] } : {}),
    ...(said.negative.trim() && !hasBranches.value ? { true_cfg_scale: said.trueCfg } : {}),
    width: said.width,
    height: said.height,
    ...(explicitSteps ? {} : { num_inference_steps: said.steps }),
    ...(takesGuidance.value && !explicitScales ? { guidance_scale: said.guidance } : {}),
    num_images_per_prompt: said.count,
    seeds: [said.seed],
    ...(said.loras.length ? { loras: said.loras.map(({ name, weight }) => ({ name, weight })) } : {}),
    ...said.more,
  };
}

/** The form of a request's parameters, as Accepted or a file has them. */
export function fromParameters(parameters: Parameters, served: Model): Form {
  const first = (name: string): Json | undefined => (parameters[name] as Json[] | undefined)?.[0];
  const number = (name: string, otherwise: number): number => Number(parameters[name] ?? otherwise);
  const known = (served.loras ?? []) as string[];
  const loras = ((parameters["loras"] ?? []) as unknown as Partial<Lora>[]).map((lora) => ({
    name: lora.name ?? "",
    weight: lora.weight ?? 1,
  }));
  return {
    prompt: String(first("prompts") ?? ""),
    negative: String(first("negative_prompts") ?? ""),
    trueCfg: number("true_cfg_scale", 1) > 1 ? number("true_cfg_scale", 1) : TRUE_CFG,
    width: number("width", served.default_width),
    height: number("height", served.default_height),
    steps: number("num_inference_steps", served.default_num_inference_steps),
    guidance: number("guidance_scale", served.default_guidance_scale),
    count: 1,
    seed: String(first("seeds") ?? drawnSeed()),
    seedLocked: true,
    loras: loras.filter(({ name }) => known.includes(name)),
    more: Object.fromEntries(Object.entries(parameters).filter(([name, value]) => !OWN.has(name) && says(value))),
  };
}

/** The name of what a choice chose. */
export function chosen(choice: Json | undefined): string | null {
  if (typeof choice === "string") return choice;
  return choice && typeof choice === "object" ? (Object.keys(choice)[0] ?? null) : null;
}

function says(value: Json): boolean {
  return !(value === null || value === false || value === 0 || value === "" || (Array.isArray(value) && !value.length));
}
