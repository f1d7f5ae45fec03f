// Where the server asks who calls: a field for the API key.

import { useState } from "preact/hooks";
import { useKey } from "../actions";

export function KeyForm() {
  const [key, setKey] = useState("");
  return (
    <form
      class="key"
      onSubmit={(event) => {
        event.preventDefault();
        void useKey(key.trim());
      }}
    >
      <label for="key">This server asks for an API key. It is kept until this tab closes.</label>
      <div class="row">
        <input
          id="key"
          type="password"
          autocomplete="off"
          required
          value={key}
          onInput={(event) => setKey(event.currentTarget.value)}
        />
        <button type="submit" class="primary">
          Use this key
        </button>
      </div>
    </form>
  );
}
