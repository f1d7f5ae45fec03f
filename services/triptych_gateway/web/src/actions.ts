// What buttons and keys do.

import { getModel, getParameters, keepKey, Refused } from "./api";
import { asked, begin, change, drawnSeed, form, fromParameters, model, readSeed } from "./form";
import type { Picture } from "./gallery";
import { run } from "./jobs";
import { away, needsKey, say } from "./page";
import { signal } from "@preact/signals";
import type { Field, Parameters } from "./types";

/** What the server takes beside what has a place of its own in the form. */
export const fields = signal<Field[]>([]);

const PAUSE = 2000;

/** Asks the server what it serves, until it says so. */
export async function connect(): Promise<void> {
  for (;;) {
    try {
      const served = await getModel();
      fields.value = await getParameters();
      begin(served);
      away.value = null;
      needsKey.value = false;
      return;
    } catch (error) {
      const refused = error instanceof Refused ? error : null;
      if (refused?.status === 401) {
        needsKey.value = true;
        return;
      }
      away.value = (error as Error).message;
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }
}

export async function useKey(key: string): Promise<void> {
  keepKey(key);
  needsKey.value = false;
  await connect();
}

/** Runs what the form says; a seed that is not locked is drawn first. */
export function generateFromForm(): void {
  const said = form.value;
  if (!said) return;
  if (!said.prompt.trim()) {
    say("A prompt is needed");
    document.getElementById("prompt")?.focus();
    return;
  }
  if (!said.seedLocked || readSeed(said.seed) === null) change({ seed: drawnSeed() });
  void run(asked(form.value!));
}

export function useSettings(parameters: Parameters): void {
  if (!model.value) return;
  form.value = fromParameters(parameters, model.value);
  say("The form has the settings of this picture");
}

const VARIED = 0.25;
const VARIATIONS = 4;

/** Pictures much like it: its noise, mixed with a little of other noise. */
export function vary(picture: Picture): void {
  const count = Math.min(VARIATIONS, model.value?.max_images ?? 1);
  const { strength: _, ...parameters } = picture.parameters;
  void run({
    ...parameters,
    num_images_per_prompt: count,
    variation: { seeds: [drawnSeed()], strengths: [VARIED] },
  });
}

/** The same picture, made in twice as many steps. */
export function moreSteps(picture: Picture): void {
  const steps = Number(picture.parameters["num_inference_steps"]);
  const most = model.value?.max_num_inference_steps ?? steps;
  void run({ ...picture.parameters, num_inference_steps: Math.min(2 * steps, most) });
}
