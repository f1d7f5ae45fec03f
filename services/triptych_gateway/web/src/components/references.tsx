// Pictures that the prompt may speak of.

import { refer } from "../actions";
import { isFull, references, removeReference, takesReferences } from "../references";
import { FileButton } from "./start";

export function ReferenceFields() {
  const all = references.value;
  if (!takesReferences.value) return null;
  if (!all.length) return <FileButton label="Add a reference…" onFile={refer} />;
  return (
    <fieldset class="start">
      <legend>References</legend>
      <ul class="references">
        {all.map(({ url, width, height }, at) => (
          <li key={url}>
            <img src={url} alt={`Reference ${at + 1}`} width={width} height={height} />
            <button type="button" aria-label={`Remove reference ${at + 1}`} onClick={() => removeReference(at)}>
              Remove
            </button>
          </li>
        ))}
      </ul>
      {!isFull.value && <FileButton label="Add a reference…" onFile={refer} />}
    </fieldset>
  );
}
