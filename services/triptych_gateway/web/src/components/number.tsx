// A number with a slider beside it.

import { useId } from "preact/hooks";

interface Given {
  label: string;
  value: number;
  min: number;
  max: number;
  step: number;
  /** The ends of the slider, where the field takes numbers beyond them. */
  sliderMin?: number;
  sliderMax?: number;
  onChange: (value: number) => void;
}

export function NumberField({ label, value, min, max, step, sliderMin = min, sliderMax = max, onChange }: Given) {
  const id = useId();
  const take = (text: string): void => {
    const number = Number(text);
    if (text.trim() !== "" && Number.isFinite(number)) onChange(within(number, min, max, step));
  };
  return (
    <div class="number">
      <label for={id}>{label}</label>
      <input
        type="number"
        class="quiet"
        id={id}
        {...{ min, max, step, value }}
        onChange={(event) => {
          take(event.currentTarget.value);
          event.currentTarget.value = String(value);
        }}
      />
      <input
        type="range"
        aria-label={`${label}, slider`}
        {...{ min: sliderMin, max: sliderMax, step, value }}
        onInput={(event) => take(event.currentTarget.value)}
      />
    </div>
  );
}

/** The nearest number of min, min + step, ..., max. */
export function within(number: number, min: number, max: number, step: number): number {
  const steps = Math.round((Math.min(Math.max(number, min), max) - min) / step);
  return Number((min + steps * step).toFixed(6));
}
