// Pictures that this browser keeps, newest first: IndexedDB, nothing leaves the machine.

import { signal } from "@preact/signals";
import type { Parameters } from "./types";

export interface Picture {
  id: number;
  file: Blob;
  width: number;
  height: number;
  /** What gives this picture alone; the bytes of files are in `inputs`. */
  parameters: Parameters;
  inputs: Inputs;
  made: number;
}

/** Files that a picture was made from. */
export interface Inputs {
  image?: Blob;
  mask?: Blob;
  references?: Blob[];
}

const STORE = "pictures";

export const pictures = signal<Picture[]>([]);
/** Why pictures are not kept, where they are not. */
export const notKept = signal<string | null>(null);

let database: Promise<IDBDatabase> | null = null;
let unkept = -1;

export async function readGallery(): Promise<void> {
  await guarded(async (db) => {
    const all = await done<Picture[]>(db.transaction(STORE).objectStore(STORE).getAll());
    pictures.value = all.reverse();
  });
}

/** Keeps a picture; if the browser cannot, it is there until the page closes. */
export async function keep(picture: Omit<Picture, "id">): Promise<Picture> {
  const id = await guarded(async (db) =>
    Number(await done(db.transaction(STORE, "readwrite").objectStore(STORE).add(picture))),
  );
  const kept = { ...picture, id: id ?? unkept-- };
  pictures.value = [kept, ...pictures.value];
  return kept;
}

export async function forget(id: number): Promise<void> {
  pictures.value = pictures.value.filter((one) => one.id !== id);
  revoke(id);
  await guarded((db) => done(db.transaction(STORE, "readwrite").objectStore(STORE).delete(id)));
}

export async function forgetAll(): Promise<void> {
  pictures.value.forEach(({ id }) => revoke(id));
  pictures.value = [];
  await guarded((db) => done(db.transaction(STORE, "readwrite").objectStore(STORE).clear()));
}

const urls = new Map<number, string>();

/** An address of a picture's file, in this page. */
export function urlOf(picture: Picture): string {
  let url = urls.get(picture.id);
  if (!url) urls.set(picture.id, (url = URL.createObjectURL(picture.file)));
  return url;
}

function revoke(id: number): void {
  const url = urls.get(id);
  if (url) URL.revokeObjectURL(url);
  urls.delete(id);
}

async function guarded<T>(work: (db: IDBDatabase) => Promise<T>): Promise<T | null> {
  try {
    database ??= open();
    return await work(await database);
  } catch (error) {
    notKept.value = `Pictures are lost when this page closes: ${(error as Error).message}`;
    return null;
  }
}

function open(): Promise<IDBDatabase> {
  const request = indexedDB.open("triptych", 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
  return done(request);
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("the browser's storage failed"));
  });
}
