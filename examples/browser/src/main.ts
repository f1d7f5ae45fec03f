import { Code, ConnectError } from "@connectrpc/connect";
import { type Call, generate, wrongFields } from "./client";

const find = <E extends Element>(selector: string): E => document.querySelector<E>(selector)!;
const form = find<HTMLFormElement>("form");
const cancel = find<HTMLButtonElement>("#cancel");
const log = find<HTMLOListElement>("[role=log]");
const picture = find<HTMLImageElement>("img");

function say(line: string): void {
  log.append(Object.assign(document.createElement("li"), { textContent: line }));
}

const onEvent: Call["onEvent"] = ({ case: kind, value }) => {
  if (kind === "queued") say(`number ${value.position} in the queue`);
  if (kind === "stepCompleted") say(`step ${value.step} of ${value.numSteps}`);
};

async function make(said: Record<string, string>, signal: AbortSignal): Promise<void> {
  const image = await generate(
    { prompts: said.prompt ? [said.prompt] : [], numInferenceSteps: Number(said.steps) },
    {
      server: said.server!,
      key: said.key,
      signal,
      deadline: performance.now() + 1000 * Number(said.deadline),
      onEvent,
      onRetry: (seed) => say(`again with seed ${seed ?? "of the server's choice"}`),
    },
  );
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(new Blob([image.png as BlobPart], { type: "image/png" }));
  picture.alt = image.prompt;
  picture.hidden = false;
  say(`seed ${image.seed}`);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const leaving = new AbortController();
  cancel.onclick = () => leaving.abort();
  cancel.disabled = false;
  log.replaceChildren();
  try {
    await make(Object.fromEntries(new FormData(form)) as Record<string, string>, leaving.signal);
  } catch (reason) {
    const error = ConnectError.from(reason);
    say(`${Code[error.code]}: ${error.rawMessage}`);
    for (const { field, description } of wrongFields(error)) say(`${field}: ${description}`);
  }
  cancel.disabled = true;
});
