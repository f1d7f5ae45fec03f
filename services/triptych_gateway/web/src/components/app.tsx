// The page: the form beside what it made.

import { useEffect } from "preact/hooks";
import { generateFromForm, receive } from "../actions";
import { form, model } from "../form";
import { cancelNewest } from "../jobs";
import { announced, away, needsKey } from "../page";
import { GalleryView } from "./gallery";
import { KeyForm } from "./key";
import { Notices } from "./notices";
import { RequestForm } from "./request";
import { Stage } from "./stage";

export function App() {
  useEffect(() => {
    document.addEventListener("keydown", onKey);
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", onDrop);
    document.addEventListener("paste", onPaste);
  }, []);
  return (
    <>
      <header>
        <Logo />
        <h1>Triptych</h1>
        <ServedModel />
      </header>
      {needsKey.value && <KeyForm />}
      <Notices />
      <main>
        {form.value ? <RequestForm /> : <div class="panel" aria-busy="true" />}
        <div class="results">
          <Stage />
          <GalleryView />
        </div>
      </main>
      <p class="unseen" role="status" aria-live="polite">
        {announced.value}
      </p>
    </>
  );
}

function onKey(event: KeyboardEvent): void {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    // What was typed counts, though its field has not been left.
    document.activeElement?.dispatchEvent(new Event("change", { bubbles: true }));
    void generateFromForm();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    cancelNewest();
  }
}

function onDrop(event: DragEvent): void {
  event.preventDefault();
  const file = event.dataTransfer?.files[0];
  if (file) void receive(file);
}

function onPaste(event: ClipboardEvent): void {
  const file = event.clipboardData?.files[0];
  if (file?.type.startsWith("image/")) void receive(file);
}

function ServedModel() {
  if (away.value) return <p class="served away">{away.value} Trying again…</p>;
  return <p class="served">{model.value?.name ?? ""}</p>;
}

function Logo() {
  return (
    <svg class="logo" viewBox="0 0 32 32" aria-hidden="true">
      <path d="M2 8.5 9 6v20l-7-2.5z" class="wing" />
      <path d="M11 4h10v24H11z" />
      <path d="m23 6 7 2.5v15L23 26z" class="wing" />
    </svg>
  );
}
