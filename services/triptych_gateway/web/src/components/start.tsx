// A picture to start from: how much of it is made anew, where, and what is added around it.

import { useState } from "preact/hooks";
import { open } from "../actions";
import { changeStart, hasMargins, setMask, start } from "../start";
import { FrameDialog } from "./frame";
import { MaskDialog } from "./mask";
import { NumberField } from "./number";

export function StartFields() {
  const [edited, setEdited] = useState<"mask" | "frame" | null>(null);
  const from = start.value;
  if (!from) return <FileButton label="Start from a picture…" onFile={(file) => open(file)} />;
  const { url, width, height, strength, mask, margins } = from;
  const done = (): void => setEdited(null);
  return (
    <fieldset class="start">
      <legend>Start from</legend>
      <img src={url} alt="The picture to start from" width={width} height={height} />
      <div class="actions">
        <button type="button" aria-pressed={mask !== null} onClick={() => setEdited("mask")}>
          Paint a mask
        </button>
        <button type="button" aria-pressed={hasMargins(margins)} onClick={() => setEdited("frame")}>
          Extend
        </button>
        {mask && (
          <button type="button" onClick={() => setMask(null)}>
            No mask
          </button>
        )}
        <button type="button" onClick={() => (start.value = null)}>
          Remove
        </button>
      </div>
      <NumberField
        label="Strength"
        value={strength}
        min={0.05}
        max={1}
        step={0.05}
        onChange={(value) => changeStart({ strength: value })}
      />
      {edited === "mask" && <MaskDialog onClose={done} />}
      {edited === "frame" && <FrameDialog onClose={done} />}
    </fieldset>
  );
}

export function FileButton({ label, onFile }: { label: string; onFile: (file: Blob) => Promise<void> }) {
  return (
    <label class="button file">
      {label}
      <input
        type="file"
        class="unseen"
        accept="image/png,image/jpeg,image/webp"
        onChange={(event) => {
          const file = event.currentTarget.files?.[0];
          if (file) void onFile(file);
          event.currentTarget.value = "";
        }}
      />
    </label>
  );
}
