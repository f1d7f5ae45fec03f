// The gateway: what it serves, and pictures as a stream of events.

import { events } from "./events";
import type { Field, GenerationEvent, Model, Parameters } from "./types";

const KEY = "triptych-api-key";

/** A refusal: what was wrong, for the person who reads it. status is 0 where nobody answered. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly param: string | null = null,
    readonly retryAfter = 0,
  ) {
    super(message);
  }

  /** Whether the same request may succeed a little later. */
  get passes(): boolean {
    return this.status === 0 || this.status === 502 || this.status === 503;
  }
}

/** The API key is kept as long as the tab is open. */
export function keepKey(key: string): void {
  sessionStorage.setItem(KEY, key);
}

export const getModel = (): Promise<Model> => get("/triptych/v1/model");

export const getParameters = async (): Promise<Field[]> =>
  (await get<{ parameters: Field[] }>("/triptych/v1/parameters")).parameters;

/** The events of a generation, as they come. Aborting the signal cancels the work. */
export async function* generate(parameters: Parameters, signal: AbortSignal): AsyncGenerator<GenerationEvent> {
  const body = JSON.stringify({ parameters });
  const response = await ask("/triptych/v1/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body,
    signal,
  });
  let finished = false;
  try {
    for await (const { event, data } of events(response.body!)) {
      if (event === "error") throw refusal(0, JSON.parse(data));
      finished ||= event === "finished";
      yield { kind: event, data: JSON.parse(data) } as GenerationEvent;
    }
  } catch (error) {
    throw error instanceof TypeError ? new Refused(0, "The connection to the server was lost.") : error;
  }
  if (!finished) throw new Refused(0, "The server ended before the pictures were done.");
}

async function get<T>(path: string): Promise<T> {
  return (await ask(path)).json() as Promise<T>;
}

async function ask(path: string, options: RequestInit = {}): Promise<Response> {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem(KEY);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer.");
  }
  if (response.ok) return response;
  const said: unknown = await response.json().catch(() => null);
  throw refusal(response.status, said, Number(response.headers.get("Retry-After") ?? 0));
}

interface Envelope {
  error?: { message?: string; param?: string | null; code?: string };
}

function refusal(status: number, said: unknown, retryAfter = 0): Refused {
  const { message, param, code } = (said as Envelope | null)?.error ?? {};
  const passes = code === "unavailable" || code === "cancelled";
  const known = status || (passes ? 503 : 500);
  return new Refused(known, message ?? `The server answered ${known}.`, param ?? null, retryAfter);
}
