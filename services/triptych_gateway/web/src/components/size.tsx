// The size of the picture: a shape, then width and height in the model's multiple.

import { change, form, model } from "../form";
import { NumberField, within } from "./number";

const SHAPES = [
  { name: "Square", width: 1, height: 1 },
  { name: "Landscape", width: 3, height: 2 },
  { name: "Portrait", width: 2, height: 3 },
  { name: "Wide", width: 16, height: 9 },
  { name: "Tall", width: 9, height: 16 },
];

export function SizeFields() {
  const { width, height } = form.value!;
  const { size_multiple: multiple, max_size: most } = model.value!;
  return (
    <fieldset class="size">
      <legend>Size</legend>
      <div class="shapes" role="group" aria-label="Shape">
        {SHAPES.map((shape) => {
          const size = sizeOf(shape.width / shape.height);
          const is = size.width === width && size.height === height;
          return (
            <button
              type="button"
              aria-pressed={is}
              title={`${shape.name}: ${size.width} × ${size.height}`}
              onClick={() => change(size)}
            >
              <Outline width={shape.width} height={shape.height} />
              <span>{shape.name}</span>
            </button>
          );
        })}
      </div>
      <NumberField
        label="Width"
        value={width}
        min={multiple}
        max={most}
        step={multiple}
        onChange={(value) => change({ width: value })}
      />
      <NumberField
        label="Height"
        value={height}
        min={multiple}
        max={most}
        step={multiple}
        onChange={(value) => change({ height: value })}
      />
    </fieldset>
  );
}

/** A size of this shape with as many pixels as the model makes by default. */
function sizeOf(ratio: number): { width: number; height: number } {
  const { default_width, default_height, size_multiple: multiple, max_size: most } = model.value!;
  const area = default_width * default_height;
  const scale = Math.min(1, most / Math.sqrt(area * ratio), most / Math.sqrt(area / ratio));
  const rounded = (side: number): number => within(side * scale, multiple, most, multiple);
  return { width: rounded(Math.sqrt(area * ratio)), height: rounded(Math.sqrt(area / ratio)) };
}

function Outline({ width, height }: { width: number; height: number }) {
  const longest = 16 / Math.max(width, height);
  const [w, h] = [width * longest, height * longest];
  return (
    <svg viewBox="0 0 20 20" aria-hidden="true">
      <rect x={10 - w / 2} y={10 - h / 2} width={w} height={h} rx="1.5" />
    </svg>
  );
}
