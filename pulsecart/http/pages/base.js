"use strict";
// What the pages share. Text from outside becomes text nodes only; the policy of the page forbids everything else.

/** Where the service is mounted. */
const BASE = location.pathname.replace(/\/(dev|docs)\/?$/, "");

/** The credentials, in memory only. */
let key = "";

/** Makes an element. Properties that are functions are listeners; texts among the children become text nodes. */
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Calls the service. */
function call(path, options = {}) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...options.headers };
  return fetch(BASE + path, { ...options, headers, cache: "no-store", redirect: "error" });
}

/** Yields the tokens of a JSON text as they are written: JSON.parse() would round numbers. */
function* tokens(text) {
  let at = 0;
  while (at < text.length) {
    const start = at;
    const first = text[at++];
    if (first === '"') {
      while (at < text.length && text[at] !== '"') at += text[at] === "\\" ? 2 : 1;
      at++;
      yield { kind: "string", start, end: at, text: text.slice(start, at) };
    } else if ("{}[],:".includes(first)) {
      yield { kind: first, start, end: at, text: first };
    } else if (!" \t\r\n".includes(first)) {
      while (at < text.length && !' \t\r\n{}[],:"'.includes(text[at])) at++;
      yield { kind: "literal", start, end: at, text: text.slice(start, at) };
    }
  }
}

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** Returns the members of an object, or the elements of an array, as they are written. Needs valid JSON. */
function children(text) {
  const found = new Map();
  let depth = 0, name = null, index = 0, start = -1, isArray = false;
  const finish = (end) => {
    if (start >= 0) found.set(isArray ? String(index++) : name, text.slice(start, end).trim());
    start = -1;
  };
  for (const token of tokens(text)) {
    const { kind } = token;
    if (depth === 1 && (kind === "," || kind === "}" || kind === "]")) {
      finish(token.start);
      name = null;
    } else if (depth === 1 && !isArray && start < 0 && name === null && kind === "string") {
      name = JSON.parse(token.text);
    } else if (depth === 1 && start < 0 && kind !== ":") {
      start = token.start;
    }
    if (kind === "{" || kind === "[") {
      if (depth++ === 0) isArray = kind === "[";
    } else if (kind === "}" || kind === "]") depth--;
  }
  return found;
}

/** Returns the lines of a JSON text, indented: the tokens of each, and the pointers of what begins and ends in it. */
function jsonLines(text) {
  const lines = [];
  const stack = [];
  let line;
  const begin = (depth) => lines.push((line = { depth, tokens: [], begins: [], ends: null }));
  const pointer = () => {
    const top = stack.at(-1);
    if (!top) return "";
    const name = top.isArray ? String(top.count) : top.key;
    return `${top.pointer}/${name.replaceAll("~", "~0").replaceAll("/", "~1")}`;
  };
  begin(0);
  for (const token of tokens(text)) {
    const top = stack.at(-1);
    const shown = { kind: token.kind, text: token.text };
    if (token.kind === "}" || token.kind === "]") {
      stack.pop();
      if (top.isEmpty) lines.pop(), (line = lines.at(-1));
      else begin(stack.length);
      line.ends = top.pointer;
      line.tokens.push(shown);
      continue;
    }
    if (top) top.isEmpty = false;
    if (token.kind === ",") {
      line.tokens.push(shown);
      top.count++;
      top.key = null;
      begin(stack.length);
    } else if (token.kind === ":") {
      line.tokens.push({ kind: ":", text: ": " });
    } else if (top && !top.isArray && top.key === null) {
      top.key = JSON.parse(token.text);
      line.tokens.push({ kind: "key", text: token.text });
    } else {
      line.begins.push(pointer());
      line.tokens.push(shown);
      if (token.kind === "{" || token.kind === "[") {
        stack.push({ isArray: token.kind === "[", pointer: pointer(), key: null, count: 0, isEmpty: true });
        begin(stack.length);
      }
    }
  }
  return lines;
}

function indented(text) {
  if (!isJson(text)) return text;
  return jsonLines(text).map((line) => "  ".repeat(line.depth) + line.tokens.map((token) => token.text).join("")).join("\n");
}

const MOST_LINES = 2000;
const MOST_CHARACTERS = 200_000;

/** Shows a text, as JSON if it is; each fault next to the place that it is about. */
function showJson(text, faults = []) {
  const pre = h("pre", { class: "json", tabindex: "0" });
  const whole = text.length <= MOST_CHARACTERS;
  if (!whole || !isJson(text)) {
    pre.append(text.slice(0, MOST_CHARACTERS));
    if (!whole) pre.append(h("span", { class: "line quiet" }, `… ${(text.length - MOST_CHARACTERS).toLocaleString("en")} more characters; Copy takes all of it`));
    return pre;
  }
  const lines = jsonLines(text);
  const notes = new Map();
  for (const fault of faults) {
    let at = lines.findIndex((line) => line.begins.includes(fault.pointer));
    let note = fault.message;
    // What is missing has no place: its parent's end is the nearest.
    for (let parent = fault.pointer; at < 0 && parent; ) {
      parent = parent.slice(0, parent.lastIndexOf("/"));
      at = lines.findIndex((line) => line.ends === parent);
      note = `${fault.pointer.slice(parent.length + 1)}: ${fault.message}`;
    }
    if (at >= 0) notes.set(at, [...(notes.get(at) ?? []), note]);
  }
  lines.slice(0, MOST_LINES).forEach((line, number) => {
    const shown = h("span", { class: notes.has(number) ? "line fault" : "line" }, "  ".repeat(line.depth));
    for (const token of line.tokens) {
      shown.append("key string literal".includes(token.kind) ? h("span", { class: token.kind }, token.text) : token.text);
    }
    for (const note of notes.get(number) ?? []) shown.append(h("span", { class: "note" }, `  ← ${note}`));
    pre.append(shown);
  });
  if (lines.length > MOST_LINES) pre.append(h("span", { class: "line quiet" }, `… ${lines.length - MOST_LINES} more lines; Copy takes all of them`));
  return pre;
}

/** A button that copies what a function returns. */
function copyButton(label, text) {
  const button = h("button", {
    type: "button",
    click: async () => {
      try {
        await navigator.clipboard.writeText(text());
        button.textContent = "Copied";
      } catch {
        button.textContent = "The browser does not allow it";
      }
      setTimeout(() => (button.textContent = label), 1500);
    },
  }, label);
  return button;
}

/** The curl command of a request. The key is not part of it: the shell adds it. */
function curl(path, body, contentType) {
  const quoted = (value) => `'${value.replaceAll("'", "'\\''")}'`;
  const parts = [`curl ${quoted(location.origin + path)}`];
  if (key) parts.push('-H "Authorization: Bearer $PULSECART_KEY"');
  if (contentType) parts.push(`-H ${quoted(`Content-Type: ${contentType}`)}`);
  parts.push(`--data-binary ${quoted(body)}`);
  return parts.join(" \\\n  ");
}

/** Shows text in which `backquotes` mark code, and empty lines part paragraphs. */
function prose(text) {
  return text.split(/\n{2,}/).map((paragraph) =>
    h("p", {}, paragraph.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part))));
}

/** Asks for a key. The page keeps it until it is closed or reloaded, and nowhere else. */
function signIn(message, then) {
  const input = h("input", { type: "password", id: "key", autocomplete: "off", spellcheck: "false", "aria-describedby": "key-help", required: true });
  const form = h("form", {
    class: "signin",
    submit: (event) => {
      event.preventDefault();
      key = input.value.trim();
      then();
    },
  },
  h("h2", {}, "A key is required"),
  h("p", { class: "quiet" }, message),
  h("label", { for: "key" }, "Key or token"),
  input,
  h("p", { class: "quiet", id: "key-help" }, "Kept in this page's memory only; a reload asks again."),
  h("div", { class: "row" }, h("button", { class: "primary" }, "Continue")));
  setTimeout(() => input.focus());
  return form;
}

/** The links to the pages. A service may have only one of them. */
const pages = {
  dev: h("a", { href: `${BASE}/dev`, hidden: true }, "Console"),
  docs: h("a", { href: `${BASE}/docs`, hidden: true }, "Docs"),
};

/** The head of a page. */
function pageHead(current, ...more) {
  pages[current].hidden = false;
  pages[current].setAttribute("aria-current", "page");
  return h("header", { class: "top" }, h("h1", { class: "brand" }, "pulsecart"), h("nav", { "aria-label": "Pages" }, pages.dev, pages.docs), ...more);
}

/** Shows the answer to a request. */
async function showAnswer(response) {
  const text = await response.text();
  const shown = h("div", { class: `answer ${response.ok ? "ok" : "fail"}`, role: "status" },
    h("div", { class: "row" },
      h("span", { class: `badge ${response.ok ? "ok" : "fail"}` }, String(response.status)),
      h("span", { class: "quiet mono" }, response.headers.get("content-type") ?? "")));
  if (text) shown.append(showJson(text));
  return { shown, text };
}
