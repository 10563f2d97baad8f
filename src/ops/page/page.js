// Shows what /page/events sends: all of it at first ("whole"), and then what has changed ("change").
//
// Names come from the cluster: they are set as text, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);

/** What was sent: `head`, `kinds` by name and Lease, `lanes` by Lease. */
let shown = null;
/** A moment of the replica's process, in its milliseconds, and when it came by the clock of this page. */
let clock = { at: 0, came: 0 };
/** When something came last; the page is out of date if that is long ago. */
let heard = null;

const LATE = 12_000;
const ROWS = 200;

const now = () => clock.at + (performance.now() - clock.came);
const timeOfDay = (moment) => new Date(Date.now() + (moment - now()));

// Elements

function element(tag, classes, ...children) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Puts these children there, and leaves alone those that stand right: they keep their selection. */
function place(parent, children) {
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

/** The rows of a table by their keys; a row is made anew when what it says has changed. */
function keyed(parent) {
  const known = new Map();
  return (items) => {
    const rows = items.map(({ key, says, make }) => {
      const row = known.get(key);
      const text = JSON.stringify(says);
      if (row?.text === text) return row.node;
      const node = make();
      known.set(key, { text, node });
      return node;
    });
    const keys = new Set(items.map((item) => item.key));
    for (const key of known.keys()) if (!keys.has(key)) known.delete(key);
    place(parent, rows);
  };
}

// Words

function duration(milliseconds) {
  const seconds = Math.max(0, milliseconds) / 1000;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  return span(milliseconds);
}

/** As `duration`, without what would change every moment. */
function span(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 10) return `${minutes} min ${seconds % 60} s`;
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const number = (value) => value.toLocaleString("en-US", { maximumFractionDigits: value < 10 ? 2 : 0 });
const memory = (bytes) => `${number(Math.round(bytes / (1 << 20)))} MiB`;
const counted = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;
const clockTime = (date, seconds) =>
  date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", ...(seconds && { second: "2-digit" }), hour12: false });
const podOf = (identity) => identity.replace(/_[^_]*$/, "");
const short = (kind) => kind.split(".", 1)[0] || kind;
/** Of a Pod of a ReplicaSet what no other Pod of it has. */
const shortPod = (pod) => pod.match(/^.+-([a-z0-9]{5})$/)?.[1] ?? pod;

const HANDOVERS = new Set(["Stopping", "Balance", "HandedOver", "Failed", "Unable", "Released"]);
const BEGINNINGS = new Set(["Created", "Found"]);
/** How a takeover came about: from hand to hand, otherwise, or without one before it. */
function sort(reason) {
  if (HANDOVERS.has(reason)) return "handover";
  return BEGINNINGS.has(reason) ? "beginning" : "takeover";
}

// Replicas: each is called by a letter, and those that are there have a colour.

const letters = new Map();
const colours = new Map();

function letterOf(pod) {
  if (!letters.has(pod)) {
    let place = letters.size;
    let letter = "";
    do {
      letter = String.fromCharCode(65 + (place % 26)) + letter;
      place = Math.floor(place / 26) - 1;
    } while (place >= 0);
    letters.set(pod, letter);
  }
  return letters.get(pod);
}

function nameReplicas() {
  const there = new Set(shown.head.replicas.map((replica) => replica.pod));
  for (const pod of colours.keys()) if (!there.has(pod)) colours.delete(pod);
  for (const pod of there) {
    letterOf(pod);
    if (colours.has(pod)) continue;
    const used = [...colours.values()];
    const uses = (colour) => used.filter((other) => other === colour).length;
    const least = Math.min(...Array.from({ length: 8 }, (_, colour) => uses(colour)));
    colours.set(pod, Array.from({ length: 8 }, (_, colour) => colour).find((colour) => uses(colour) === least));
  }
}

const colourOf = (pod) => (colours.has(pod) ? `c${colours.get(pod)}` : "past");

function badge(pod) {
  const made = element("span", `badge ${colourOf(pod)}`, letterOf(pod));
  made.title = pod;
  return made;
}

function withBadge(pod, name) {
  if (!pod) return element("span", "quiet", "none");
  const made = element("span", "leader", badge(pod), element("span", "name", name));
  made.title = pod;
  return made;
}

// What needs attention

const LEVELS = { good: "●", warn: "◆", bad: "▲" };

function levelOf(kind) {
  if (kind.verdict === "NotLed") return "bad";
  return kind.verdict === "Undecided" || kind.state === "Deaf" || kind.recentFailures > 0 ? "warn" : "good";
}

const SAYS = {
  Leading: "Leading", Deaf: "Deaf", Draining: "Draining", Renewed: "Renewed", Held: "Held", Starting: "Starting",
  Silent: "Silent", Free: "Free", Blocked: "Blocked", CoolingDown: "Cooling down", ForeignHolder: "Foreign holder",
  SeveralLeaders: "Several leaders", Unknown: "Unknown",
};
const MEANS = {
  Deaf: "its leader does not hear of changes",
  Held: "its leader was not reached, and whether it renews its Lease is not seen",
  Unknown: "it has no Lease, and not every replica was reached",
  Starting: "a replica has just taken it",
  Silent: "its holder does not renew the Lease",
  Free: "no replica holds it",
  Blocked: "no replica can lead it",
  CoolingDown: "no replica holds it, and one waits after a failure",
  ForeignHolder: "what holds its Lease is no replica of this installation",
  SeveralLeaders: "more than one replica says that it leads",
};

function problems() {
  const found = [];
  const add = (level, subject, text) => found.push({ level, subject, text });
  for (const kind of Object.values(shown.kinds)) {
    const level = levelOf(kind);
    if (level === "good") continue;
    if (MEANS[kind.state] && kind.state !== "Draining") {
      const reasons = kind.reasons.map((reason) => `${reason.message} (${reason.replicas.map(letterOf).join(", ")})`);
      const since = kind.verdict === "NotLed" && kind.unledSince !== null ? ` for ${span(now() - kind.unledSince)}` : "";
      add(level, kind.kind, [`${SAYS[kind.state]}${since}: ${MEANS[kind.state]}`, ...reasons].join(". "));
    }
    if (kind.recentFailures > 0) {
      const failed = counted(kind.recentFailures, "reconciliation", "reconciliations");
      add("warn", kind.kind, `${failed} failed in the last minute`);
    }
  }
  const levels = { Ready: "", Draining: "", Terminating: "", Replaced: "", ContainerCreating: "", Pending: "" };
  for (const replica of shown.head.replicas) {
    if (replica.state in levels && !replica.reason) continue;
    const unreached = shown.head.notReached.find((line) => line.startsWith(`${replica.pod}: `));
    const why = replica.reason ?? unreached?.slice(replica.pod.length + 2);
    add("warn", replica.pod, why ? `${replica.state}: ${why}` : replica.state);
  }
  for (const line of shown.head.notReached) {
    if (!shown.head.replicas.some((replica) => line.startsWith(`${replica.pod}: `))) add("warn", "Not reached", line);
  }
  return found.sort((a, b) => (a.level === b.level ? 0 : a.level === "bad" ? -1 : 1));
}

const listProblems = keyed(byId("attention-list"));

function showAttention() {
  const all = problems();
  byId("attention").hidden = all.length === 0;
  const few = all.slice(0, 12);
  if (all.length > few.length) few.push({ level: "warn", subject: "", text: `and ${all.length - few.length} more: sort the kinds by attention` });
  listProblems(few.map((problem, index) => ({
    key: `${index}`,
    says: problem,
    make: () => {
      const glyph = element("span", `glyph ${problem.level}`, LEVELS[problem.level]);
      glyph.setAttribute("aria-hidden", "true");
      const subject = problem.subject ? element("b", "", problem.subject) : null;
      return element("li", "", glyph, element("span", "", subject, problem.subject ? " " : null, problem.text));
    },
  })));
}

// Figures

function showFigures() {
  const kinds = Object.values(shown.kinds);
  const led = kinds.filter((kind) => kind.verdict === "Led").length;
  const ready = shown.head.replicas.filter((replica) => replica.state === "Ready").length;
  const sum = (field) => kinds.reduce((all, kind) => all + (kind[field] ?? 0), 0);
  const isCounted = kinds.some((kind) => kind.rate !== null);
  const oldest = Math.min(...kinds.map((kind) => kind.oldestSince ?? Infinity));
  const notLed = kinds.some((kind) => kind.verdict === "NotLed");
  const of = (part, whole) => [`${number(part)}`, element("small", "", ` of ${number(whole)}`)];
  const figures = [
    ["Kinds led", notLed ? "bad" : led < kinds.length ? "warn" : "", of(led, kinds.length)],
    ["Replicas ready", ready < shown.head.replicas.length ? "warn" : "", of(ready, shown.head.replicas.length)],
    ["Reconciliations", "", isCounted ? [number(sum("rate")), element("small", "", " a second")] : ["–"]],
    ["Errors", sum("recentFailures") > 0 ? "warn" : "", isCounted ? [number(sum("recentFailures")), element("small", "", " a minute")] : ["–"]],
    ["Queue", "", isCounted ? [number(sum("waiting")), element("small", "", Number.isFinite(oldest) ? ` oldest ${span(now() - oldest)}` : " waiting")] : ["–"]],
  ];
  const boxes = figures.map(([name, level, value]) => element("div", level, element("dt", "", name), element("dd", "", ...value)));
  const list = byId("figures");
  if (list.textContent !== boxes.map((box) => box.textContent).join("") || figures.some(([, level], at) => list.children[at].className !== level)) {
    list.replaceChildren(...boxes);
  }
  document.title = notLed ? `${led} of ${kinds.length} kinds led: Leasehold` : `Leasehold ${shown.head.instance}`;
}

// Spread

/** What each replica holds: a Lease is one block, whatever number of kinds share it. */
function blocks() {
  const held = new Map(shown.head.replicas.map((replica) => [replica.pod, []]));
  const none = [];
  for (const [lease, lane] of Object.entries(shown.lanes)) {
    const rows = lane.kinds.map((kind) => shown.kinds[`${kind} ${lease}`]).filter(Boolean);
    const row = rows[0];
    if (!row) continue;
    const name = lane.group ?? short(row.kind);
    const block = { name, title: `${lane.kinds.join(", ")}: weight ${row.weight ?? 1}`, weight: row.weight ?? 1, draining: row.state === "Draining" };
    (held.get(row.leader) ?? none).push(block);
  }
  return { held, none };
}

function showSpread() {
  const { held, none } = blocks();
  const load = (list) => list.reduce((all, block) => all + block.weight, 0);
  const capacity = (replica) => replica.capacity ?? 1;
  const takers = shown.head.replicas.filter((replica) => replica.newest !== false && ["Ready", "NotReady", "NotReached"].includes(replica.state));
  const room = takers.reduce((all, replica) => all + capacity(replica), 0);
  const total = load([...held.values()].flat()) + load(none);
  const share = (replica) => (takers.includes(replica) && room > 0 ? (total * capacity(replica)) / room : null);
  const most = Math.max(1, load(none), ...shown.head.replicas.map((replica) => Math.max(load(held.get(replica.pod)), share(replica) ?? 0)));
  const bar = (list, colour) => {
    const made = element("div", "bar");
    for (const block of list.sort((a, b) => b.weight - a.weight || a.name.localeCompare(b.name))) {
      const width = (100 * block.weight) / most;
      const node = element("span", `block ${colour} ${width < 3 ? "tight" : ""} ${block.draining ? "draining" : ""}`, width < 3 ? "" : block.name);
      node.title = block.title;
      node.style.flex = `0 1 ${width}%`;
      made.append(node);
    }
    return made;
  };
  const rows = shown.head.replicas.map((replica) => {
    const mine = held.get(replica.pod);
    const generation = replica.generation ? element("span", replica.newest === false ? "chip old" : "chip", replica.generation + (replica.newest === false ? " old" : "")) : null;
    const who = element("div", "who", badge(replica.pod), element("span", "name", replica.pod), element("span", "sub", element("span", "", replica.state), generation));
    const made = bar(mine, colourOf(replica.pod));
    const even = share(replica);
    if (even !== null) {
      const mark = element("i", "even");
      mark.style.left = `calc(${(100 * even) / most}% - 1px)`;
      made.append(mark);
    }
    return element("div", "holder", who, made, element("span", "load", capacity(replica) === 1 ? `load ${number(load(mine))}` : `load ${number(load(mine))} / ${capacity(replica)}`));
  });
  if (none.length > 0) {
    const sub = element("span", "sub", counted(none.length, "kind", "kinds"));
    rows.push(element("div", "holder none", element("div", "who", element("span", "badge", "–"), element("span", "name", "no leader"), sub), bar(none, ""), element("span", "load", `load ${number(load(none))}`)));
  }
  const picture = byId("spread-picture");
  const text = rows.map((row) => row.textContent).join("|");
  if (picture.dataset.text !== text + [...colours].join()) {
    picture.dataset.text = text + [...colours].join();
    picture.replaceChildren(...rows);
  }
  const says = shown.head.replicas.map((replica) => {
    const names = held.get(replica.pod).map((block) => block.name);
    return `${letterOf(replica.pod)}, ${replica.pod}, ${replica.state}: ${names.length > 0 ? names.join(", ") : "no kind"}`;
  });
  const label = `What each replica holds. ${says.join(". ")}.${none.length > 0 ? ` Without a leader: ${none.map((block) => block.name).join(", ")}.` : ""}`;
  if (picture.getAttribute("aria-label") !== label) picture.setAttribute("aria-label", label);
  const waits = shown.head.waits.length > 0 ? ` No kind is moved for balance now: ${shown.head.waits.join("; ")}.` : "";
  setText(byId("spread-note"), `Width is weight; the dotted line is an even share.${waits}`);
}

// Timeline

const range = () => Number(document.querySelector('input[name="range"]:checked').value);

function laneName(lane) {
  if (lane.group) return `${lane.group} (${counted(lane.kinds.length, "kind", "kinds")})`;
  const isAlone = Object.values(shown.lanes).filter((other) => short(other.kinds[0]) === short(lane.kinds[0])).length === 1;
  return isAlone ? short(lane.kinds[0]) : lane.kinds[0];
}

/** The parts of a lane between two moments: who led, when no replica did, and what is not known. */
function parts(lease, lane, from, to) {
  const all = [];
  const add = (kind, start, end, pod) => {
    if (end > from && start < to) all.push({ kind, start: Math.max(start, from), end: Math.min(end, to), pod });
  };
  const row = shown.kinds[`${lane.kinds[0]} ${lease}`];
  const steps = lane.takeovers;
  const known = shown.head.seenSince ?? to;
  const begin = (step) => step.at - (step.gap ?? 0);
  if (steps.length === 0) {
    const since = row?.since ?? null;
    if (row?.leader) add("seg", since ?? Math.min(known, to), to, row.leader);
    add("unknown", from, row?.leader ? since ?? known : to);
    return all;
  }
  const first = steps[0];
  if (first.from) {
    add("seg", known, begin(first), podOf(first.from));
    add("unknown", from, Math.min(known, begin(first)));
  } else {
    // It was free, or there was no Lease, or that is not known.
    add("unknown", from, first.reason === "Found" ? first.at : Math.min(known, begin(first)));
  }
  steps.forEach((step, index) => {
    const next = steps[index + 1];
    if (step.gap !== null) add("gap", begin(step), step.at);
    const unled = !next && row && row.verdict === "NotLed" && row.unledSince !== null ? row.unledSince : to;
    add("seg", step.at, next ? begin(next) : Math.max(step.at, unled), podOf(step.to));
    if (!next && unled < to) add("gap", unled, to);
  });
  return all;
}

const laneNodes = new Map();
let drawn = { at: -Infinity, range: 0 };

function showTimeline(anew) {
  const length = range();
  // As fine as a screen shows it.
  if (!anew && drawn.range === length && now() - drawn.at < length / 900) return;
  drawn = { at: now(), range: length };
  const to = now();
  const from = to - length;
  const at = (moment) => (100 * (moment - from)) / length;
  const names = Object.entries(shown.lanes).map(([lease, lane]) => [laneName(lane), lease, lane]);
  names.sort((a, b) => a[0].localeCompare(b[0]));
  const nodes = names.map(([name, lease, lane]) => {
    let node = laneNodes.get(lease);
    if (!node) {
      node = element("div", "lane", element("span"), element("div", "track"));
      laneNodes.set(lease, node);
    }
    setText(node.firstChild, name);
    node.firstChild.title = lane.kinds.join(", ");
    const pieces = parts(lease, lane, from, to).map((part) => {
      const width = at(part.end) - at(part.start);
      const piece = element("i", part.kind === "seg" ? `seg ${colourOf(part.pod)}` : part.kind);
      if (part.kind === "seg" && width > 2.5) piece.textContent = letterOf(part.pod);
      else piece.classList.add("tight");
      piece.style.left = `${at(part.start)}%`;
      piece.style.width = `${width}%`;
      const what = { seg: part.pod && `${letterOf(part.pod)}: ${part.pod}`, gap: `no replica led for ${duration(part.end - part.start)}`, unknown: "not known" };
      piece.title = what[part.kind];
      return piece;
    });
    for (const step of lane.takeovers) {
      const how = sort(step.reason);
      if (step.at < from || how === "beginning") continue;
      const mark = element("i", `mark ${how}`);
      mark.style.left = `${at(step.at)}%`;
      mark.title = `${clockTime(timeOfDay(step.at), true)} ${step.reason}: ${step.message}`;
      pieces.push(mark);
    }
    node.lastChild.replaceChildren(...pieces);
    return node;
  });
  for (const lease of laneNodes.keys()) if (!(lease in shown.lanes)) laneNodes.delete(lease);
  place(byId("lanes"), nodes);
  showAxis(from, to, length, at);
  describeTimeline(from);
}

function showAxis(from, to, length, at) {
  const step = { 900000: 180_000, 3600000: 600_000 }[length] ?? 3_600_000;
  // Whole minutes of the day, by the clock of this page.
  const shift = Date.now() - now() - new Date().getTimezoneOffset() * 60_000;
  const ticks = [];
  for (let moment = Math.ceil((from + shift) / step) * step - shift; moment <= to; moment += step) {
    if (at(moment) < 2 || at(moment) > 98) continue;
    const tick = element("span", ticks.length % 2 === 1 ? "tick minor" : "tick", clockTime(timeOfDay(moment + 500)));
    tick.style.left = `${at(moment)}%`;
    ticks.push(tick);
  }
  byId("axis").replaceChildren(...ticks);
}

/** Each takeover since then, the last one first. */
function takeovers(from) {
  const all = Object.values(shown.lanes).flatMap((lane) =>
    lane.takeovers.filter((step) => step.at >= from).map((step) => ({ ...step, name: lane.group ?? lane.kinds[0] })));
  return all.sort((a, b) => b.at - a.at);
}

const listTakeovers = keyed(byId("takeovers-body"));

function cell(tag, label, classes, ...children) {
  const made = element(tag, classes, ...children);
  if (tag === "th") made.scope = "row";
  else made.dataset.label = label;
  if (made.textContent === "" || made.textContent === "–") made.classList.add("empty");
  return made;
}

function describeTimeline(from) {
  const all = takeovers(from);
  const of = (how) => all.filter((step) => sort(step.reason) === how).length;
  const longest = Math.max(0, ...all.map((step) => step.gap ?? 0));
  const last = document.querySelector('input[name="range"]:checked + span').textContent;
  const says = [counted(of("handover"), "handover", "handovers"), counted(of("takeover"), "takeover without one", "takeovers without one")];
  if (longest > 0) says.push(`at the longest ${duration(longest)} without a leader`);
  const label = `Who led each of ${counted(Object.keys(shown.lanes).length, "Lease", "Leases")} over the last ${last}: ${says.join(", ")}. The table below has each takeover.`;
  const picture = byId("timeline-picture");
  if (picture.getAttribute("aria-label") !== label) picture.setAttribute("aria-label", label);
  const known = shown.head.seenSince;
  const since = known !== null && known > from ? ` The replicas that answer know all of it since ${clockTime(timeOfDay(known), true)}.` : "";
  setText(byId("timeline-note"), `Last ${last}: ${says.join(", ")}.${since}`);
  setText(byId("takeovers-summary"), `The timeline as a table (${counted(all.length, "takeover", "takeovers")})`);
  if (!byId("takeovers").open) return;
  listTakeovers(all.slice(0, ROWS).map((step) => ({
    key: `${step.name} ${step.at} ${step.to}`,
    says: [step, step.from && colourOf(podOf(step.from)), colourOf(podOf(step.to))],
    make: () => element("tr", "",
      cell("td", "When", "", clockTime(timeOfDay(step.at), true)),
      cell("td", "Kind", "", step.name),
      cell("td", "From", "", step.from ? withBadge(podOf(step.from), shortPod(podOf(step.from))) : "–"),
      cell("td", "To", "", withBadge(podOf(step.to), shortPod(podOf(step.to)))),
      cell("td", "Why", "wide", step.reason, element("span", "why", step.message)),
      cell("td", "No leader for", "number", step.gap === null ? "–" : duration(step.gap))),
  })));
}

// Kinds

const listKinds = keyed(byId("kinds-body"));
const RANK = { bad: 0, warn: 1, good: 2 };
const ORDERS = {
  attention: (a, b) => RANK[levelOf(a)] - RANK[levelOf(b)],
  name: () => 0,
  leader: (a, b) => (a.leader ?? "").localeCompare(b.leader ?? ""),
  since: (a, b) => (b.since ?? -Infinity) - (a.since ?? -Infinity) || 0,
  rate: (a, b) => (b.rate ?? -1) - (a.rate ?? -1),
  errors: (a, b) => (b.recentFailures ?? -1) - (a.recentFailures ?? -1),
  queue: (a, b) => (b.waiting ?? -1) - (a.waiting ?? -1),
};

function showKinds() {
  const wanted = byId("filter").value.trim().toLowerCase();
  const all = Object.values(shown.kinds).sort((a, b) => a.kind.localeCompare(b.kind)).sort(ORDERS[byId("sort").value]);
  const rows = all.filter((kind) =>
    [kind.kind, kind.state, SAYS[kind.state], kind.leader ?? "", kind.group ?? ""].some((text) => text.toLowerCase().includes(wanted)));
  listKinds(rows.map((kind) => {
    const last = shown.lanes[kind.lease]?.takeovers.at(-1);
    const since = kind.verdict === "NotLed" && kind.unledSince !== null ? `none for ${span(now() - kind.unledSince)}` : kind.since === null ? "–" : span(now() - kind.since);
    const before = last && `${span(now() - last.at)} ago`;
    const age = kind.oldestSince === null ? "" : `oldest ${span(now() - kind.oldestSince)}`;
    return {
      key: `${kind.kind} ${kind.lease}`,
      says: [kind, since, before, age, last, kind.leader && colourOf(kind.leader)],
      make: () => kindRow(kind, since, last, before, age),
    };
  }));
  setText(byId("kinds-note"), wanted ? `${number(rows.length)} of ${counted(all.length, "kind", "kinds")}` : "");
}

function kindRow(kind, since, last, before, age) {
  const level = levelOf(kind);
  const glyph = element("span", "glyph", LEVELS[level]);
  glyph.setAttribute("aria-hidden", "true");
  const [first, ...rest] = kind.kind.split(".");
  const group = kind.group ? element("span", "why", `group ${kind.group}`) : null;
  const standby = kind.standby.length > 0 ? element("span", "why", "filled cache: ", ...kind.standby.map(badge)) : null;
  const why = kind.reasons.map((reason) => element("span", "why", `${reason.message} (${reason.replicas.map(letterOf).join(", ")})`));
  const value = (count) => (count === null ? "–" : number(count));
  const takeover = last ? [before, element("span", "why", `${last.reason}${last.gap === null ? "" : `, no leader for ${duration(last.gap)}`}`)] : ["–"];
  return element("tr", level,
    cell("th", "Kind", "wide", element("b", "", first), rest.length > 0 ? element("span", "why", rest.join(".")) : null, group),
    cell("td", "State", why.length > 0 ? "state wide" : "state", glyph, ` ${SAYS[kind.state] ?? kind.state}`, ...why),
    cell("td", "Leader", "", withBadge(kind.leader, kind.leader && shortPod(kind.leader)), standby),
    cell("td", "Since", "", since),
    cell("td", "Weight", "number", value(kind.weight)),
    cell("td", "Objects", "number", value(kind.objects)),
    cell("td", "Queue", "number", value(kind.waiting), age ? element("span", "why", age) : null),
    cell("td", "Rate", "number", kind.rate === null ? "–" : `${number(kind.rate)}/s`),
    cell("td", "Errors", "number", kind.recentFailures === null ? "–" : kind.recentFailures === 0 ? "0" : `${number(kind.recentFailures)}/min`),
    cell("td", "Last takeover", "", ...takeover));
}

// Replicas

const listReplicas = keyed(byId("replicas-body"));

function showReplicas() {
  listReplicas(shown.head.replicas.map((replica) => ({
    key: `${replica.pod} ${replica.identity}`,
    says: [replica, colourOf(replica.pod)],
    make: () => {
      const level = replica.state === "Ready" ? "good" : "warn";
      const glyph = element("span", "glyph", LEVELS[level]);
      glyph.setAttribute("aria-hidden", "true");
      const generation = replica.generation ? element("span", replica.newest === false ? "chip old" : "chip", replica.generation + (replica.newest === false ? " old" : "")) : "–";
      const load = replica.capacity === null || replica.capacity === 1 ? number(replica.load) : `${number(replica.load)} of capacity ${number(replica.capacity)}`;
      const head = cell("th", "Replica", "wide", withBadge(replica.pod, replica.pod));
      const why = replica.reason ? element("span", "why", replica.reason) : null;
      return element("tr", level, head,
        cell("td", "State", "state", glyph, ` ${replica.state}`, why),
        cell("td", "Generation", "", generation),
        cell("td", "Kinds", "number", number(replica.kinds)),
        cell("td", "Load", "number", load),
        cell("td", "Memory", "number", replica.memoryBytes === null ? "–" : memory(replica.memoryBytes)),
        cell("td", "Version", "", replica.version ?? "–"),
        cell("td", "Node", "name", replica.node ?? "–"));
    },
  })));
}

// All of it

let isDue = false;
function due(anew) {
  if (anew) drawn.at = -Infinity;
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    show();
  });
}

function show() {
  showLive();
  if (!shown) return;
  nameReplicas();
  setText(byId("where"), `${shown.head.instance} in ${shown.head.namespace}`);
  setText(byId("served"), `Shown by ${shown.head.servedBy}, version ${shown.head.version}`);
  showFigures();
  showAttention();
  showSpread();
  showTimeline(false);
  showKinds();
  showReplicas();
}

function showLive() {
  const isLive = heard !== null && performance.now() - heard < LATE;
  document.body.classList.toggle("is-live", isLive);
  document.body.classList.toggle("is-stale", heard !== null && !isLive);
  if (isLive) setText(byId("live-text"), "Live");
  else if (heard === null) setText(byId("live-text"), "Connecting");
  else setText(byId("live-text"), `Not connected: this is how it was at ${clockTime(new Date(Date.now() - (performance.now() - heard)), true)}`);
}

function hear(at) {
  heard = performance.now();
  clock = { at, came: heard };
}

function apply(into, changes) {
  for (const [key, value] of Object.entries(changes ?? {})) {
    if (value === null) delete into[key];
    else into[key] = value;
  }
}

function listen() {
  const events = new EventSource("page/events");
  events.addEventListener("whole", (event) => {
    const { at, whole } = JSON.parse(event.data);
    hear(at);
    shown = whole;
    due(true);
  });
  events.addEventListener("change", (event) => {
    const { at, changes } = JSON.parse(event.data);
    if (!shown) return;
    hear(at);
    if (changes.head) shown.head = changes.head;
    apply(shown.kinds, changes.kinds);
    apply(shown.lanes, changes.lanes);
    due(Boolean(changes.lanes || changes.head));
  });
  events.addEventListener("beat", (event) => {
    hear(JSON.parse(event.data).at);
    due(false);
  });
  events.addEventListener("error", () => {
    // The browser connects anew by itself, unless it was refused.
    if (events.readyState !== EventSource.CLOSED) return;
    events.close();
    setTimeout(listen, 5000);
  });
}

document.querySelectorAll('input[name="range"]').forEach((input) => input.addEventListener("change", () => due(true)));
byId("filter").addEventListener("input", () => due(false));
byId("sort").addEventListener("change", () => due(false));
byId("takeovers").addEventListener("toggle", () => due(true));
setInterval(() => {
  if (!document.hidden) due(false);
}, 1000);
document.addEventListener("visibilitychange", () => due(true));
listen();
