// X/Y grids: what is on the axes, and the pictures between them.

import { useId, useState } from "preact/hooks";
import { form } from "../form";
import { pictures, urlOf } from "../gallery";
import { type Axis, axisNames, cancelGrid, type Grid, gridRuns, MOST_CELLS, readValues, runGrid } from "../grids";
import { jobs } from "../jobs";
import { problem, show } from "../page";
import { lacking } from "../start";
import { words } from "./more";

export function GridFields() {
  const [x, setX] = useState({ name: "guidance_scale", text: "1, 3, 5" });
  const [y, setY] = useState({ name: "", text: "" });
  const axes = [x, y].map(({ name, text }) => (name ? { name, values: readValues(text) } : null));
  const cells = axes.reduce((product, axis) => product * (axis ? axis.values.length : 1), 1);
  const can = axes.some(Boolean) && cells > 0 && cells <= MOST_CELLS && !!form.value!.prompt.trim() && !lacking.value;
  const make = (): void => {
    problem.value = null;
    runGrid(form.value!, axes[0]!, axes[1]!).catch((error: Error) => (problem.value = error.message));
  };
  return (
    <details>
      <summary>Grid</summary>
      <div class="fields">
        <AxisFields label="Across" axis={x} onChange={setX} />
        <AxisFields label="Down" axis={y} onChange={setY} />
        <button type="button" disabled={!can} onClick={make}>
          {cells > MOST_CELLS ? `At most ${MOST_CELLS} pictures, not ${cells}` : `Make ${cells} pictures`}
        </button>
      </div>
    </details>
  );
}

interface Said {
  name: string;
  text: string;
}

function AxisFields({ label, axis, onChange }: { label: string; axis: Said; onChange: (axis: Said) => void }) {
  const id = useId();
  const ofPrompt = axis.name === "prompt";
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <select id={id} value={axis.name} onChange={(event) => onChange({ ...axis, name: event.currentTarget.value })}>
        <option value="">Nothing</option>
        {axisNames().map((name) => (
          <option value={name}>{words(name)}</option>
        ))}
      </select>
      {axis.name && (
        <input
          aria-label={`Values ${label.toLowerCase()}`}
          placeholder={ofPrompt ? "words of the prompt, words instead" : "1, 2, 3"}
          value={axis.text}
          onInput={(event) => onChange({ ...axis, text: event.currentTarget.value })}
        />
      )}
    </div>
  );
}

export function ShownGrid({ grid }: { grid: Grid }) {
  const runs = gridRuns(grid);
  return (
    <figure aria-busy={runs}>
      <div class="scrolled" tabIndex={0} role="region" aria-label="Grid">
        <table>
          {grid.x.name && (
            <thead>
              <tr>
                {grid.y.name && <td />}
                {grid.x.values.map((value) => (
                  <th scope="col">{heading(grid.x, value)}</th>
                ))}
              </tr>
            </thead>
          )}
          <tbody>
            {grid.cells.map((row, at) => (
              <tr>
                {grid.y.name && <th scope="row">{heading(grid.y, grid.y.values[at]!)}</th>}
                {row.map((cell) => (
                  <td>
                    <Cell {...cell} />
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <figcaption>
        {runs ? (
          <button type="button" onClick={() => cancelGrid(grid)}>
            Cancel all
          </button>
        ) : (
          <button type="button" onClick={() => void save(grid)}>
            Save the grid
          </button>
        )}
      </figcaption>
    </figure>
  );
}

const heading = (axis: Axis, value: string): string => (axis.name === "prompt" ? value : `${words(axis.name)} ${value}`);

function Cell({ job, picture }: Grid["cells"][number][number]) {
  const made = pictures.value.find(({ id }) => id === picture);
  const runs = jobs.value.find(({ id }) => id === job);
  if (made) {
    return (
      <button type="button" class="tile" onClick={() => show({ picture: made.id })}>
        <img src={urlOf(made)} alt={String((made.parameters["prompts"] as string[])[0])} />
      </button>
    );
  }
  return (
    <div class="tile">
      {runs?.previews[0] && <img src={runs.previews[0]} alt="Preview" />}
      <span class="badge">{runs?.phase === "failed" ? runs.reason : runs?.step ? `${runs.step}/${runs.steps}` : "…"}</span>
    </div>
  );
}

const LABEL = 28;

/** All pictures with their headings in one file. */
async function save(grid: Grid): Promise<void> {
  const files = grid.cells.map((row) => row.map((cell) => pictures.value.find(({ id }) => id === cell.picture)));
  const all = files.flat().filter((one) => one !== undefined);
  const [width, height] = [Math.max(...all.map((one) => one.width)), Math.max(...all.map((one) => one.height))];
  const left = grid.y.name ? 160 : 0;
  const top = grid.x.name ? LABEL : 0;
  const canvas = new OffscreenCanvas(left + width * grid.x.values.length, top + height * grid.y.values.length);
  const context = canvas.getContext("2d")!;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#222";
  context.font = "13px system-ui, sans-serif";
  grid.x.values.forEach((value, at) => context.fillText(heading(grid.x, value), left + at * width + 4, 18, width - 8));
  for (const [row, pictures] of files.entries()) {
    if (grid.y.name) context.fillText(heading(grid.y, grid.y.values[row]!), 4, top + row * height + 18, left - 8);
    for (const [column, picture] of pictures.entries()) {
      if (picture) context.drawImage(await createImageBitmap(picture.file), left + column * width, top + row * height);
    }
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await canvas.convertToBlob());
  link.download = "grid.png";
  link.click();
  URL.revokeObjectURL(link.href);
}
