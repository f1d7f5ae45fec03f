// X/Y grids: the same request over the values of two parameters.

import { signal } from "@preact/signals";
import { asked, type Form, OWN } from "./form";
import { cancel, jobs, run } from "./jobs";
import { fields, show } from "./page";
import { inputs, startParameters, withInputs } from "./start";
import type { Json, Parameters } from "./types";

export interface Axis {
  name: string;
  values: string[];
}

export interface Grid {
  id: number;
  x: Axis;
  y: Axis;
  /** A row per value of y: the picture's number in the gallery, or that of the request that makes it. */
  cells: { job: number; picture: number | null }[][];
}

export const grids = signal<Grid[]>([]);

const NONE: Axis = { name: "", values: [""] };
const OF_THE_FORM = ["num_inference_steps", "guidance_scale", "seeds", "strength"];
export const MOST_CELLS = 100;

/** What can be on an axis: words of the prompt, numbers of the form, and what the server takes of one word. */
export function axisNames(): string[] {
  const kinds = ["number", "integer", "flag", "choice"];
  const others = fields.value.filter(({ name, kind, repeated }) => !OWN.has(name) && !repeated && kinds.includes(kind));
  return ["prompt", ...OF_THE_FORM, ...others.map(({ name }) => name)];
}

/** Runs a request for each pair of values. Throws for values that cannot be. */
export async function runGrid(form: Form, xGiven: Axis | null, yGiven: Axis | null): Promise<void> {
  const [x, y] = [xGiven ?? NONE, yGiven ?? NONE];
  const files = inputs();
  const plain = { ...asked({ ...form, count: 1 }), ...startParameters() };
  const requests = y.values.map((row) => x.values.map((column) => at(at(plain, x, column), y, row)));
  const grid: Grid = { id: Date.now(), x, y, cells: [] };
  const all: Promise<void>[] = [];
  for (const row of requests) {
    const cells: Grid["cells"][number] = [];
    for (const request of row) {
      const cell: Grid["cells"][number][number] = { job: 0, picture: null };
      const { job, done } = run(await withInputs(request, files), files);
      cell.job = job.id;
      cells.push(cell);
      all.push(
        done.then((ended) => {
          cell.picture = ended.made.values().next().value?.id ?? null;
          grids.value = grids.value.map((one) => (one.id === grid.id ? { ...one } : one));
        }),
      );
    }
    grid.cells.push(cells);
  }
  grids.value = [grid, ...grids.value];
  show({ grid: grid.id });
  await Promise.all(all);
}

export function cancelGrid(grid: Grid): void {
  grid.cells.flat().forEach(({ job }) => cancel(job));
}

export const gridRuns = (grid: Grid): boolean =>
  grid.cells.flat().some((cell) => jobs.value.some(({ id, phase }) => id === cell.job && phase !== "failed"));

/** Values between commas; a comma in double quotes belongs to a value. */
export function readValues(text: string): string[] {
  return [...text.matchAll(/\s*("[^"]*"|[^,]+)\s*(?:,|$)/g)]
    .map((match) => match[1]!.trim().replace(/^"|"$/g, ""))
    .filter((value) => value !== "");
}

/** The parameters with one of them at a value of an axis. */
function at(parameters: Parameters, axis: Axis, value: string): Parameters {
  if (!axis.name) return parameters;
  if (axis.name === "prompt") {
    const prompt = String((parameters["prompts"] as Json[])[0]);
    const first = axis.values[0]!;
    if (!prompt.includes(first)) throw new Error(`The prompt has no "${first}" that the other words could replace`);
    return { ...parameters, prompts: [prompt.replaceAll(first, () => value)] };
  }
  const kind = fields.value.find(({ name }) => name === axis.name)?.kind;
  if (kind === "choice") return { ...parameters, [axis.name]: value };
  if (kind === "flag") return { ...parameters, [axis.name]: value === "true" };
  if (axis.name === "seeds") return { ...parameters, seeds: [value] };
  if (!Number.isFinite(Number(value))) throw new Error(`"${value}" is no number`);
  return { ...parameters, [axis.name]: Number(value) };
}
