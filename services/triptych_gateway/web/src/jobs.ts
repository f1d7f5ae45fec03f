// Requests that run: how far they are, cancelled when told, sent again when the server was away.

import { computed, signal } from "@preact/signals";
import { generate, Refused } from "./api";
import { toBlob } from "./bytes";
import { type Inputs, keep, type Picture } from "./gallery";
import { needsKey, say, show, shown } from "./page";
import type { GeneratedImage, GenerationEvent, Json, Parameters } from "./types";

export type Phase = "asking" | "queued" | "running" | "waiting" | "away" | "failed" | "cancelled" | "done";

export interface Job {
  id: number;
  parameters: Parameters;
  inputs: Inputs;
  /** The parameters with every default filled in. */
  accepted: Parameters | null;
  phase: Phase;
  /** Requests that are before it, while it is queued. */
  ahead: number;
  /** Seconds until its turn, about; 0 where that is not known. */
  waitSeconds: number;
  step: number;
  steps: number;
  /** Milliseconds of the page's clock at which the first step ended. */
  firstStepAt: number;
  previews: string[];
  /** Why it waits or failed. */
  reason: string;
  param: string | null;
  warnings: string[];
  made: Map<number, Picture>;
}

/** Those that run, and those that failed until they are dismissed; newest first. */
export const jobs = signal<Job[]>([]);
export const running = computed(() => jobs.value.filter(({ phase }) => phase !== "failed"));

const MOST_AT_ONCE = 4; // browsers open six connections to a server, and the page needs some itself
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 5000;

const aborts = new Map<number, AbortController>();
const waiting: (() => void)[] = [];
let started = 0;
let lastId = 0;

/** Runs a request; previews are asked for as far as the model has some. `done` has it as it ended. */
export function run(parameters: Parameters, inputs: Inputs = {}): { job: Job; done: Promise<Job> } {
  const job: Job = {
    id: ++lastId,
    parameters,
    inputs,
    accepted: null,
    phase: "asking",
    ahead: 0,
    waitSeconds: 0,
    step: 0,
    steps: Number(parameters["num_inference_steps"] ?? 0),
    firstStepAt: 0,
    previews: [],
    reason: "",
    param: null,
    warnings: [],
    made: new Map(),
  };
  const abort = new AbortController();
  aborts.set(job.id, abort);
  jobs.value = [job, ...jobs.value];
  show({ job: job.id });
  return { job, done: inTurn(job, abort.signal) };
}

async function inTurn(job: Job, signal: AbortSignal): Promise<Job> {
  await turn();
  try {
    await untilDone(job, signal);
  } finally {
    aborts.delete(job.id);
    started--;
    waiting.shift()?.();
  }
  return job;
}

export function cancel(id: number): void {
  aborts.get(id)?.abort();
}

/** The newest one that runs. */
export function cancelNewest(): void {
  const newest = running.value[0];
  if (newest) cancel(newest.id);
}

export function dismiss(id: number): void {
  jobs.value = jobs.value.filter((job) => job.id !== id);
}

async function turn(): Promise<void> {
  if (started >= MOST_AT_ONCE) await new Promise<void>((go) => waiting.push(go));
  started++;
}

function update(job: Job, values: Partial<Job>): void {
  Object.assign(job, values);
  jobs.value = jobs.value.map((one) => (one.id === job.id ? { ...job } : one));
}

let hasPreviews = true;

async function untilDone(job: Job, signal: AbortSignal): Promise<void> {
  let pause = FIRST_PAUSE;
  for (;;) {
    try {
      signal.throwIfAborted();
      const asked = hasPreviews ? { ...job.parameters, preview_every: 1 } : job.parameters;
      for await (const event of generate(asked, signal)) {
        await take(job, event);
        pause = FIRST_PAUSE;
      }
      end(job, "done", job.made.size > 1 ? `${job.made.size} pictures are ready` : "The picture is ready");
      return;
    } catch (error) {
      if (signal.aborted) {
        end(job, "cancelled", "Cancelled");
        return;
      }
      if (error instanceof Refused && error.param === "preview_every" && hasPreviews) {
        hasPreviews = false;
      } else if (error instanceof Refused && error.passes) {
        update(job, { phase: "away", reason: error.message });
        await sleep(Math.max(pause, 1000 * error.retryAfter), signal);
        pause = Math.min(2 * pause, LONGEST_PAUSE);
      } else {
        fail(job, error);
        return;
      }
    }
  }
}

function end(job: Job, phase: Phase, said: string): void {
  const first = job.made.values().next().value;
  if (shown.value?.job === job.id) shown.value = first ? { picture: first.id } : null;
  update(job, { phase });
  dismiss(job.id);
  say(said);
}

function fail(job: Job, error: unknown): void {
  const refused = error instanceof Refused ? error : null;
  if (refused?.status === 401) needsKey.value = true;
  update(job, { phase: "failed", reason: (error as Error).message, param: refused?.param ?? null });
  say(`Failed: ${(error as Error).message}`);
}

async function take(job: Job, { kind, data }: GenerationEvent): Promise<void> {
  switch (kind) {
    case "queued":
      update(job, { phase: "queued", ahead: data.position - 1, waitSeconds: data.wait_seconds ?? 0 });
      return;
    case "accepted":
      update(job, { phase: "running", warnings: data.warnings, accepted: data.parameters });
      return;
    case "step_completed": {
      const previews = data.previews.map((png) => `data:image/png;base64,${png}`);
      const firstStepAt = data.step > 1 && job.firstStepAt ? job.firstStepAt : performance.now();
      update(job, { phase: "running", step: data.step, steps: data.num_steps, firstStepAt });
      if (previews.length) update(job, { previews });
      return;
    }
    case "image":
      if (!job.made.has(data.index)) job.made.set(data.index, await keepImage(job, data));
      return;
    case "finished":
      update(job, { warnings: [...job.warnings, ...data.warnings] });
      return;
    case "waiting":
      update(job, { phase: "waiting", reason: `Waiting for the ${data.stage}` });
  }
}

async function keepImage(job: Job, image: GeneratedImage): Promise<Picture> {
  const [file, type] = image.png ? [image.png, "png"] : image.webp ? [image.webp, "webp"] : [image.jpeg, "jpeg"];
  return keep({
    file: toBlob(file, `image/${type}`),
    width: image.width,
    height: image.height,
    parameters: alone(job.accepted ?? job.parameters, image),
    inputs: job.inputs,
    made: Date.now(),
  });
}

/** What gives one picture of a request alone. */
function alone({ preview_every: _, ...parameters }: Parameters, image: GeneratedImage): Parameters {
  const variation = parameters["variation"] as { [name: string]: Json[] } | null | undefined;
  const own = (name: string): Json[] => [variation?.[name]?.[image.index] ?? 0];
  return {
    ...parameters,
    num_images_per_prompt: 1,
    seeds: [image.seed],
    ...(variation ? { variation: { seeds: own("seeds"), strengths: own("strengths") } } : {}),
  };
}

/** Resolves after so many milliseconds, or when the signal is aborted. */
function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
