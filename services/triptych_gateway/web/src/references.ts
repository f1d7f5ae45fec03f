// Pictures that the prompt may speak of, where the model attends to some.

import { computed, signal } from "@preact/signals";
import { change, model } from "./form";
import { sizeLike, start, withinBounds } from "./start";

export interface Reference {
  file: Blob;
  url: string;
  width: number;
  height: number;
}

export const references = signal<Reference[]>([]);
export const takesReferences = computed(() => (model.value?.max_references ?? 0) > 0);
export const isFull = computed(() => references.value.length >= (model.value?.max_references ?? 0));

/** A file of a picture. Throws for what is none. */
export async function asReference(given: Blob): Promise<Reference> {
  const { image: file, width, height } = await withinBounds(given);
  return { file, url: URL.createObjectURL(file), width, height };
}

/** Adds one; where it is the first, and nothing is started from, the form takes its size. */
export async function addReference(file: Blob): Promise<void> {
  const added = await asReference(file);
  if (!references.value.length && !start.value) change(sizeLike(added));
  references.value = [...references.value, added];
}

export function removeReference(at: number): void {
  URL.revokeObjectURL(references.value[at]!.url);
  references.value = references.value.toSpliced(at, 1);
}
