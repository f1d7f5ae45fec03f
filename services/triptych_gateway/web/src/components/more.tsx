// Every other parameter that the server describes: a field of the kind that it is.

import { useId } from "preact/hooks";
import { change, chosen, form, OWN } from "../form";
import { fields } from "../page";
import type { Field, Json, Message } from "../types";

export function More() {
  const { more } = form.value!;
  const set = (name: string, value: Json | undefined): void => {
    const { [name]: _, ...others } = more;
    change({ more: value === undefined ? others : { ...others, [name]: value } });
  };
  const shown = fields.value.filter(({ name }) => !OWN.has(name));
  const given = Object.keys(more).length;
  return (
    <details class="more">
      <summary>More{given > 0 && ` (${given})`}</summary>
      <div class="fields">
        {shown.map((field) => (
          <AnyField field={field} value={more[field.name]} onChange={(value) => set(field.name, value)} />
        ))}
      </div>
    </details>
  );
}

interface Given {
  field: Field;
  value: Json | undefined;
  onChange: (value: Json | undefined) => void;
}

function AnyField({ field, value, onChange }: Given) {
  const given = { field, value, onChange };
  if (field.kind === "bytes") return null;
  if (field.kind === "choice") return <ChoiceField {...given} />;
  if (field.kind === "message") return field.repeated ? <ListField {...given} /> : <GroupField {...given} />;
  if (field.kind === "flag") return <FlagField {...given} />;
  return <TextField {...given} />;
}

/** A word, with the fields of what was chosen. */
function ChoiceField({ field, value, onChange }: Given) {
  const id = useId();
  const name = chosen(value);
  const choice = field.choices!.find((one) => one.name === name);
  const inside = typeof value === "object" && name ? ((value as Message)[name] as Message) : {};
  return (
    <div class="field">
      <label for={id}>{words(field.name)}</label>
      <select
        id={id}
        aria-describedby={`${id}help`}
        value={name ?? ""}
        onChange={({ currentTarget: { value: word } }) => onChange(word ? { [word]: {} } : undefined)}
      >
        <option value="">Default</option>
        {field.choices!.map((one) => (
          <option value={one.name}>{words(one.name)}</option>
        ))}
      </select>
      <p class="hint" id={`${id}help`}>
        {plain((choice ?? field).help)}
      </p>
      {choice && <Fields fields={choice.fields!} value={inside} onChange={(now) => onChange({ [choice.name]: now })} />}
    </div>
  );
}

/** Several fields, which are said together or not at all. */
function GroupField({ field, value, onChange }: Given) {
  const id = useId();
  const given = value !== undefined && value !== null;
  return (
    <div class="field">
      <label class="check">
        <input
          type="checkbox"
          checked={given}
          aria-describedby={`${id}help`}
          onChange={({ currentTarget: { checked } }) => onChange(checked ? {} : undefined)}
        />
        {words(field.name)}
      </label>
      <p class="hint" id={`${id}help`}>
        {plain(field.help)}
      </p>
      {given && <Fields fields={field.fields!} value={value as Message} onChange={onChange} />}
    </div>
  );
}

function ListField({ field, value, onChange }: Given) {
  const all = (value ?? []) as Message[];
  const set = (now: Message[]): void => onChange(now.length ? now : undefined);
  return (
    <fieldset class="field">
      <legend>{words(field.name)}</legend>
      <p class="hint">{plain(field.help)}</p>
      {all.map((one, at) => (
        <>
          <Fields fields={field.fields!} value={one} onChange={(now) => set(all.with(at, now))} />
          <button type="button" onClick={() => set(all.toSpliced(at, 1))}>
            Remove
          </button>
        </>
      ))}
      <button type="button" onClick={() => set([...all, {}])}>
        Add
      </button>
    </fieldset>
  );
}

interface GivenFields {
  fields: Field[];
  value: Message;
  onChange: (value: Message) => void;
}

function Fields({ fields: inside, value, onChange }: GivenFields) {
  if (!inside.length) return null;
  return (
    <div class="inside">
      {inside.map((field) => (
        <AnyField
          field={field}
          value={value[field.name]}
          onChange={(now) => {
            const { [field.name]: _, ...others } = value;
            onChange(now === undefined ? others : { ...others, [field.name]: now });
          }}
        />
      ))}
    </div>
  );
}

function FlagField({ field, value, onChange }: Given) {
  const id = useId();
  return (
    <div class="field">
      <label class="check">
        <input
          type="checkbox"
          checked={value === true}
          aria-describedby={`${id}help`}
          onChange={({ currentTarget: { checked } }) => onChange(checked ? true : undefined)}
        />
        {words(field.name)}
      </label>
      <p class="hint" id={`${id}help`}>
        {plain(field.help)}
      </p>
    </div>
  );
}

/** A number or a text; several have commas between them. Empty is the default. */
function TextField({ field, value, onChange }: Given) {
  const id = useId();
  const isText = field.kind === "text";
  const said = value === undefined || value === null ? "" : Array.isArray(value) ? value.join(", ") : String(value);
  const read = (text: string): Json | undefined => {
    if (!text.trim()) return undefined;
    if (isText) return field.repeated ? [text] : text;
    const numbers = text.split(",").map((one) => one.trim());
    // The server says what is wrong with a word that is no number.
    const all = numbers.map((one) => (Number.isSafeInteger(Number(one)) || /[.e]/.test(one) ? Number(one) : one));
    return field.repeated ? all : (all[0] ?? undefined);
  };
  return (
    <div class="field">
      <label for={id}>{words(field.name)}</label>
      <input
        id={id}
        aria-describedby={`${id}help`}
        inputMode={isText ? "text" : "decimal"}
        placeholder={field.repeated && !isText ? "1, 2, 3" : "Default"}
        value={said}
        onChange={({ currentTarget: { value: text } }) => onChange(read(text))}
      />
      <p class="hint" id={`${id}help`}>
        {plain(field.help)}
      </p>
    </div>
  );
}

/** A name of the proto as people read it: "guidance_rescale" is "Guidance rescale". */
export function words(name: string): string {
  const spaced = name.replaceAll("_", " ");
  return spaced.charAt(0).toUpperCase() + spaced.slice(1);
}

/** A comment of the proto without its marks. */
function plain(help: string): string {
  return help.replaceAll("`", "").replaceAll("GetModel's", "the model's");
}
