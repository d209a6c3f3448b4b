// The page at /: reads the same API as everybody, and is told of changes by /events. Whatever an agent supplies is only ever set as text.

const ROW = 44; // px, as in page.css
const LIVE = ["pending", "running", "terminating"];
const OVER = ["succeeded", "failed", "expired"];
const $ = (id) => document.getElementById(id);

/** An element with attributes, and children that are elements or text. */
function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined && value !== null) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const alive = new Map(); // id -> agent, of all that live
const over = { agents: [], next: {} }; // those that have ended, newest first, as far as they were read
let view = "alive";
let chosen = null; // id
let shown = []; // what the list has, in its order
let skew = 0; // the server's clock less ours, in ms
const off = new Set(); // states that are not wanted

// --- times -----------------------------------------------------------------------------------------------------------------------

const now = () => Date.now() + skew;

function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${String(s % 60).padStart(2, "0")}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h${String(Math.floor((s % 3600) / 60)).padStart(2, "0")}m`;
  return `${Math.floor(s / 86400)}d${Math.floor((s % 86400) / 3600)}h`;
}

const ago = (at) => `${span((now() - Date.parse(at)) / 1000)} ago`;

function clock(at) {
  const date = new Date(at);
  return `${date.toLocaleDateString(undefined, { month: "short", day: "numeric" })} ${date.toLocaleTimeString()}`;
}

// --- asking ----------------------------------------------------------------------------------------------------------------------

async function ask(path, options) {
  const answer = await fetch(path, options);
  const date = Date.parse(answer.headers.get("date"));
  // It has whole seconds only: half of one is the best guess.
  if (!Number.isNaN(date) && Math.abs(date + 500 - now()) > 1500) skew = date + 500 - Date.now();
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(problem.detail ? `${problem.detail}. ${problem.hint ?? ""}` : `The answer was ${answer.status}.`), { status: answer.status });
}

let silence;
function say(text) {
  $("said").textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => { $("said").textContent = ""; }, 6000);
}

/** Words of the search, and the labels among them, which the server looks for. */
function wanted() {
  const words = $("words").value.trim().split(/\s+/).filter(Boolean);
  return { words: words.filter((word) => !word.includes("=")).map((word) => word.toLowerCase()), labels: words.filter((word) => word.includes("=")) };
}

function matches(agent, { words, labels }) {
  const text = () => `${agent.id} ${agent.name ?? ""} ${agent.image} ${agent.command.join(" ")}`.toLowerCase();
  return !off.has(agent.state)
    && labels.every((label) => { const at = label.indexOf("="); return agent.labels[label.slice(0, at)] === label.slice(at + 1); })
    && (words.length === 0 || words.every((word) => text().includes(word)));
}

async function page(state, cursor, limit = 1000) {
  const query = new URLSearchParams({ state, limit });
  if (cursor) query.set("cursor", cursor);
  for (const label of wanted().labels) query.append("label", label);
  return (await ask(`/agents?${query}`)).json();
}

/** Reads all that live; what events say meanwhile comes after it. */
async function readAlive() {
  ready = false;
  const seen = new Map();
  for (const state of LIVE) {
    let cursor = null;
    do {
      const query = new URLSearchParams({ state, limit: 1000 });
      if (cursor) query.set("cursor", cursor);
      const { agents, next } = await (await ask(`/agents?${query}`)).json();
      for (const agent of agents) seen.set(agent.id, agent);
      cursor = next;
    } while (cursor);
  }
  alive.clear();
  for (const [id, agent] of seen) alive.set(id, agent);
  ready = true;
  for (const event of missed.splice(0)) heard(event);
  later();
}

/** Reads on among those that have ended: the next page of each state, merged as far as all of them reach. */
let reading = false;
async function readOver(anew) {
  if (reading) return;
  reading = true;
  try {
    if (anew) Object.assign(over, { agents: [], next: Object.fromEntries(OVER.filter((state) => !off.has(state)).map((state) => [state, ""])) });
    await Promise.all(Object.entries(over.next).map(async ([state, cursor]) => {
      if (cursor === null) return;
      const { agents, next } = await page(state, cursor, 200);
      over.agents.push(...agents);
      over.next[state] = next;
    }));
    over.agents.sort((a, b) => (a.id < b.id ? 1 : -1));
  } finally {
    reading = false;
  }
  later();
}

// --- hearing ---------------------------------------------------------------------------------------------------------------------

let ready = false;
const missed = [];
const unknown = new Set();

function heard(event) {
  if (!ready) { missed.push(event); return; }
  const agent = alive.get(event.agent);
  if (OVER.includes(event.state)) {
    alive.delete(event.agent);
    if (view === "ended") staleOver();
  } else if (agent) {
    Object.assign(agent, { state: event.state, reason: event.reason });
    if (event.expires_at) agent.expires_at = event.expires_at;
    if (event.host) agent.host = event.host;
    if (event.state === "running" && event.was === "pending") agent.started_at = event.at;
  } else {
    unknown.add(event.agent);
    learn();
  }
  if (event.agent === chosen) tell(chosen);
  later();
}

/** Looks at those that events named and nobody knows: one by one if they are few, else all at once. */
let learning = false;
async function learn() {
  if (learning) return;
  learning = true;
  await new Promise((done) => setTimeout(done, 150));
  try {
    while (unknown.size > 0) {
      if (unknown.size > 40) {
        unknown.clear();
        await readAlive();
      } else {
        const ids = [...unknown].slice(0, 6);
        ids.forEach((id) => unknown.delete(id));
        const agents = await Promise.all(ids.map((id) => ask(`/agents/${id}`).then((answer) => answer.json(), () => null)));
        for (const agent of agents) if (agent && LIVE.includes(agent.state)) alive.set(agent.id, agent);
        later();
      }
    }
  } catch (error) {
    say(error.message);
  } finally {
    learning = false;
  }
}

let stale;
function staleOver() {
  clearTimeout(stale);
  stale = setTimeout(() => { if (view === "ended" && $("list").scrollTop < ROW) readOver(true).catch((error) => say(error.message)); }, 700);
}

function follow() {
  const events = new EventSource("/events");
  const live = (yes, text) => { $("live").dataset.live = yes; $("live").textContent = text; };
  events.onopen = async () => {
    live("yes", "live");
    // What happens from here on is heard; what was before is read.
    await readAlive().catch((error) => say(error.message));
  };
  events.onmessage = (message) => heard(JSON.parse(message.data));
  events.addEventListener("gap", () => readAlive().catch((error) => say(error.message)));
  events.onerror = () => {
    live("no", "no connection, trying again");
    if (events.readyState === EventSource.CLOSED) setTimeout(follow, 2000);
  };
}

// --- the list --------------------------------------------------------------------------------------------------------------------

let planned = false;
/** Draws soon, however often it is asked to. */
function later() {
  if (planned) return;
  planned = true;
  setTimeout(() => { planned = false; arrange(); }, 120);
}

/** When its next deadline is; of one that waits for a place there is none. */
const due = (agent) => (agent.expires_at && agent.state !== "pending" ? Date.parse(agent.expires_at) : Infinity);

function arrange() {
  $("count-alive").textContent = alive.size > 0 ? String(alive.size) : "";
  if (view === "hosts") return;
  const want = wanted();
  if (view === "alive") {
    shown = [...alive.values()].filter((agent) => matches(agent, want));
    shown.sort((a, b) => due(a) - due(b) || (a.id < b.id ? 1 : -1));
  } else {
    // Below the shallowest page there may be others in between.
    const floor = Object.entries(over.next).filter(([, next]) => next).map(([, next]) => next).sort().at(-1) ?? "";
    shown = over.agents.filter((agent) => agent.id >= floor && matches(agent, want));
  }
  const empty = shown.length === 0 && (view === "alive" ? ready : !reading);
  $("empty").hidden = !empty;
  if (empty) {
    const narrowed = $("words").value.trim() !== "" || off.size > 0;
    $("empty").textContent = narrowed ? "Nothing here is called that, or is in these states." : view === "alive" ? "Nothing runs. Submit an agent and it appears here." : "Nothing has ended yet.";
  }
  $("space").style.height = `${shown.length * ROW}px`;
  draw();
}

function draw() {
  const list = $("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / ROW) + 9);
  $("rows").style.transform = `translateY(${first * ROW}px)`;
  const rows = [];
  for (let place = first; place < last; place += 1) rows.push(drawn(shown[place], place));
  // Rows that stay are left alone: a pointer, a selection and a screen reader may be on them.
  const box = $("rows");
  if (rows.length !== box.children.length || rows.some((one, place) => one !== box.children[place])) box.replaceChildren(...rows);
  for (const id of kept.keys()) if (!rows.includes(kept.get(id).element)) kept.delete(id);
  const active = chosen && shown.some((agent) => agent.id === chosen) ? `agent-${chosen}` : null;
  if (active) list.setAttribute("aria-activedescendant", active);
  else list.removeAttribute("aria-activedescendant");
  if (view === "ended" && last > shown.length - 20 && Object.values(over.next).some(Boolean)) readOver(false).catch((error) => say(error.message));
}

const kept = new Map(); // id -> the row that shows it, and of what it was made

function drawn(agent, place) {
  const made = JSON.stringify([agent.state, agent.name, agent.host, agent.expires_at, agent.finished_at, place, shown.length, agent.id === chosen]);
  const before = kept.get(agent.id);
  if (before?.made === made) {
    before.when.replaceWith(before.when = when(agent));
    return before.element;
  }
  const element = row(agent, place);
  kept.set(agent.id, { made, element, when: element.children[5] });
  return element;
}

function row(agent, place) {
  const labels = el("span", { class: "labels" });
  for (const [key, value] of Object.entries(agent.labels)) labels.append(el("span", { class: "label" }, `${key}=${value}`));
  const id = agent.id.slice(-12);
  const end = LIVE.includes(agent.state) && agent.state !== "terminating" ? el("button", { type: "button", tabindex: -1, "data-end": agent.id, "aria-label": `End ${agent.name ?? id}` }, "End") : "";
  return el("div", {
    class: "row", role: "option", id: `agent-${agent.id}`, "data-id": agent.id,
    "aria-selected": agent.id === chosen, "aria-posinset": place + 1, "aria-setsize": shown.length,
  },
  el("span", { class: "state", "data-state": agent.state }, agent.state),
  el("span", { class: "who" }, el("b", {}, agent.name ?? id), el("small", { class: "mono" }, agent.name ? id : agent.image)),
  el("span", { class: "mono", title: agent.command.join(" ") }, [agent.image, ...agent.command].join(" ")),
  labels,
  el("span", {}, agent.host ?? "–"),
  when(agent),
  el("span", {}, end));
}

function when(agent) {
  if (OVER.includes(agent.state)) {
    const how = agent.reason === "exited" ? `exit code ${agent.exit_code}` : (agent.reason ?? "").replaceAll("_", " ");
    return el("span", { title: clock(agent.finished_at) }, `${how} · ${ago(agent.finished_at)}`);
  }
  if (agent.state === "pending") return el("span", { class: "quiet" }, agent.run_at && Date.parse(agent.run_at) > now() ? `starts in ${span((Date.parse(agent.run_at) - now()) / 1000)}` : `waits for ${span((now() - Date.parse(agent.created_at)) / 1000)}`);
  const left = (Date.parse(agent.expires_at) - now()) / 1000;
  const whole = agent.ttl > 0 ? agent.ttl : 1;
  const bar = el("i");
  bar.style.transform = `scaleX(${Math.min(1, Math.max(0, left / whole))})`;
  const text = agent.state === "terminating" ? "ending" : left > 0 ? `in ${span(left)}` : "now";
  return el("span", { class: "until", title: `Its deadline is ${clock(agent.expires_at)}` }, el("span", { class: "bar", "data-late": left / whole < 0.1 ? "" : null }, bar), el("span", {}, text));
}

// --- one agent -------------------------------------------------------------------------------------------------------------------

/** What happened, in a sentence. */
function sentence(event, before) {
  const who = event.actor ?? "somebody";
  if (event.kind === "extended") return `Its deadline was moved to ${clock(event.expires_at)}.`;
  switch (event.state) {
    case "pending": return `${who} submitted it.`;
    case "running": return `It began to run on ${event.host ?? "a host"}, until ${clock(event.expires_at)} at the latest.`;
    case "terminating": return { ttl_expired: "Its time was up.", terminated: `${who} asked for its end.`, queue_timeout: "It had waited too long for a place." }[event.reason] ?? `It was to end: ${event.reason}.`;
    case "succeeded": return "It ended by itself, with exit code 0.";
    case "failed": return { exited: `It ended by itself, with exit code ${event.exit_code}.`, oom_killed: "It needed more memory than it may have, and was killed for it.", vanished: "Its container was removed by somebody else.", image_missing: "Its image is not on the host.", start_timeout: "It did not start in time.", host_lost: "Its host was given up for lost." }[event.reason] ?? `It failed: ${event.reason}.`;
    case "expired": return before?.reason === "queue_timeout" || !event.container_id ? "It is over, and never ran." : `It is gone${event.exit_code === null ? "" : `, with exit code ${event.exit_code}`}.`;
    default: return event.state;
  }
}

let telling = 0;
async function tell(id) {
  const turn = ++telling;
  try {
    const [agent, story] = await Promise.all([ask(`/agents/${id}`).then((a) => a.json()), ask(`/agents/${id}/events`).then((a) => a.json(), () => ({ events: [] }))]);
    const log = await ask(`/agents/${id}/logs?tail=200`).then((a) => a.text(), (error) => `(${error.message})`);
    if (turn !== telling || id !== chosen) return;
    const facts = el("dl");
    const fact = (name, value) => { if (value !== null && value !== undefined && value !== "") facts.append(el("dt", {}, name), el("dd", {}, value)); };
    fact("Id", el("span", { class: "mono" }, agent.id));
    fact("Image", el("span", { class: "mono" }, agent.image));
    fact("Command", agent.command.length > 0 ? el("span", { class: "mono" }, agent.command.join(" ")) : null);
    const labels = Object.entries(agent.labels);
    fact("Labels", labels.length > 0 ? el("span", {}, ...labels.map(([key, value]) => el("span", { class: "label" }, `${key}=${value}`))) : null);
    fact("Host", agent.host);
    fact("Time to live", span(agent.ttl));
    fact("Deadline", agent.expires_at ? clock(agent.expires_at) : null);
    fact("Grace", span(agent.grace));
    fact("Reason", agent.reason);
    fact("Exit code", agent.exit_code === null ? null : String(agent.exit_code));
    fact("Last error", agent.error);
    const happened = el("ol");
    story.events.forEach((event, place) => happened.append(el("li", {}, el("time", { datetime: event.at }, clock(event.at)), sentence(event, story.events[place - 1]))));
    const end = LIVE.includes(agent.state) && agent.state !== "terminating" ? el("button", { type: "button", class: "danger", "data-end": id }, "End it") : null;
    const stays = $("story").querySelector("pre")?.scrollTop;
    $("story").replaceChildren(
      el("div", { class: "top" }, el("h2", {}, agent.name ?? id.slice(-12)), el("button", { type: "button", id: "back", "aria-label": "Close the story" }, "Close")),
      el("p", {}, el("span", { class: "state", "data-state": agent.state }, agent.state), " "),
      ...(end ? [el("p", {}, end)] : []),
      facts,
      el("section", {}, el("h3", {}, "What happened"), story.events.length > 0 ? happened : el("p", { class: "quiet" }, "That is longer ago than is kept.")),
      el("section", {}, el("h3", {}, "Last lines of its output"), log ? el("pre", { tabindex: 0 }, log) : el("p", { class: "quiet" }, "It has written nothing.")));
    if (stays) $("story").querySelector("pre")?.scrollTo(0, stays);
    $("story").hidden = false;
  } catch (error) {
    say(error.message);
  }
}

function choose(id, open) {
  chosen = id;
  if (id && (open || !$("story").hidden)) tell(id);
  if (!id) $("story").hidden = true;
  draw();
}

async function end(id) {
  const agent = alive.get(id);
  if (!agent || agent.state === "terminating") return;
  $("sure-what").textContent = `End ${agent.name ?? id.slice(-12)} now?`;
  $("sure-how").textContent = agent.state === "pending" ? "It has not begun to run." : agent.grace > 0 ? `It is told to stop, and killed after ${span(agent.grace)}.` : "It is killed at once.";
  const sure = $("sure");
  sure.returnValue = "no";
  sure.showModal();
  await new Promise((done) => sure.addEventListener("close", done, { once: true }));
  if (sure.returnValue !== "yes") return;
  try {
    await ask(`/agents/${id}`, { method: "DELETE" });
  } catch (error) {
    say(error.message);
  }
}

// --- hosts and replicas ----------------------------------------------------------------------------------------------------------

function table(columns, rows) {
  return el("table", {},
    el("thead", {}, el("tr", {}, ...columns.map(([name]) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...(rows.length > 0 ? rows.map((one) => el("tr", {}, ...columns.map(([, cell]) => el("td", {}, cell(one) ?? "–")))) : [el("tr", {}, el("td", { colspan: columns.length, class: "quiet" }, "There is none."))])));
}

async function readPlaces() {
  if (view !== "hosts") return;
  try {
    const [{ hosts }, { replicas }] = await Promise.all([ask("/hosts").then((a) => a.json()), ask("/replicas").then((a) => a.json())]);
    const full = (host) => {
      const bar = el("i");
      bar.style.transform = `scaleX(${host.capacity > 0 ? Math.min(1, host.used / host.capacity) : 0})`;
      return el("span", { class: "until" }, el("span", { class: "bar" }, bar), el("span", {}, `${host.used} of ${host.capacity}`));
    };
    $("host-table").replaceChildren(table([
      ["Host", (h) => h.name], ["Agents", full], ["New agents", (h) => (h.cordoned ? "kept off" : "welcome")],
      ["Kept by", (h) => (h.keeper === null ? "nobody" : `replica ${h.keeper}`)], ["Seen", (h) => ago(h.seen_at)], ["Endpoint", (h) => el("span", { class: "mono" }, h.endpoint)],
    ], hosts));
    $("replica-table").replaceChildren(table([
      ["Replica", (r) => `${r.id} on ${r.name}`], ["Release", (r) => r.release], ["Alive", (r) => (r.alive ? "yes" : "no")],
      ["Hears notifications", (r) => (r.listening ? "yes" : "no, it polls")], ["Serves", (r) => r.hosts.join(", ")], ["Up since", (r) => clock(r.started_at)], ["Seen", (r) => ago(r.seen_at)],
    ], replicas.filter((r) => r.alive || now() - Date.parse(r.seen_at) < 600000)));
  } catch (error) {
    say(error.message);
  }
}

// --- the page --------------------------------------------------------------------------------------------------------------------

function show() {
  view = { "#ended": "ended", "#hosts": "hosts" }[location.hash] ?? "alive";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  $("agents").hidden = view === "hosts";
  $("search").hidden = view === "hosts";
  $("places").hidden = view !== "hosts";
  $("when").textContent = view === "ended" ? "End" : "Deadline";
  off.clear();
  $("states").replaceChildren($("states").firstElementChild, ...(view === "ended" ? OVER : LIVE).map((state) => {
    const box = el("input", { type: "checkbox" });
    box.checked = true;
    box.addEventListener("change", () => {
      if (box.checked) off.delete(state);
      else off.add(state);
      if (view === "ended") readOver(true).catch((error) => say(error.message));
      later();
    });
    return el("label", {}, box, el("span", { class: "state", "data-state": state }, state));
  }));
  choose(null);
  $("list").scrollTop = 0;
  if (view === "ended") readOver(true).catch((error) => say(error.message));
  if (view === "hosts") readPlaces();
  arrange();
}

let typed;
$("words").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(() => { $("list").scrollTop = 0; if (view === "ended") readOver(true).catch((error) => say(error.message)); arrange(); }, 200);
});
$("search").addEventListener("submit", (event) => event.preventDefault());
$("list").addEventListener("scroll", () => draw(), { passive: true });
new ResizeObserver(() => draw()).observe($("list"));
document.addEventListener("click", (event) => {
  const ends = event.target.closest("[data-end]");
  if (ends) { end(ends.dataset.end); return; }
  if (event.target.closest("#back")) { choose(null); $("list").focus(); return; }
  const one = event.target.closest("#rows .row");
  if (one) choose(one.dataset.id, true);
});
$("list").addEventListener("keydown", (event) => {
  const place = shown.findIndex((agent) => agent.id === chosen);
  const page = Math.max(1, Math.floor($("list").clientHeight / ROW) - 1);
  const to = { ArrowDown: place + 1, ArrowUp: place - 1, PageDown: place + page, PageUp: place - page, Home: 0, End: shown.length - 1 }[event.key];
  if (to !== undefined && shown.length > 0) {
    event.preventDefault();
    const next = Math.min(shown.length - 1, Math.max(0, to));
    const list = $("list");
    if (next * ROW < list.scrollTop) list.scrollTop = next * ROW;
    else if ((next + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (next + 1) * ROW - list.clientHeight;
    choose(shown[next].id);
  } else if (event.key === "Enter" && chosen) {
    choose(chosen, true);
  } else if (event.key === "Delete" && chosen) {
    end(chosen);
  }
});
document.addEventListener("keydown", (event) => {
  if ($("sure").open) return;
  if (event.key === "/" && !event.target.closest("input")) {
    event.preventDefault();
    $("words").focus();
  } else if (event.key === "Escape") {
    if (event.target.closest("input")) { $("words").value = ""; arrange(); }
    if (!$("story").hidden) choose(null);
    $("list").focus();
  }
});
addEventListener("hashchange", show);
// Deadlines run down; what is not seen is not drawn.
setInterval(() => { if (!document.hidden && view !== "hosts") draw(); }, 500);
setInterval(() => { if (!document.hidden) readPlaces(); }, 3000);
show();
follow();
