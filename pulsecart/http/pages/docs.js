"use strict";
// The docs: events from /schemas, routes from /openapi.json.

const METHODS = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

const keyField = h("input", { type: "password", placeholder: "key or token", "aria-label": "Key or token for requests", autocomplete: "off", input: () => (key = keyField.value.trim()) });
const keyBox = h("form", { hidden: true, title: "Kept in this page's memory only", submit: (event) => event.preventDefault() }, keyField);
const content = h("main", {}, h("p", { class: "quiet" }, "Loading …"));
const contents = h("nav", { "aria-label": "Contents" });
document.body.append(
  pageHead("docs", h("span", { class: "spacer" }), keyBox, h("a", { href: `${BASE}/openapi.json` }, "OpenAPI"), h("a", { href: `${BASE}/asyncapi.json` }, "AsyncAPI")),
  h("div", { class: "layout" }, contents, content));

async function load(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} answered ${response.status}`);
  return response.text();
}

/** Follows references within the document. */
function dereference(schema, root) {
  return schema?.$ref ? dereference(schema.$ref.slice(2).split("/").reduce((at, name) => at[name], root), root) : schema;
}

function table(names, rows) {
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, names.map((name) => h("th", {}, name)))), h("tbody", {}, rows)));
}

/** Says what bounds a schema sets, and its default, in a few words each. */
function boundsOf(schema) {
  const range = (least, most, unit) => {
    if (least === undefined && most === undefined) return null;
    const text = least === undefined ? `at most ${most}` : most === undefined ? `at least ${least}` : least === most ? `${least}` : `${least} to ${most}`;
    return unit ? `${text} ${unit}${(most ?? least) === 1 ? "" : "s"}` : text;
  };
  return [
    range(schema.minLength, schema.maxLength, "character"),
    range(schema.minimum, schema.maximum, ""),
    schema.exclusiveMinimum !== undefined && `more than ${schema.exclusiveMinimum}`,
    schema.exclusiveMaximum !== undefined && `less than ${schema.exclusiveMaximum}`,
    range(schema.minItems, schema.maxItems, "element"),
    range(schema.minProperties, schema.maxProperties, "member"),
    schema.pattern && `matches ${schema.pattern}`,
    "default" in schema && `default ${JSON.stringify(schema.default)}`,
  ].filter(Boolean);
}

/** The rows of an object's fields, and those of the objects in them. */
function fieldRows(schema, root, path = "") {
  const required = new Set(schema.required);
  return Object.entries(schema.properties ?? {}).flatMap(([name, given]) => {
    const described = resolved(given, root);
    const element = described.type === "array" ? resolved(described.items ?? {}, root) : described;
    const suffix = described.type === "array" ? "[]" : "";
    const row = h("tr", { class: path ? "inner" : "" },
      h("td", { class: "name mono" }, path + name + suffix),
      h("td", {}, typeName(given, root)),
      h("td", { class: "short" }, required.has(name) ? "required" : h("span", { class: "quiet" }, "optional")),
      h("td", {}, prose(described.description ?? ""), h("div", { class: "quiet" }, boundsOf(described).join(", "))));
    const isDeep = path.split(".").length > 4; // a class may contain itself
    return [row, ...(element.properties && !isDeep ? fieldRows(element, root, `${path}${name}${suffix}.`) : [])];
  });
}

function eventArticle(each, text) {
  const schema = JSON.parse(text);
  const example = children(children(text).get("examples") ?? "[]").get("0");
  const tried = h("details", {
    toggle: () => tried.childElementCount === 1 && tried.append(eventForm(text).element),
  }, h("summary", {}, "Try it"));
  return h("article", { id: `event-${each.event_type}` },
    h("div", { class: "head" }, h("h3", {}, each.event_type), h("span", { class: "quiet" }, "to ", h("code", {}, each.topic)), h("span", { class: "spacer" }), h("a", { href: each.schema }, "JSON Schema")),
    prose(schema.description ?? ""),
    table(["Field", "Type", "", ""], fieldRows(schema, schema)),
    example && [h("h4", {}, "Example"), showJson(example), h("div", { class: "row" }, copyButton("Copy as curl", () => curl(`${BASE}/events/ingest`, example, "application/json")))],
    tried);
}

function parameterInput(parameter) {
  const choices = parameter.schema?.enum;
  const element = choices
    ? h("select", {}, h("option", { value: "" }, "–"), choices.map((value) => h("option", { value }, String(value))))
    : h("input", { placeholder: parameter.example ?? parameter.schema?.examples?.[0] ?? "", spellcheck: "false", autocomplete: "off" });
  return { parameter, element, label: h("label", {}, `${parameter.name}${parameter.required ? "" : " (optional)"}`, element) };
}

/** The examples of the bodies that an operation takes, as they are written in the document. */
function bodyExamples(operationText) {
  const content = children(children(children(operationText).get("requestBody") ?? "{}").get("content") ?? "{}");
  return [...content].flatMap(([mediaType, media]) => {
    const examples = [...children(children(media).get("examples") ?? "{}")];
    return (examples.length ? examples : [["", '{"value":""}']]).map(([name, example]) => {
      const value = children(example).get("value") ?? '""';
      return { mediaType, name, text: value.startsWith('"') ? JSON.parse(value) : indented(value) };
    });
  });
}

/** What sends a request of an operation, and shows the answer. */
function tryIt(method, path, operation, operationText) {
  const inputs = (operation.parameters ?? []).map(parameterInput);
  const examples = bodyExamples(operationText);
  const bodyText = h("textarea", { rows: "12", "aria-label": "Body", spellcheck: "false" });
  const choice = h("select", { "aria-label": "Example", change: () => useExample() }, examples.map(({ mediaType, name }) => h("option", {}, name && name !== "example" ? `${mediaType}: ${name}` : mediaType)));
  const useExample = () => {
    bodyText.value = examples[choice.selectedIndex]?.text ?? "";
    bodyText.rows = Math.min(18, bodyText.value.split("\n").length + 1);
  };
  const answer = h("div", {});
  useExample();
  const request = () => {
    let at = path;
    const headers = {};
    const query = new URLSearchParams();
    for (const { parameter, element } of inputs) {
      if (parameter.in === "path") at = at.replace(`{${parameter.name}}`, encodeURIComponent(element.value || element.placeholder));
      else if (!element.value) continue;
      else if (parameter.in === "query") query.set(parameter.name, element.value);
      else headers[parameter.name] = element.value;
    }
    if (examples.length) headers["Content-Type"] = examples[choice.selectedIndex].mediaType;
    return { at: `${at}${query.size ? `?${query}` : ""}`, options: { method: method.toUpperCase(), headers, ...(examples.length && { body: bodyText.value }) } };
  };
  return h("form", {
    class: "try",
    submit: async (event) => {
      event.preventDefault();
      answer.replaceChildren(h("span", { class: "quiet" }, "Sending …"));
      try {
        const { at, options } = request();
        answer.replaceChildren((await showAnswer(await call(at, options))).shown);
      } catch (error) {
        answer.replaceChildren(h("div", { class: "answer fail bad", role: "status" }, `The service did not answer: ${error.message}`));
      }
    },
  },
  inputs.length > 0 && h("div", { class: "parameters" }, inputs.map(({ label }) => label)),
  examples.length > 0 && [h("div", {}, choice), bodyText],
  h("div", { class: "row" }, h("button", { class: "primary" }, "Send")),
  answer);
}

function answerRows(operation) {
  return Object.entries(operation.responses).map(([status, answer]) => {
    const media = Object.values(answer.content ?? {})[0];
    const examples = media?.example !== undefined ? [media.example] : Object.values(media?.examples ?? {}).map((each) => each.value);
    return h("tr", {},
      h("td", { class: "name" }, h("span", { class: `badge ${status < 400 ? "ok" : "fail"}` }, status)),
      h("td", {}, prose(answer.description),
        examples.length > 0 && h("details", {}, h("summary", {}, examples.length === 1 ? "Example" : `${examples.length} examples`), examples.map((each) => showJson(JSON.stringify(each))))));
  });
}

function routeArticle(method, path, operation, operationText) {
  const isEndless = Object.values(operation.responses).some((answer) => answer.content?.["text/event-stream"]);
  const isPage = Object.values(operation.responses).some((answer) => answer.content?.["text/html"]);
  const details = h("details", { toggle: () => details.childElementCount === 1 && details.append(tryIt(method, path, operation, operationText)) }, h("summary", {}, "Try it"));
  return h("article", { id: `route-${operation.operationId}` },
    h("div", { class: "head" }, h("span", { class: `badge ${method}` }, method.toUpperCase()), h("h3", { class: "mono" }, path), h("span", { class: "quiet" }, operation.summary)),
    operation.description && prose(operation.description),
    operation.parameters?.length > 0 && table(["Parameter", "In", ""], operation.parameters.map((each) =>
      h("tr", {}, h("td", { class: "name mono" }, each.name), h("td", { class: "short" }, each.in), h("td", {}, prose(each.description ?? ""))))),
    h("details", {}, h("summary", {}, `Answers: ${Object.keys(operation.responses).join(", ")}`), table(["Status", ""], answerRows(operation))),
    isEndless ? h("p", { class: "quiet" }, "This answer has no end; the console shows it.") : isPage ? null : details);
}

async function start() {
  const [listed, openapiText] = await Promise.all([load(`${BASE}/schemas`), load(`${BASE}/openapi.json`)]);
  const { schemas } = JSON.parse(listed);
  const openapi = JSON.parse(openapiText);
  const texts = await Promise.all(schemas.map((each) => load(each.schema)));
  pages.dev.hidden = !("/dev" in openapi.paths);
  keyBox.hidden = !openapi.components.securitySchemes;
  const pathTexts = children(children(openapiText).get("paths"));
  const routes = Object.entries(openapi.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => [method, path, item[method], children(pathTexts.get(path)).get(method)]));
  content.replaceChildren(
    h("div", { class: "intro" }, h("h2", {}, openapi.info.title, " ", h("span", { class: "quiet" }, openapi.info.version)), prose(openapi.info.description)),
    h("h2", { class: "group", id: "events" }, "Events"), ...schemas.map((each, index) => eventArticle(each, texts[index])),
    h("h2", { class: "group", id: "routes" }, "Routes"), ...routes.map((route) => routeArticle(...route)));
  contents.append(
    h("div", {}, h("h2", {}, "Events"), schemas.map((each) => h("a", { href: `#event-${each.event_type}` }, each.event_type))),
    h("div", {}, h("h2", {}, "Routes"), routes.map(([method, path, operation]) =>
      h("a", { href: `#route-${operation.operationId}` }, h("span", { class: `badge ${method}` }, method.toUpperCase()), path))));
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

start().catch((error) => content.replaceChildren(h("p", { class: "bad" }, `The documents could not be loaded: ${error.message}`)));
