// Files that were dropped, and what went wrong.

import { refer, startWith, useSettings } from "../actions";
import { dropped, problem } from "../page";
import { isFull, takesReferences } from "../references";

export function Notices() {
  const from = dropped.value;
  return (
    <>
      {problem.value && (
        <div class="notice" role="alert">
          <p class="error">{problem.value}</p>
          <button type="button" onClick={() => (problem.value = null)}>
            Dismiss
          </button>
        </div>
      )}
      {from && <Dropped {...from} />}
    </>
  );
}

function Dropped({ file, parameters }: NonNullable<typeof dropped.value>) {
  return (
    <div class="notice" role="alert">
      <p>{parameters ? "This picture says how it was made." : "What becomes of this picture?"}</p>
      <div class="actions">
        {parameters && (
          <button
            type="button"
            class="primary"
            onClick={() => {
              dropped.value = null;
              void useSettings(parameters);
            }}
          >
            Use its settings
          </button>
        )}
        <button type="button" onClick={() => void startWith(file)}>
          Start from it
        </button>
        {takesReferences.value && !isFull.value && (
          <button type="button" onClick={() => void refer(file)}>
            Use as reference
          </button>
        )}
        <button type="button" onClick={() => (dropped.value = null)}>
          Neither
        </button>
      </div>
    </div>
  );
}
