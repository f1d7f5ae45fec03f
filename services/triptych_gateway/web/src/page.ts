// What the page shows, and what it tells people who cannot see it.

import { signal } from "@preact/signals";
import type { Field, Parameters } from "./types";

/** What is shown large: a request that runs, a picture of the gallery, or a grid. */
export const shown = signal<Shown | null>(null);

export interface Shown {
  job?: number;
  picture?: number;
  grid?: number;
}

/** Shows what the person asked to see. What ends meanwhile must not scroll the page under their hand. */
export function show(what: Shown): void {
  shown.value = what;
  document.querySelector(".stage")?.scrollIntoView({ block: "nearest" });
}

/** What a request may say, as the server describes it. */
export const fields = signal<Field[]>([]);

/** A file that came here, with what it says of how it was made: the person chooses what becomes of it. */
export const dropped = signal<{ file: Blob; parameters: Parameters | null } | null>(null);

/** What went wrong with what the person just did. */
export const problem = signal<string | null>(null);

/** Whether the server asks who calls. */
export const needsKey = signal(false);

/** Whether the server answered when it was last asked, and why not. */
export const away = signal<string | null>(null);

/** Sentences that screen readers speak. */
export const announced = signal("");

export function say(sentence: string): void {
  announced.value = sentence;
}
