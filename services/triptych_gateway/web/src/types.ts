// The proto's messages in protobuf's JSON, as far as the page reads them. 64-bit numbers are texts.

export interface Model {
  name: string;
  default_height: number;
  default_width: number;
  size_multiple: number;
  max_size: number;
  default_num_inference_steps: number;
  max_num_inference_steps: number;
  default_guidance_scale: number;
  max_images: number;
  max_prompt_bytes: number;
  guidance: "GUIDANCE_INPUT_BRANCHES" | "GUIDANCE_INPUT_EMBEDDED" | "GUIDANCE_INPUT_NONE";
  max_references: number;
  min_references: number;
  /** Whether it fills what a mask or margins leave of a picture, and does nothing else. */
  fills: boolean;
  loras: string[];
  /** Of the LoRAs those that distil the model, with their steps; guidance is 1. */
  distilling_loras: { [name: string]: number };
}

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
export type Message = { [name: string]: Json };

/** GenerationParameters. */
export type Parameters = Message;

/** A field of GenerationParameters, or of a message in it, as the gateway describes it. */
export interface Field {
  name: string;
  repeated: boolean;
  help: string;
  kind: "integer" | "number" | "flag" | "text" | "bytes" | "message" | "choice";
  fields?: Field[];
  choices?: Field[];
}

export interface GeneratedImage {
  index: number;
  png: string;
  webp: string;
  jpeg: string;
  seed: string;
  prompt: string;
  width: number;
  height: number;
}

export interface Step {
  step: number;
  num_steps: number;
  sigma: number;
  previews: string[];
}

export interface Finished {
  total_milliseconds: number;
  warnings: string[];
}

export interface Queued {
  /** 1 for the one whose turn is next. */
  position: number;
  wait_seconds?: number;
}

export type GenerationEvent =
  | { kind: "queued"; data: Queued }
  | { kind: "accepted"; data: { parameters: Parameters; warnings: string[] } }
  | { kind: "step_completed"; data: Step }
  | { kind: "image"; data: GeneratedImage }
  | { kind: "finished"; data: Finished }
  | { kind: "waiting"; data: { stage: string } };
