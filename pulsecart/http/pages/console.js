"use strict";
// The console: shows what /dev/stream sends, newest first.

const MOST_ENTRIES = 2000;
const MOST_TEXT = 20_000_000;
const FLUSH_MS = 60;

/** What has come, newest first, and its size in characters. */
let entries = [];
let size = 0;
let selected = null;
let paused = false;
let held = 0;
let lastId = "";
let schemas = null;
const types = new Set();
const waiting = [];
let flushing = 0;
let connection = null;

// The page.

const state = h("span", { class: "state", role: "status" }, "connecting");
const filters = {
  show: h("select", { id: "show" }, h("option", { value: "" }, "everything"), h("option", { value: "message" }, "messages"), h("option", { value: "rejected" }, "rejected")),
  type: h("select", { id: "type" }, h("option", { value: "" }, "all types")),
  user: h("input", { id: "user", type: "search", placeholder: "part of an id", spellcheck: "false", autocomplete: "off" }),
  id: h("input", { id: "id", type: "search", placeholder: "part of any id", spellcheck: "false", autocomplete: "off" }),
};
const count = h("span", {});
const list = h("ol", { class: "entries", "aria-label": "Events, newest first" });
const nothing = h("div", { class: "nothing" });
const detail = h("section", { class: "pane detail", "aria-label": "Detail", tabindex: "-1" });
const pauseButton = h("button", { type: "button", click: () => pause(!paused) }, "Pause");
const listPane = h("section", { class: "pane list", "aria-label": "Events" },
  h("div", { class: "filters" },
    [["show", "Show"], ["type", "Type"], ["user", "User"], ["id", "Id"]].map(([name, label]) => h("label", {}, label, filters[name]))),
  h("div", { class: "tools" }, count, h("span", { class: "spacer" }), pauseButton, h("button", { type: "button", click: clearAll }, "Clear")),
  nothing, list);
const main = h("main", { "data-shows": "list" }, listPane, detail);
document.body.append(
  pageHead("dev", state, h("span", { class: "spacer" }),
    h("button", { type: "button", class: "keyboard", click: showKeys, title: "Keyboard shortcuts" }, h("kbd", {}, "?")),
    h("button", { type: "button", class: "primary", click: () => compose() }, "Send an event")),
  main);

function setState(name, text) {
  state.dataset.state = name;
  state.textContent = text;
}

function showDetail(...content) {
  detail.replaceChildren(h("button", { type: "button", class: "back", click: showList }, "← Events"), ...content);
  detail.scrollTop = 0;
  main.dataset.shows = "detail";
}

function showList() {
  main.dataset.shows = "list";
}

// Entries.

/** Makes an entry of an event of the stream. The data of a message is kept as it is written. */
function entryOf(kind, id, text) {
  const raw = children(text);
  const value = (name) => (raw.has(name) ? JSON.parse(raw.get(name)) : undefined);
  const entry = { kind, id, time: value("time"), size: text.length, searched: [] };
  if (kind === "message") {
    entry.attributes = value("attributes");
    entry.data = raw.get("data");
    Object.assign(entry, { topic: value("topic"), messageId: value("message_id"), orderingKey: value("ordering_key"), traceId: value("trace_id"), traceUrl: value("trace_url") });
  } else {
    entry.body = value("body");
    entry.problem = value("problem");
    entry.problemText = raw.get("problem");
    Object.assign(entry, { status: value("status"), path: value("path"), contentType: value("content_type") });
  }
  const sent = kind === "message" ? entry.data : isJson(entry.body) ? entry.body : "";
  const fields = sent.trimStart().startsWith("{") ? children(sent) : new Map();
  const field = (name) => {
    const found = fields.get(name) ?? "null";
    return found.startsWith('"') ? JSON.parse(found) : "";
  };
  entry.type = entry.attributes?.event_type ?? field("event_type");
  entry.user = field("user_id");
  entry.eventId = entry.attributes?.event_id ?? (entry.problem?.event_id || field("event_id"));
  entry.searched = [entry.eventId, entry.messageId ?? "", entry.traceId ?? ""];
  return entry;
}

function take(kind, id, text) {
  const [run, number] = id.split("-");
  const [lastRun, lastNumber] = lastId.split("-");
  if (lastId && run !== lastRun) waiting.push({ notice: "The service has started again" });
  else if (lastId && Number(number) > Number(lastNumber) + 1) {
    waiting.push({ notice: `${Number(number) - Number(lastNumber) - 1} are not shown: the service no longer had them` });
  }
  lastId = id;
  waiting.push(entryOf(kind, id, text));
  flushing ||= setTimeout(flush, FLUSH_MS);
}

/** Moves what has arrived to the entries, drops the oldest, and shows the new ones. */
function flush() {
  flushing = 0;
  const arrived = waiting.splice(0);
  for (const entry of arrived) {
    size += entry.size ?? 0;
    if (entry.type && !types.has(entry.type)) addType(entry.type);
  }
  entries = [...arrived.toReversed(), ...entries];
  let kept = entries.length;
  while (kept > 1 && (kept > MOST_ENTRIES || size > MOST_TEXT)) size -= entries[--kept].size ?? 0;
  entries.length = kept;
  if (paused) {
    held += arrived.filter((entry) => !entry.notice).length;
    showCount();
    return;
  }
  const shown = arrived.filter(matches).slice(-MOST_ENTRIES).map(rowOf);
  list.prepend(...shown.toReversed());
  const rows = entries.filter(matches).length;
  while (list.childElementCount > rows) list.lastElementChild.remove();
  showCount();
}

function addType(type) {
  types.add(type);
  const option = h("option", { value: type }, type);
  const after = [...filters.type.options].slice(1).find((each) => each.value > type);
  filters.type.insertBefore(option, after ?? null);
}

function matches(entry) {
  if (entry.notice) return true;
  const { show, type, user, id } = filters;
  return (!show.value || entry.kind === show.value) && (!type.value || entry.type === type.value) &&
    (!user.value || entry.user.includes(user.value.trim())) &&
    (!id.value || entry.searched.some((each) => each.includes(id.value.trim())));
}

function timeOf(entry) {
  const time = new Date(entry.time);
  return `${time.toLocaleTimeString("en-GB")}.${String(time.getMilliseconds()).padStart(3, "0")}`;
}

function rowOf(entry) {
  if (entry.notice) return h("li", { class: "notice" }, entry.notice);
  const isRejected = entry.kind === "rejected";
  const more = isRejected ? faultsOf(entry).map((fault) => fault.pointer.slice(1) || fault.message).join(", ") || entry.problem.detail : entry.eventId;
  const button = h("button", { type: "button", class: `entry ${entry.kind}`, "aria-current": entry === selected ? "true" : "false", click: () => select(entry) },
    h("span", { class: "time" }, timeOf(entry)),
    h("span", { class: "name" }, isRejected ? h("span", { class: "badge fail" }, String(entry.status)) : null, isRejected ? " " : null,
      entry.type || (isRejected ? entry.path : "")),
    h("span", { class: "user" }, entry.user),
    h("span", { class: `more ${isRejected ? "bad" : "mono"}` }, isRejected ? `${entry.problem.type}: ${more}` : more));
  entry.row = button;
  return h("li", {}, button);
}

function refresh() {
  list.replaceChildren(...entries.filter(matches).map(rowOf));
  showCount();
}

function showCount() {
  const all = entries.filter((entry) => !entry.notice).length;
  const shown = entries.filter((entry) => !entry.notice && matches(entry)).length;
  count.textContent = `${shown === all ? all : `${shown} of ${all}`} ${all === MOST_ENTRIES ? "newest " : ""}${all === 1 ? "event" : "events"}${paused ? `, ${held} new` : ""}`;
  nothing.hidden = list.childElementCount > 0;
  if (nothing.hidden) return;
  const example = '{"event_type": "order.placed", "user_id": "user-1", "order_id": "order-1", "payload": {"total": 89.90}}';
  nothing.replaceChildren(...(all
    ? [h("p", {}, "Nothing matches the filters."), h("div", {}, h("button", { type: "button", click: clearFilters }, "Remove the filters"))]
    : [h("p", {}, "Events appear here when they are published, and requests when they are rejected."),
      showJson(curl(`${BASE}/events/ingest`, example, "application/json")),
      h("div", {}, h("button", { type: "button", click: () => compose() }, "Send an event"))]));
}

function clearFilters() {
  for (const each of Object.values(filters)) each.value = "";
  filtersChanged();
}

/** Keeps the filters in the address, so that they survive a reload. */
function filtersChanged() {
  const set = Object.entries(filters).filter(([, each]) => each.value).map(([name, each]) => [name, each.value]);
  history.replaceState(null, "", set.length ? `#${new URLSearchParams(set)}` : location.pathname);
  refresh();
}

function pause(on) {
  paused = on;
  held = 0;
  pauseButton.textContent = paused ? "Continue" : "Pause";
  pauseButton.setAttribute("aria-pressed", String(paused));
  if (!paused) refresh();
  showCount();
}

async function clearAll() {
  const answers = await Promise.all(["/dev/messages", "/dev/rejected"].map((path) => call(path, { method: "DELETE" }).catch(() => null)));
  if (!answers.every((answer) => answer?.ok)) return setState("off", "could not be cleared");
  waiting.length = 0;
  entries = [];
  size = held = 0;
  selected = null;
  refresh();
  showWelcome();
}

// Detail.

function select(entry) {
  if (selected?.row) selected.row.setAttribute("aria-current", "false");
  selected = entry;
  entry.row?.setAttribute("aria-current", "true");
  entry.row?.scrollIntoView({ block: "nearest" });
  showDetail(entry.kind === "message" ? messageDetail(entry) : rejectedDetail(entry));
}

function terms(pairs) {
  return h("dl", {}, pairs.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

const mono = (text) => text && h("span", { class: "mono" }, text);

function messageDetail(entry) {
  const { event_type, event_id, ...others } = entry.attributes;
  const trace = entry.traceUrl ? h("a", { href: entry.traceUrl, target: "_blank", rel: "noopener noreferrer", class: "mono" }, entry.traceId) : mono(entry.traceId);
  return h("section", {},
    h("div", { class: "title" }, h("h2", {}, event_type), h("span", { class: "badge ok" }, "published"), h("span", { class: "quiet" }, timeOf(entry))),
    h("div", { class: "row" },
      entry.traceUrl && h("a", { class: "button", href: entry.traceUrl, target: "_blank", rel: "noopener noreferrer" }, "Open trace"),
      copyButton("Copy as curl", () => curl(`${BASE}/events/ingest`, entry.data, "application/json")),
      copyButton("Copy JSON", () => entry.data),
      h("button", { type: "button", click: () => compose(event_type, withoutId(entry.data)) }, "Edit and send again")),
    terms([["User", mono(entry.user)], ["Event id", mono(event_id)], ["Trace", trace], ["Topic", mono(entry.topic)], ["Message id", mono(entry.messageId)], ["Ordering key", entry.orderingKey === entry.user ? h("span", { class: "quiet" }, "the user") : mono(entry.orderingKey) || h("span", { class: "quiet" }, "none")]]),
    h("h3", {}, "Data"), showJson(entry.data),
    h("h3", {}, "Attributes"),
    terms([["event_type", mono(event_type)], ["event_id", mono(event_id)], ...Object.entries(others).map(([name, value]) => [name, mono(value)])]));
}

/** The event as a new one. */
function withoutId(text) {
  const kept = [...children(text)].filter(([name]) => name !== "event_id" && name !== "timestamp");
  return `{${kept.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(",")}}`;
}

/** All faults of a rejected request, those of the events in a batch with the place of the event. */
function faultsOf(entry) {
  const { problem } = entry;
  const ofResult = (result) => (result.errors ?? [{ pointer: "", message: result.detail }]).map((fault) => ({
    ...fault,
    pointer: `/${result.index}${fault.pointer}`,
    place: "line" in result ? `line ${result.line} ${fault.pointer}` : undefined,
  }));
  return [...(problem.errors ?? []), ...(problem.results ?? []).flatMap(ofResult)];
}

function rejectedDetail(entry) {
  const { problem } = entry;
  const faults = faultsOf(entry);
  const isSingle = entry.path.endsWith("/events/ingest") || entry.path.endsWith("/events/validate");
  return h("section", {},
    h("div", { class: "title" }, h("span", { class: "badge fail" }, String(entry.status)), h("h2", {}, problem.title ?? problem.type), h("span", { class: "quiet" }, timeOf(entry))),
    h("p", {}, problem.detail),
    h("div", { class: "row" },
      entry.body && copyButton("Copy as curl", () => curl(entry.path, entry.body, entry.contentType)),
      entry.body && copyButton("Copy body", () => entry.body),
      isSingle && entry.body && h("button", { type: "button", click: () => compose(entry.type, entry.body) }, "Edit and send again")),
    terms([["Request", mono(`POST ${entry.path}`)], ["Content-Type", mono(entry.contentType) || h("span", { class: "quiet" }, "none")], ["Type", mono(problem.type)], ["Retryable", problem.retryable ? "yes" : "no"], ["Event id", mono(entry.eventId)]]),
    h("div", { class: "side" },
      h("div", {}, h("h3", {}, faults.length === 1 ? "1 fault" : `${faults.length} faults`),
        h("ul", { class: "faults" }, faults.map((fault) =>
          h("li", {}, h("code", {}, fault.place ?? (fault.pointer || "the body")), fault.code ? [" ", h("span", { class: "quiet" }, fault.code)] : null, h("div", {}, fault.message)))),
        h("details", {}, h("summary", {}, "The whole answer"), showJson(entry.problemText))),
      h("div", {}, h("h3", {}, "Body"),
        entry.body ? showJson(entry.body, faults.filter((fault) => !fault.place)) : h("p", { class: "quiet" }, "The body was not read, or is empty."))));
}

function showWelcome() {
  showDetail(h("section", {}, h("h2", {}, "No event is selected"),
    h("p", { class: "quiet" }, "Select one to see its message, attributes and trace; a rejected request shows its faults next to its body."),
    ...keys()));
  showList();
}

function keys() {
  const all = [["j", "k", "next and previous event; arrows, too"], ["n", "", "new event: the form"], ["/", "", "filter by user"], ["p", "", "pause and continue"], ["Esc", "", "back to the list"], ["?", "", "this list"]];
  return [h("h3", {}, "Keyboard"), h("ul", { class: "keys" }, all.map(([a, b, what]) => h("li", {}, h("kbd", {}, a), b ? [" ", h("kbd", {}, b)] : null, " ", what)))];
}

function showKeys() {
  showDetail(h("section", {}, keys()));
}

// The form.

async function compose(type, text) {
  const content = h("section", {}, h("h2", {}, "Send an event"));
  showDetail(content);
  try {
    schemas ??= await loadSchemas();
  } catch (error) {
    content.append(h("p", { class: "bad" }, `There is no form: ${error.message}`));
    return;
  }
  const place = h("div", {});
  const choice = h("select", { id: "type-to-send" }, schemas.map((each) => h("option", { value: each.event_type }, each.event_type)));
  if (schemas.some((each) => each.event_type === type)) choice.value = type;
  const show = async (given) => {
    place.replaceChildren(h("p", { class: "quiet" }, "Loading …"));
    try {
      const { schema } = schemas[choice.selectedIndex];
      const response = await fetch(schema);
      if (!response.ok) throw new Error(`${schema} answered ${response.status}`);
      const form = eventForm(await response.text());
      place.replaceChildren(form.element);
      if (given) form.useText(given);
    } catch (error) {
      place.replaceChildren(h("p", { class: "bad" }, `There is no form: ${error.message}`));
    }
  };
  choice.addEventListener("change", () => show());
  content.append(h("div", {}, h("label", { for: "type-to-send" }, "Event type"), h("div", {}, choice)), place);
  await show(text);
  choice.focus();
}

async function loadSchemas() {
  const response = await call("/schemas");
  if (response.status === 404) throw new Error("the schemas are not served. Set PULSECART_DOCS=true");
  if (!response.ok) throw new Error(`/schemas answered ${response.status}`);
  const found = (await response.json()).schemas;
  pages.docs.hidden = false;
  for (const each of found) if (!types.has(each.event_type)) addType(each.event_type);
  return found;
}

// The stream. fetch() sends credentials and the last id, which EventSource cannot.

async function connect() {
  connection?.abort();
  connection = new AbortController();
  const { signal } = connection;
  for (let failures = 0; !signal.aborted; ) {
    try {
      const response = await call("/dev/stream", { signal, headers: lastId ? { "Last-Event-ID": lastId } : {} });
      if (response.status === 401) return askForKey(await response.json());
      if (!response.ok) throw new Error((await response.json()).detail);
      failures = 0;
      setState("live", "live");
      await read(response.body);
      setState("off", "reconnecting");
    } catch (error) {
      if (signal.aborted) return;
      setState("off", error instanceof TypeError ? "reconnecting" : error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, Math.min(250 * 2 ** failures++, 2000)));
  }
}

// A page that nobody sees needs no stream, and a browser has few connections for all tabs. It misses nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) connection.abort();
  else if (state.dataset.state !== "locked") connect();
});

function askForKey(problem) {
  setState("locked", "no credentials");
  const message = key ? problem.detail : "The service authenticates its callers.";
  showDetail(signIn(message, () => {
    showWelcome();
    connect();
  }));
}

/** Reads server-sent events. */
async function read(stream) {
  let text = "";
  let searched = 0;
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let piece; !(piece = await reader.read()).done; ) {
    text += piece.value;
    let begin = 0;
    for (let end; (end = text.indexOf("\n\n", Math.max(begin, searched - 1))) >= 0; begin = end + 2) receive(text.slice(begin, end));
    text = text.slice(begin);
    searched = text.length;
  }
}

function receive(block) {
  const event = { data: [] };
  for (const line of block.split("\n")) {
    const at = line.indexOf(": ");
    if (line.startsWith("data: ")) event.data.push(line.slice(6));
    else if (at > 0) event[line.slice(0, at)] = line.slice(at + 2);
  }
  if (event.id) take(event.event, event.id, event.data.join("\n"));
}

// Keyboard.

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target.matches("input, textarea, select");
  if (event.key === "Escape") {
    event.target.blur();
    showList();
    return;
  }
  if (isTyping) return;
  const actions = {
    j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1),
    n: () => compose(), p: () => pause(!paused), "?": showKeys,
    "/": () => { showList(); filters.user.focus(); },
  };
  const isInDetail = event.key.startsWith("Arrow") && detail.contains(event.target);
  if (!isInDetail && Object.hasOwn(actions, event.key)) {
    event.preventDefault();
    actions[event.key]();
  }
});

function move(step) {
  const shown = entries.filter((entry) => !entry.notice && matches(entry));
  const at = shown.indexOf(selected);
  const next = shown[Math.max(0, Math.min(shown.length - 1, at + step))];
  if (!next) return;
  select(next);
  next.row?.focus({ preventScroll: true });
}

for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
  if (!Object.hasOwn(filters, name)) continue;
  if (name === "type" && !types.has(value)) addType(value);
  filters[name].value = value;
}
for (const each of Object.values(filters)) each.addEventListener(each.matches("select") ? "change" : "input", filtersChanged);
showWelcome();
refresh();
loadSchemas().then((found) => (schemas = found), () => {});
connect();
