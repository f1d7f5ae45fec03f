// What is shown large: a request while it runs, a picture when it is done.

import { moreSteps, refer, startWith, useSettings, vary } from "../actions";
import { forget, type Picture, pictures, urlOf } from "../gallery";
import { cancel, dismiss, type Job, jobs } from "../jobs";
import { grids } from "../grids";
import { shown } from "../page";
import { isFull, takesReferences } from "../references";
import { ShownGrid } from "./grid";

export function Stage() {
  const at = shown.value;
  const grid = grids.value.find(({ id }) => id === at?.grid);
  const job = jobs.value.find(({ id }) => id === at?.job);
  const picture = pictures.value.find(({ id }) => id === at?.picture) ?? (job ? undefined : pictures.value[0]);
  return (
    <section class="stage" aria-label="Picture">
      {grid ? <ShownGrid grid={grid} /> : job ? <Running job={job} /> : picture ? <Shown picture={picture} /> : <Empty />}
    </section>
  );
}

function Empty() {
  return (
    <div class="empty">
      <svg viewBox="0 0 32 32" aria-hidden="true">
        <path d="M2 8.5 9 6v20l-7-2.5z" />
        <path d="M11 4h10v24H11z" />
        <path d="m23 6 7 2.5v15L23 26z" />
      </svg>
      <p>Describe a picture, and press Generate.</p>
      <p class="hint">
        Or drop one here: to make it again, {takesReferences.value ? "to start from it, or as a reference" : "or to start from it"}.
      </p>
    </div>
  );
}

function Running({ job }: { job: Job }) {
  const width = Number(job.parameters["width"]);
  const height = Number(job.parameters["height"]);
  const many = Math.max(1, job.previews.length);
  return (
    <figure aria-busy="true">
      <div class={many > 1 ? "sheet many" : "sheet"}>
        {job.previews.length ? (
          job.previews.map((url) => <img src={url} alt="Preview" width={width} height={height} class="preview" />)
        ) : (
          <svg class="blank" viewBox={`0 0 ${width} ${height}`} aria-hidden="true" />
        )}
      </div>
      <figcaption>
        <Progress job={job} />
        {job.phase === "failed" ? (
          <button type="button" onClick={() => dismiss(job.id)}>
            Dismiss
          </button>
        ) : (
          <button type="button" title="Escape" onClick={() => cancel(job.id)}>
            Cancel
          </button>
        )}
      </figcaption>
    </figure>
  );
}

export function Progress({ job }: { job: Job }) {
  const failed = job.phase === "failed";
  return (
    <div class="progress">
      <p class={failed ? "error" : ""} role={failed ? "alert" : undefined}>
        {sentence(job)}
      </p>
      {!failed && <progress aria-label="Progress" max={job.steps || 1} value={job.step || undefined} />}
    </div>
  );
}

function sentence(job: Job): string {
  switch (job.phase) {
    case "asking":
      return "Waiting for its turn…";
    case "queued":
      return `${placeOf(job.ahead)}${about(job.waitSeconds)}…`;
    case "away":
      return `${job.reason} Trying again…`;
    case "waiting":
      return `${job.reason}…`;
    case "failed":
      return job.reason;
    case "running":
      return job.step ? `Step ${job.step} of ${job.steps}${timeLeft(job)}` : "Starting…";
    default:
      return "";
  }
}

function placeOf(ahead: number): string {
  if (!ahead) return "Next in the queue";
  return `${ahead} ${ahead > 1 ? "requests" : "request"} ahead of you`;
}

const about = (seconds: number): string => (seconds < 2 ? "" : `, about ${duration(seconds)}`);

function timeLeft(job: Job): string {
  if (job.step < 2) return "";
  const seconds = ((performance.now() - job.firstStepAt) / (job.step - 1) / 1000) * (job.steps - job.step);
  return seconds < 2 ? "" : `, ${duration(seconds)} left`;
}

function duration(seconds: number): string {
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

function Shown({ picture }: { picture: Picture }) {
  const { parameters, width, height } = picture;
  const prompt = String((parameters["prompts"] as string[])[0]);
  const seed = String((parameters["seeds"] as string[])[0]);
  return (
    <figure>
      <div class="sheet">
        <img src={urlOf(picture)} alt={prompt} width={width} height={height} />
      </div>
      <figcaption>
        <p class="caption">{prompt}</p>
        <p class="hint">
          {width} × {height}, {String(parameters["num_inference_steps"])} steps, seed {seed}
        </p>
        <div class="actions">
          <button type="button" onClick={() => void useSettings(parameters, picture.inputs)}>
            Use these settings
          </button>
          <button type="button" onClick={() => void vary(picture)}>
            Vary
          </button>
          <button type="button" onClick={() => void moreSteps(picture)}>
            More steps
          </button>
          <button type="button" onClick={() => void startWith(picture.file)}>
            Start from it
          </button>
          {takesReferences.value && !isFull.value && (
            <button type="button" onClick={() => void refer(picture.file)}>
              Use as reference
            </button>
          )}
          <a class="button" href={urlOf(picture)} download={fileName(prompt, seed, picture.file)}>
            Save
          </a>
          <button type="button" onClick={() => void forget(picture.id)}>
            Delete
          </button>
        </div>
      </figcaption>
    </figure>
  );
}

function fileName(prompt: string, seed: string, file: Blob): string {
  const words = prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  return `${words.slice(0, 8).join("-")}-${seed}.${file.type.replace("image/", "")}`;
}
