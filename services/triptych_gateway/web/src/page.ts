// What the page shows, and what it tells people who cannot see it.

import { signal } from "@preact/signals";

/** What is shown large: a request that runs, or a picture of the gallery. */
export const shown = signal<{ job?: number; picture?: number } | null>(null);

/** Whether the server asks who calls. */
export const needsKey = signal(false);

/** Whether the server answered when it was last asked, and why not. */
export const away = signal<string | null>(null);

/** Sentences that screen readers speak. */
export const announced = signal("");

export function say(sentence: string): void {
  announced.value = sentence;
}
