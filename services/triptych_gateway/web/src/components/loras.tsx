// LoRAs that the server has, each with its weight.

import { change, form, model, type Form } from "../form";
import type { Model } from "../types";
import { NumberField } from "./number";

/** Steps and guidance, where a LoRA that distils the model comes or goes. */
function sampled(name: string, served: Model, comes: boolean): Partial<Form> {
  const steps = served.distilling_loras[name];
  if (steps === undefined) return {};
  return comes
    ? { steps, guidance: 1 }
    : { steps: served.default_num_inference_steps, guidance: served.default_guidance_scale };
}

export function LoraFields() {
  const served = model.value!;
  const known = served.loras;
  const { loras } = form.value!;
  if (!known.length) return null;
  const others = known.filter((name) => !loras.some((lora) => lora.name === name));
  return (
    <fieldset class="loras">
      <legend>LoRAs</legend>
      {loras.map((lora, at) => (
        <div class="row">
          <NumberField
            label={lora.name}
            value={lora.weight}
            min={-10}
            max={10}
            sliderMin={-1}
            sliderMax={2}
            step={0.05}
            onChange={(weight) => change({ loras: loras.with(at, { ...lora, weight }) })}
          />
          <button
            type="button"
            class="icon"
            aria-label={`Without ${lora.name}`}
            onClick={() => change({ ...sampled(lora.name, served, false), loras: loras.toSpliced(at, 1) })}
          >
            <svg viewBox="0 0 20 20" aria-hidden="true">
              <path d="m6 6 8 8m0-8-8 8" />
            </svg>
          </button>
        </div>
      ))}
      {others.length > 0 && (
        <select
          aria-label="Add a LoRA"
          value=""
          onChange={(event) => {
            const name = event.currentTarget.value;
            change({ ...sampled(name, served, true), loras: [...loras, { name, weight: 1 }] });
            event.currentTarget.value = "";
          }}
        >
          <option value="">Add…</option>
          {others.map((name) => (
            <option value={name}>{name}</option>
          ))}
        </select>
      )}
    </fieldset>
  );
}
