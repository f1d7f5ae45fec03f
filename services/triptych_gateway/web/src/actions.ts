// What buttons and keys do.

import { getModel, getParameters, keepKey, Refused } from "./api";
import { asked, begin, change, drawnSeed, form, fromParameters, model, readSeed } from "./form";
import type { Inputs, Picture } from "./gallery";
import { run } from "./jobs";
import { away, dropped, fields, needsKey, problem, say } from "./page";
import { recorded } from "./recorded";
import { addReference, takesReferences } from "./references";
import { inputs, lacking, startAs, startFrom, startParameters, withinBounds, withInputs } from "./start";
import type { Parameters } from "./types";

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
export async function generateFromForm(): Promise<void> {
  if (!form.value) return;
  if (!form.value.prompt.trim()) {
    say("A prompt is needed");
    document.getElementById("prompt")?.focus();
    return;
  }
  problem.value = lacking.value;
  if (lacking.value) return;
  const { seed, seedLocked } = form.value;
  if (!seedLocked || readSeed(seed) === null) change({ seed: drawnSeed() });
  const files = inputs();
  run(await withInputs({ ...asked(form.value), ...startParameters() }, files), files);
}

/** The form says what a picture was made with. */
export async function useSettings(parameters: Parameters, files: Inputs = {}): Promise<void> {
  if (!model.value) return;
  form.value = fromParameters(parameters, model.value);
  await startAs(parameters, files);
  form.value = { ...form.value, ...sizeOf(parameters) };
  say("The form has the settings of this picture");
}

function sizeOf(parameters: Parameters): { width?: number; height?: number } {
  const { width, height } = parameters;
  return { ...(width ? { width: Number(width) } : {}), ...(height ? { height: Number(height) } : {}) };
}

const VARIED = 0.25;
const VARIATIONS = 4;

/** Pictures much like it: its noise, mixed with a little of other noise. */
export async function vary({ parameters, inputs: files }: Picture): Promise<void> {
  const variation = { seeds: [drawnSeed()], strengths: [VARIED] };
  const count = Math.min(VARIATIONS, model.value?.max_images ?? 1);
  const varied = { ...parameters, num_images_per_prompt: count, variation };
  run(await withInputs(varied, files), files);
}

/** The same picture, made in twice as many steps. */
export async function moreSteps({ parameters, inputs: files }: Picture): Promise<void> {
  const steps = Number(parameters["num_inference_steps"]);
  const most = model.value?.max_num_inference_steps ?? steps;
  const longer = { ...parameters, num_inference_steps: Math.min(2 * steps, most) };
  run(await withInputs(longer, files), files);
}

/** A file to start from. If it says how it was made, or may be a reference, the person is asked what becomes of it. */
export async function open(file: Blob, mayBeReference = false): Promise<void> {
  const parameters = await recorded(file).catch(() => null);
  if (!parameters && !mayBeReference) return startWith(file);
  await taken(withinBounds(file), "Choose what becomes of this picture");
  if (!problem.value) dropped.value = { file, parameters };
}

/** A file that was dropped or pasted. */
export const receive = (file: Blob): Promise<void> => open(file, takesReferences.value);

/** Starts from a file, or says why not. */
export async function startWith(file: Blob): Promise<void> {
  await taken(startFrom(file), "The next picture starts from this one");
}

/** Makes a file a reference, or says why not. */
export async function refer(file: Blob): Promise<void> {
  await taken(addReference(file), "The prompt may speak of this picture");
}

async function taken(work: Promise<unknown>, said: string): Promise<void> {
  dropped.value = null;
  problem.value = null;
  try {
    await work;
    say(said);
  } catch {
    problem.value = "This file is no picture that can be read.";
  }
}
