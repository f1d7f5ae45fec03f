// What the person asks for.

import { useRef } from "preact/hooks";
import { generateFromForm } from "../actions";
import { change, drawnSeed, form, hasBranches, model, readSeed, takesGuidance } from "../form";
import { cancelNewest, running } from "../jobs";
import { lacking } from "../start";
import { GridFields } from "./grid";
import { LoraFields } from "./loras";
import { More } from "./more";
import { NumberField } from "./number";
import { ReferenceFields } from "./references";
import { SizeFields } from "./size";
import { StartFields } from "./start";

export function RequestForm() {
  return (
    <form
      class="panel"
      onSubmit={(event) => {
        event.preventDefault();
        void generateFromForm();
      }}
    >
      <Prompts />
      <div class="actions">
        <button
          type="submit"
          class="primary"
          title="Ctrl+Enter"
          aria-describedby={lacking.value ? "lacking" : undefined}
        >
          Generate
        </button>
        {running.value.length > 0 && (
          <button type="button" title="Escape" onClick={cancelNewest}>
            Cancel
          </button>
        )}
      </div>
      {lacking.value && (
        <p class="hint" id="lacking">
          {lacking.value}
        </p>
      )}
      <StartFields />
      <ReferenceFields />
      <details class="settings" open={matchMedia("(width >= 52rem)").matches}>
        <summary>Settings</summary>
        <Settings />
      </details>
    </form>
  );
}

function Settings() {
  const { steps, guidance, count } = form.value!;
  const served = model.value!;
  return (
    <>
      <SizeFields />
      <NumberField
        label="Steps"
        value={steps}
        min={1}
        max={served.max_num_inference_steps}
        sliderMax={Math.min(served.max_num_inference_steps, 2 * served.default_num_inference_steps)}
        step={1}
        onChange={(value) => change({ steps: value })}
      />
      {takesGuidance.value && (
        <NumberField
          label="Guidance"
          value={guidance}
          min={0}
          max={100}
          sliderMax={15}
          step={0.1}
          onChange={(value) => change({ guidance: value })}
        />
      )}
      {served.max_images > 1 && (
        <NumberField
          label="Pictures"
          value={count}
          min={1}
          max={served.max_images}
          step={1}
          onChange={(value) => change({ count: value })}
        />
      )}
      <SeedField />
      <LoraFields />
      <More />
      <GridFields />
    </>
  );
}

function Prompts() {
  const { prompt, negative, trueCfg } = form.value!;
  return (
    <>
      <label for="prompt">Prompt</label>
      <textarea
        id="prompt"
        rows={4}
        placeholder="Describe a picture"
        value={prompt}
        onInput={(event) => change({ prompt: event.currentTarget.value })}
      />
      <label for="negative">Negative prompt</label>
      <textarea
        id="negative"
        rows={2}
        placeholder={hasBranches.value ? "What to steer away from" : "What to steer away from, for twice the work"}
        value={negative}
        onInput={(event) => change({ negative: event.currentTarget.value })}
      />
      {!hasBranches.value && negative.trim() !== "" && (
        <NumberField
          label="True CFG scale"
          value={trueCfg}
          min={1.1}
          max={100}
          sliderMax={15}
          step={0.1}
          onChange={(value) => change({ trueCfg: value })}
        />
      )}
    </>
  );
}

function SeedField() {
  const { seed, seedLocked } = form.value!;
  const field = useRef<HTMLInputElement>(null);
  return (
    <div class="seed">
      <label for="seed">Seed</label>
      <div class="row">
        <input
          ref={field}
          id="seed"
          inputMode="numeric"
          value={seed}
          onChange={(event) => {
            const read = readSeed(event.currentTarget.value);
            if (read !== null) change({ seed: read, seedLocked: true });
            else event.currentTarget.value = seed;
          }}
        />
        <button type="button" class="icon" aria-label="Draw a seed" onClick={() => change({ seed: drawnSeed() })}>
          <svg viewBox="0 0 20 20" aria-hidden="true">
            <rect x="3" y="3" width="14" height="14" rx="3" />
            <circle cx="7" cy="7" r="1" />
            <circle cx="13" cy="13" r="1" />
            <circle cx="10" cy="10" r="1" />
          </svg>
        </button>
        <button
          type="button"
          class="icon"
          aria-label="Keep this seed"
          aria-pressed={seedLocked}
          title={seedLocked ? "Every request has this seed" : "Every request draws a seed"}
          onClick={() => change({ seedLocked: !seedLocked })}
        >
          <svg viewBox="0 0 20 20" aria-hidden="true">
            <rect x="4" y="9" width="12" height="8" rx="2" />
            <path d={seedLocked ? "M7 9V6a3 3 0 0 1 6 0v3" : "M7 9V6a3 3 0 0 1 5.5-1.6"} />
          </svg>
        </button>
      </div>
    </div>
  );
}
