// LoRAs that the server has, each with its weight.

import { change, form, model } from "../form";
import { NumberField } from "./number";

export function LoraFields() {
  const known = model.value!.loras;
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
            onClick={() => change({ loras: loras.toSpliced(at, 1) })}
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
            change({ loras: [...loras, { name: event.currentTarget.value, weight: 1 }] });
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
