// What a request starts from: a picture, how much of it is made anew, where, and what is added around it.

import { computed, effect, signal } from "@preact/signals";
import { toBase64 } from "./bytes";
import { within } from "./components/number";
import { change, model } from "./form";
import type { Inputs } from "./gallery";
import { asReference, references } from "./references";
import type { Message, Parameters } from "./types";

export type Side = "left" | "top" | "right" | "bottom";
export type Margins = Record<Side, number>;

export interface Start {
  image: Blob;
  url: string;
  /** Of the file, in its pixels. */
  width: number;
  height: number;
  strength: number;
  mask: Blob | null;
  margins: Margins;
}

export const NO_MARGINS: Margins = { left: 0, top: 0, right: 0, bottom: 0 };
const STRENGTH = 0.6;
const MOST_BYTES = 16 << 20;
const MOST_PIXELS = 1 << 22;

/** Names of the parameters that are about it. */
const OWN = ["image", "mask", "strength", "margins", "preserve", "read_as_diffusers"];

export const start = signal<Start | null>(null);

let url: string | null = null;
effect(() => {
  const now = start.value?.url ?? null;
  if (url && url !== now) URL.revokeObjectURL(url);
  url = now;
});

/** Starts from a file of a picture; the form takes its size. Throws for what is no picture. */
export async function startFrom(file: Blob, given: Partial<Start> = {}): Promise<void> {
  const { image, width, height } = await withinBounds(file);
  start.value = {
    image,
    url: URL.createObjectURL(image),
    width,
    height,
    strength: STRENGTH,
    mask: null,
    margins: NO_MARGINS,
    ...given,
  };
  change(totalSize());
}

export function changeStart(values: Partial<Start>): void {
  if (start.value) start.value = { ...start.value, ...values };
}

/** A mask or margins make what is new entirely new, unless the person says otherwise. */
export function setMask(mask: Blob | null): void {
  changeStart({ mask, strength: mask ? 1 : STRENGTH });
}

export function setMargins(margins: Margins): void {
  changeStart({ margins, strength: hasMargins(margins) || start.value?.mask ? 1 : STRENGTH });
  change(totalSize());
}

export const hasMargins = (margins: Margins): boolean => Object.values(margins).some((side) => side > 0);

/** What the model needs before it makes anything, and has not been given: a sentence, or null. */
export const lacking = computed(() => {
  const { min_references: least, fills } = model.value!;
  if (references.value.length < least) return "This model edits pictures: add a reference.";
  if (fills && !start.value) return "This model fills parts of a picture: start from one.";
  if (fills && !start.value!.mask && !hasMargins(start.value!.margins)) {
    return "This model fills parts of a picture: paint a mask, or extend it.";
  }
  return null;
});

export interface Size {
  width: number;
  height: number;
}

/** The size of the picture without its margins, as the model can make it. */
export const innerSize = (): Size => sizeLike(start.value!);

/** The nearest size that the model can make. */
export function sizeLike({ width, height }: Size): Size {
  const { size_multiple: multiple, max_size: most } = model.value!;
  const scale = Math.min(1, most / Math.max(width, height));
  const rounded = (side: number): number => within(side * scale, multiple, most, multiple);
  return { width: rounded(width), height: rounded(height) };
}

function totalSize(): Size {
  const { width, height } = innerSize();
  const { left, top, right, bottom } = start.value!.margins;
  return { width: width + left + right, height: height + top + bottom };
}

export const inputs = (): Inputs => ({
  ...(start.value ? { image: start.value.image } : {}),
  ...(start.value?.mask ? { mask: start.value.mask } : {}),
  ...(references.value.length ? { references: references.value.map(({ file }) => file) } : {}),
});

/** What the request says of it beside the files. */
export function startParameters(): Parameters {
  if (!start.value) return {};
  const { strength, mask, margins } = start.value;
  const extended = hasMargins(margins);
  return {
    strength,
    ...(extended ? { margins: { ...margins } as Message } : {}),
    ...(mask || extended ? { preserve: true } : {}),
  };
}

/** Parameters with the files that they were made from; without any, nothing that is about them. */
export async function withInputs(parameters: Parameters, { image, mask, references: seen }: Inputs): Promise<Parameters> {
  const others = Object.fromEntries(Object.entries(parameters).filter(([name]) => image || !OWN.includes(name)));
  return {
    ...others,
    ...(image ? { image: await toBase64(image) } : {}),
    ...(mask ? { mask: await toBase64(mask) } : {}),
    ...(seen ? { references: await Promise.all(seen.map(toBase64)) } : {}),
  };
}

/** Starts as a picture of the gallery did. */
export async function startAs(parameters: Parameters, { image, mask, references: seen = [] }: Inputs): Promise<void> {
  references.value = await Promise.all(seen.slice(0, model.value!.max_references).map(asReference));
  if (!image) {
    start.value = null;
    return;
  }
  await startFrom(image, {
    mask: mask ?? null,
    strength: Number(parameters["strength"] ?? STRENGTH),
    margins: { ...NO_MARGINS, ...(parameters["margins"] as Partial<Margins> | undefined) },
  });
}

/** The picture, as it is or scaled down to what a server takes. */
export async function withinBounds(file: Blob): Promise<Size & { image: Blob }> {
  const bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  try {
    if (file.size <= MOST_BYTES && width * height <= MOST_PIXELS) return { image: file, width, height };
    const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
    const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
    canvas.getContext("2d")!.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return { image: await canvas.convertToBlob(), width: canvas.width, height: canvas.height };
  } finally {
    bitmap.close();
  }
}
