// The pictures that this browser keeps, and requests that run.

import { useState } from "preact/hooks";
import { forgetAll, notKept, pictures, urlOf } from "../gallery";
import { type Job, jobs } from "../jobs";
import { show, shown } from "../page";

const A_PAGE = 48;

export function GalleryView() {
  const [most, setMost] = useState(A_PAGE);
  const all = pictures.value;
  if (!all.length && !jobs.value.length) return null;
  return (
    <section class="gallery" aria-label="Gallery">
      <div class="heading">
        <h2>Gallery</h2>
        <p class="hint">{notKept.value ?? "Kept in this browser alone"}</p>
        <Clear />
      </div>
      <ul>
        {jobs.value.map((job) => (
          <li key={`job${job.id}`}>
            <Tile job={job} />
          </li>
        ))}
        {all.slice(0, most).map((picture) => (
          <li key={picture.id}>
            <button
              type="button"
              class="tile"
              aria-pressed={shown.value?.picture === picture.id}
              onClick={() => show({ picture: picture.id })}
            >
              <img src={urlOf(picture)} alt={String((picture.parameters["prompts"] as string[])[0])} loading="lazy" />
            </button>
          </li>
        ))}
      </ul>
      {all.length > most && (
        <button type="button" onClick={() => setMost(most + A_PAGE)}>
          Show more
        </button>
      )}
    </section>
  );
}

function Tile({ job }: { job: Job }) {
  const said = job.phase === "failed" ? "Failed" : job.step ? `${job.step}/${job.steps}` : "…";
  return (
    <button
      type="button"
      class="tile"
      aria-pressed={shown.value?.job === job.id}
      onClick={() => show({ job: job.id })}
    >
      {job.previews[0] && <img src={job.previews[0]} alt="" />}
      <span class="badge">{said}</span>
    </button>
  );
}

function Clear() {
  const [asking, setAsking] = useState(false);
  if (!asking) {
    return (
      <button type="button" class="plain" onClick={() => setAsking(true)}>
        Delete all
      </button>
    );
  }
  return (
    <span class="row">
      <button type="button" class="danger" onClick={() => (setAsking(false), void forgetAll())}>
        Delete all pictures
      </button>
      <button type="button" onClick={() => setAsking(false)}>
        Keep them
      </button>
    </span>
  );
}
