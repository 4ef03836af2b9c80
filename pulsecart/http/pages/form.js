"use strict";
// A form for an event, made of the JSON Schema of its type.

let nextId = 0;

/** Returns a schema without the wrappers that only say that a value may be null, or is described elsewhere. */
function resolved(schema, root) {
  if (schema.$ref) {
    const { $ref, ...rest } = schema;
    return resolved({ ...$ref.slice(2).split("/").reduce((at, name) => at[name], root), ...rest }, root);
  }
  if (schema.allOf?.length === 1) {
    const { allOf, ...rest } = schema;
    return { ...resolved(allOf[0], root), ...rest };
  }
  if (schema.anyOf?.length === 2 && schema.anyOf[1].type === "null") {
    const { anyOf, ...rest } = schema;
    return { ...resolved(anyOf[0], root), ...rest, nullable: true };
  }
  return schema;
}

/** Says in a few words what a schema accepts. */
function typeName(given, root) {
  const schema = resolved(given, root);
  const name = "const" in schema ? JSON.stringify(schema.const)
    : schema.enum ? schema.enum.map((value) => JSON.stringify(value)).join(" | ")
    : schema.type === "array" ? `array of ${typeName(schema.items ?? {}, root)}`
    : schema.oneOf || schema.anyOf ? (schema.oneOf ?? schema.anyOf).map((each) => typeName(each, root)).join(" | ")
    : schema.format === "date-time" ? "date and time" : schema.format && schema.type === "string" ? schema.format
    : schema.type ?? "any value";
  return schema.nullable ? `${name} or null` : name;
}

/** Makes the control of a field: it reads and writes the JSON text of the value; empty if there is none. */
function control(schema, id, isRequired) {
  const shared = { id, "aria-describedby": `${id}-help ${id}-fault`, spellcheck: "false", autocomplete: "off" };
  const choices = schema.enum ?? (schema.type === "boolean" ? [true, false] : null);
  if (choices) {
    const values = choices.map((value) => JSON.stringify(value));
    const names = choices.map((value) => h("option", {}, String(value)));
    const element = h("select", shared, isRequired ? null : h("option", {}, "–"), names);
    const offset = isRequired ? 0 : 1;
    return { element, read: () => values[element.selectedIndex - offset] ?? "", write: (text) => (element.selectedIndex = Math.max(0, values.indexOf(text) + offset)) };
  }
  if (schema.type === "string" && !schema.nullable) {
    const element = h("input", { ...shared, placeholder: schema.format === "date-time" ? new Date().toISOString() : "" });
    return {
      element,
      read: () => (element.value || isRequired ? JSON.stringify(element.value) : ""),
      write: (text) => (element.value = typeof JSON.parse(text || '""') === "string" ? JSON.parse(text || '""') : text),
    };
  }
  const isNumber = schema.type === "integer" || schema.type === "number";
  const element = isNumber ? h("input", { ...shared, inputmode: "decimal" }) : h("textarea", { ...shared, rows: "2" });
  return {
    element,
    read: () => {
      const text = element.value.trim();
      return text && !isJson(text) && isNumber ? JSON.stringify(text) : text; // the service says what is wrong with it
    },
    write: (text) => {
      element.value = isNumber ? text : indented(text);
      if (!isNumber) element.rows = Math.min(18, Math.max(2, element.value.split("\n").length));
    },
  };
}

/**
 * Makes the form for a schema, given as text. The faults in an answer are shown at their fields.
 */
function eventForm(schemaText) {
  const schema = JSON.parse(schemaText);
  const type = schema.properties.event_type.const;
  const fields = new Map();
  const id = `f${nextId++}`;
  const example = children(children(schemaText).get("examples") ?? "[]").get("0") ?? "{}";
  const required = new Set(schema.required);

  const fieldOf = ([name, given]) => {
    const described = resolved(given, schema);
    const fieldId = `${id}-${name}`;
    const made = control(described, fieldId, required.has(name));
    const fault = h("div", { class: "fault", id: `${fieldId}-fault` });
    fields.set(name, { ...made, fault });
    return h("div", { class: "field" },
      h("label", { for: fieldId }, name, h("span", { class: "quiet" }, `${typeName(given, schema)}${required.has(name) ? "" : ", optional"}`)),
      made.element, fault,
      h("div", { class: "help", id: `${fieldId}-help` }, prose(described.description ?? "")));
  };
  const entries = Object.entries(schema.properties).filter(([name]) => name !== "event_type");
  const isGenerated = ([name]) => name === "event_id" || name === "timestamp";
  const needed = entries.filter(([name]) => required.has(name)).sort(([a], [b]) => (a === "payload") - (b === "payload"));
  const optional = entries.filter((entry) => !required.has(entry[0]) && !isGenerated(entry));
  const asFields = h("fieldset", {},
    [...needed, ...optional].map(fieldOf),
    h("details", {}, h("summary", {}, "event_id and timestamp are generated"), h("fieldset", {}, entries.filter(isGenerated).map(fieldOf))));

  const whole = h("textarea", { rows: "16", "aria-label": "The event as JSON", spellcheck: "false" });
  const others = h("div", { class: "fault", role: "alert" });
  const answer = h("div", {});
  const isText = () => !whole.hidden;

  const fromFields = () => {
    const members = [`"event_type":${JSON.stringify(type)}`];
    for (const [name, field] of fields) {
      const text = field.read();
      if (text) members.push(`${JSON.stringify(name)}:${text}`);
    }
    return `{${members.join(",")}}`;
  };
  const body = () => (isText() ? whole.value : fromFields());
  const fill = (text) => {
    const values = children(text);
    for (const [name, field] of fields) field.write(values.get(name) ?? "");
  };
  /** Whether the fields can show all that is in a text. */
  const fits = (text) => isJson(text) && text.trim().startsWith("{") &&
    [...children(text)].every(([name, value]) => fields.has(name) || (name === "event_type" && value === JSON.stringify(type)));

  const clearFaults = () => {
    others.replaceChildren();
    for (const field of fields.values()) {
      field.fault.textContent = "";
      field.element.removeAttribute("aria-invalid");
    }
  };
  const show = (problem) => {
    for (const fault of problem?.errors ?? []) {
      const [, name, ...rest] = fault.pointer.split("/");
      const field = isText() ? undefined : fields.get(name?.replaceAll("~1", "/").replaceAll("~0", "~"));
      if (!field) {
        others.append(h("div", {}, `${fault.pointer} ${fault.message}`.trim()));
        continue;
      }
      field.element.setAttribute("aria-invalid", "true");
      field.fault.textContent = [field.fault.textContent, [...rest, fault.message].join(" ")].filter(Boolean).join("; ");
      field.element.closest("details")?.setAttribute("open", "");
    }
  };
  const submit = async (path) => {
    clearFaults();
    answer.replaceChildren(h("span", { class: "quiet" }, "Sending …"));
    try {
      const response = await call(path, { method: "POST", body: body(), headers: { "Content-Type": "application/json" } });
      const { shown, text } = await showAnswer(response);
      answer.replaceChildren(shown);
      if (!response.ok && isJson(text)) show(JSON.parse(text));
    } catch (error) {
      answer.replaceChildren(h("div", { class: "answer fail bad", role: "status" }, `The service did not answer: ${error.message}`));
    }
  };
  const toggle = h("button", {
    type: "button",
    click: () => {
      clearFaults();
      if (!isText()) whole.value = indented(fromFields());
      else if (fits(whole.value)) fill(whole.value);
      else return others.replaceChildren("The fields cannot show this: it is not valid JSON, or has other names than the form.");
      whole.hidden = isText();
      asFields.hidden = !asFields.hidden;
      toggle.textContent = isText() ? "Edit fields" : "Edit as JSON";
    },
  }, "Edit as JSON");
  whole.hidden = true;
  fill(example);

  const element = h("form", {
    class: "event", novalidate: true,
    submit: (event) => {
      event.preventDefault();
      submit("/events/ingest");
    },
  },
  h("div", {}, prose(schema.description ?? ""), h("p", { class: "quiet" }, "Topic ", h("code", {}, schema["x-topic"] ?? ""))),
  asFields, whole, others,
  h("div", { class: "row" },
    h("button", { class: "primary" }, "Send"),
    h("button", { type: "button", click: () => submit("/events/validate") }, "Validate only"),
    toggle,
    copyButton("Copy as curl", () => curl(`${BASE}/events/ingest`, body(), "application/json"))),
  answer);
  const useText = (text) => {
    if (fits(text)) return fill(text);
    if (!isText()) toggle.click();
    whole.value = isJson(text) ? indented(text) : text;
  };
  return { element, useText };
}
