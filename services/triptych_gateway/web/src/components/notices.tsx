// Files that were dropped, and what went wrong.

import { startWith, useSettings } from "../actions";
import { dropped, problem } from "../page";

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
      {from && (
        <div class="notice" role="alert">
          <p>This picture says how it was made.</p>
          <div class="actions">
            <button
              type="button"
              class="primary"
              onClick={() => {
                dropped.value = null;
                void useSettings(from.parameters);
              }}
            >
              Use its settings
            </button>
            <button type="button" onClick={() => void startWith(from.file)}>
              Start from it
            </button>
            <button type="button" onClick={() => (dropped.value = null)}>
              Neither
            </button>
          </div>
        </div>
      )}
    </>
  );
}
