// The status page. Everything from a record goes through textContent or an attribute; no markup is ever made of it.
"use strict";

const STATES = {
  stopped: "stopped", attention: "needs attention", waiting: "waits for evidence", good: "goes on", gone: "retired",
};
const SIGNS = { stopped: "✗", attention: "!", waiting: "…", good: "✓", gone: "–" };
const ORDER = Object.keys(STATES);
const TONES = {
  promote: "good", pass: "good", open: "good", restore: "good", start: "good", rearm: "gone", resume: "gone", hold: "waiting",
  freeze: "attention", degrade: "attention", fallback: "attention", pause: "attention",
};
const main = document.getElementById("main");
const link = document.getElementById("link");
const news = document.getElementById("news");

const units = new Map();
const opened = new Set();
const words = new Map();
const WORDS_MAX = 200;
let skew = 0, away = null, notShown = 0, connected = false, charts = [], drawn = null, asked = 0;

// ---- Elements ----

function el(tag, attributes, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) found.setAttribute(name, value === true ? "" : value);
  }
  found.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined));
  return found;
}

// Marks that turn the direction of text or cannot be seen are spelled out.
function plain(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, (one) => `\\u${one.codePointAt(0).toString(16).padStart(4, "0")}`);
}

function percent(share) {
  return share === null || share === undefined ? "?" : `${Number((100 * share).toPrecision(4))} %`;
}

function number(value, unit = "") {
  return value === null || value === undefined ? "?" : `${Number(value.toPrecision(4)).toLocaleString("en")}${unit}`;
}

function when(ms) {
  return new Date(ms).toISOString().replace("T", " ").replace(/(\.000)?Z$/, " UTC");
}

function age(ms) {
  const seconds = Math.max(0, (Date.now() - skew - ms) / 1000);
  for (const [name, length, most] of [["s", 1, 90], ["min", 60, 90], ["h", 3600, 48]]) {
    if (seconds < length * most) return `${Math.round(seconds / length)} ${name}`;
  }
  return `${Math.round(seconds / 86400)} d`;
}

function key(unit) { return JSON.stringify([unit.flag, unit.region]); }

function route(unit) { return `#/${encodeURIComponent(unit.flag)}/${encodeURIComponent(unit.region)}`; }

function chosen() {
  const found = /^#\/([^/]*)\/([^/]*)$/.exec(location.hash);
  try {
    return found && { flag: decodeURIComponent(found[1]), region: decodeURIComponent(found[2]) };
  } catch { return null; }
}

function title(unit) { return plain(unit.flag) + (unit.region ? ` in ${plain(unit.region)}` : ""); }

function bar(weight) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  for (const [name, value] of Object.entries({ viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" })) {
    picture.setAttribute(name, value);
  }
  for (const [kind, width] of [["track", 100], ["part", 100 * weight]]) {
    const part = document.createElementNS(space, "rect");
    for (const [name, value] of Object.entries({ class: kind, width, height: 10, rx: 2 })) part.setAttribute(name, value);
    picture.append(part);
  }
  return picture;
}

// ---- All units ----

function sorted() {
  const rank = (unit) => ORDER.indexOf(unit.state);
  return [...units.values()].sort((a, b) => rank(a) - rank(b) || (a.flag < b.flag ? -1 : a.flag > b.flag ? 1 : a.region < b.region ? -1 : 1));
}

function line(unit) {
  return el("li", {}, el("a", { href: route(unit), class: unit.state, "data-key": key(unit) },
    el("span", { class: "sign", "aria-hidden": "true" }, unit.sign),
    el("b", {}, plain(unit.flag), el("span", {}, plain(unit.region || "no region"))),
    el("span", { class: "words" }, el("span", { class: "unseen" }, `${STATES[unit.state]}: `), plain(unit.words)),
    el("span", { class: "weight" }, bar(unit.canary_weight), el("span", {}, el("span", { class: "unseen" }, "canary "), percent(unit.canary_weight))),
    el("span", { class: "age", "data-age": unit.written_at }, age(unit.written_at))));
}

function drawList() {
  document.title = "Tidegate status";
  const counts = ORDER.map((state) => [state, [...units.values()].filter((unit) => unit.state === state).length]);
  return [
    el("h1", { tabindex: "-1" }, units.size === 1 ? "1 unit" : `${units.size} units`),
    el("ul", { class: "counts" }, counts.filter(([, count]) => count).map(([state, count]) =>
      el("li", { class: state }, `${SIGNS[state]} ${count} ${STATES[state]}`))),
    units.size ? null : el("p", { class: "faint" }, connected ? "No decision has been written yet." : "Waiting for the first answer."),
    el("ul", { class: "units" }, sorted().map(line)),
    notShown ? el("p", { class: "faint" }, `${notShown} or more further units are not shown: this page keeps 1,000.`) : null,
  ];
}

// ---- One unit ----

function facts(unit) {
  const stage = unit.stage;
  const rows = [
    ["Canary", `${percent(unit.canary_weight)} of the traffic`],
    ["Stage", `${stage.index}, at ${percent(stage.canary_weight)}${stage.next_canary_weight === null ? ", no stage follows" : `, then ${percent(stage.next_canary_weight)}`}`],
    ["Kind", plain(unit.kind).replaceAll("_", " ")],
    ["Last decision", el("span", {}, `${plain(unit.verdict)}, ${when(unit.decided_at)}, `, el("span", { "data-age": unit.written_at }, age(unit.written_at)), " old")],
    ["Decision id", el("code", {}, plain(unit.decision_id))],
    ["Manifest", el("code", {}, plain(unit.manifest_hash))],
  ];
  return el("dl", {}, rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function said(told) {
  return el("div", {}, el("p", { class: "faint" }, plain(told.window)), told.sections.map((section) => [
    el("h3", {}, section.title),
    el("ul", {}, section.remarks.map((remark) => el("li", {}, plain(remark.text),
      remark.details.length ? el("ul", {}, remark.details.map((one) => el("li", {}, plain(one)))) : null))),
  ]));
}

function gates(unit) {
  const head = ["gate", "observed", "may still be", "limit", "to rule out", "canary rows", "baseline rows", "status"];
  const rows = unit.gates.map((row) => el("tr", {},
    el("th", { scope: "row" }, plain(row.gate)),
    [row.observed, row.bound, row.limit, row.rule_out].map((one) => el("td", { class: "n" }, plain(one))),
    [row.canary_rows, row.baseline_rows].map((one) => el("td", { class: "n" }, one === null ? "" : one.toLocaleString("en"))),
    el("td", { class: `status ${row.status}` }, `${row.status.replaceAll("_", " ")} ${row.along}`)));
  if (!rows.length) return el("p", { class: "faint" }, "This decision judged no window.");
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of gates", "data-key": "gates" },
    el("table", {}, el("caption", {}, `As decided ${when(unit.because_at)}`),
      el("thead", {}, el("tr", {}, head.map((name, at) => el("th", { scope: "col", class: at && at < 7 ? "n" : null }, name)))),
      el("tbody", {}, rows)));
}

function problems(unit) {
  if (!unit.problems.length) return el("p", { class: "faint" }, "None: the evidence of this decision is sound.");
  return el("ul", {}, unit.problems.map((one) => el("li", {}, plain(one.words))));
}

function decisions(unit) {
  return el("ol", { class: "decisions" }, unit.decisions.map((one) => {
    const id = one.decision_id;
    const body = el("div", {});
    const found = el("details", { "data-id": id, open: opened.has(id) },
      el("summary", { "data-key": id }, el("span", { class: `verdict ${TONES[one.verdict] ?? "stopped"}` }, `${one.sign} ${plain(one.verdict)}`),
        ` ${when(one.decided_at)}, canary ${percent(one.stage.canary_weight)}: ${one.reasons.map(plain).join(", ")}`), body);
    found.addEventListener("toggle", () => {
      if (found.open) { opened.add(id); explain(id, body); } else opened.delete(id);
    });
    if (opened.has(id)) explain(id, body);
    return el("li", {}, found);
  }));
}

async function explain(id, body) {
  if (!words.has(id)) {
    body.replaceChildren(el("p", { class: "faint" }, "…"));
    const answer = await ask(`api/decisions/${encodeURIComponent(id)}`);
    words.set(id, answer.words ? answer.words : { window: answer.error, sections: [] });
    if (words.size > WORDS_MAX) words.delete(words.keys().next().value);
  }
  body.replaceChildren(said(words.get(id)), el("p", { class: "faint" }, el("code", {}, plain(id))));
}

// ---- Charts ----

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(); }

function numbers(caption, columns, rows) {
  return el("details", { "data-id": caption, open: opened.has(caption), class: "numbers" },
    el("summary", { "data-key": caption }, "The numbers"),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
      el("table", {}, el("caption", {}, caption),
        el("thead", {}, el("tr", {}, columns.map((name, at) => el("th", { scope: "col", class: at ? "n" : null }, name)))),
        el("tbody", {}, rows.map((row) => el("tr", {}, row.map((value, at) => at ? el("td", { class: "n" }, value) : el("th", { scope: "row" }, value))))))));
}

const DASHES = { "": "solid", "6,4": "dashed", "2,3": "dotted" };

// Times of day, with the date where it changes; seconds where marks stand that close.
function times(_, marks, __, ___, step) {
  let day = "";
  return marks.map((at) => {
    const [date, time] = new Date(at * 1e3).toISOString().split("T");
    const shown = step >= 86400 ? date : time.slice(0, step < 60 ? 8 : 5) + (date === day ? "" : `\n${date}`);
    day = date;
    return shown;
  });
}

function chart(label, data, series, show, options = {}) {
  const place = el("div", { role: "img", "aria-label": label, class: "chart" });
  const axis = { stroke: colour("faint"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 }, font: "12px system-ui, sans-serif" };
  const draw = () => {
    const width = Math.max(240, place.clientWidth);
    const plot = new uPlot({
      width, height: 220, tzDate: (at) => uPlot.tzDate(new Date(at * 1e3), "Etc/UTC"),
      scales: { y: options.scale ?? {} }, cursor: { drag: { x: false, y: false } },
      legend: { markers: { dash: (_, at) => DASHES[(series[at - 1]?.dash ?? []).join()] } },
      axes: [{ ...axis, space: 84, values: times }, { ...axis, size: 62, values: (_, values) => values.map((value) => show(value)) }],
      series: [{ label: "UTC", value: (_, at) => at === null ? "–" : when(at * 1e3).slice(0, 16) },
        ...series.map((one) => ({ spanGaps: true, value: (_, value) => value === null ? "–" : show(value), ...one }))],
    }, data, place);
    charts.push({ plot, place });
  };
  return { place, draw };
}

function ramp(unit) {
  const steps = unit.ramp;
  if (!steps.length) return { place: el("p", { class: "faint" }, "No weight is known yet."), draw() {}, numbers: null };
  const last = Math.max(unit.decided_at, steps.at(-1).at) + 1;
  const x = [...steps.map((step) => step.at), last].map((at) => at / 1000);
  const y = [...steps.map((step) => step.canary_weight), steps.at(-1).canary_weight];
  const label = `The canary's weight over time: ${steps.map((step) => percent(step.canary_weight)).join(", ")}`;
  const made = chart(label, [x, y], [{ label: "canary", stroke: colour("canary"), fill: colour("fill"), width: 2, paths: uPlot.paths.stepped({ align: 1 }) }], percent,
    { scale: { range: [0, 1] } });
  const table = numbers("The canary's weight over time", ["from", "canary"], steps.map((step) => [when(step.at), percent(step.canary_weight)]));
  return { ...made, numbers: table };
}

function arms(unit, what, name, show) {
  const seen = unit.series, x = seen.at.map((at) => at / 1000);
  const columns = ["canary", "baseline"].flatMap((arm) => ["p50", "p95"].map((part) => [arm, part, seen[arm][`${name}_${part}`]]));
  if (!columns.some(([, , values]) => values.some((value) => value !== null))) {
    return { place: el("p", { class: "faint" }, `No decision that is kept here knows ${what}.`), draw() {}, numbers: null };
  }
  const styles = {
    canary: { p50: [colour("canary"), []], p95: [colour("canary-high"), []] },
    baseline: { p50: [colour("baseline"), [6, 4]], p95: [colour("baseline"), [2, 3]] },
  };
  const series = columns.map(([arm, part]) => ({
    label: `${arm} ${part === "p50" ? "median" : "p95"}`, stroke: styles[arm][part][0], dash: styles[arm][part][1], width: 2, points: { size: 6 },
  }));
  const made = chart(`${what} of both arms, median and 95th percentile, at each decision`, [x, ...columns.map(([, , values]) => values)], series, show);
  const rows = seen.at.map((at, row) => [when(at), ...columns.map(([, , values]) => show(values[row]))]);
  return { ...made, numbers: numbers(`${what} at each decision`, ["decided", ...series.map((one) => one.label)], rows) };
}

function drawUnit(unit) {
  document.title = `${unit.sign} ${title(unit)}: Tidegate status`;
  const weight = ramp(unit);
  const drift = arms(unit, "ΔS", "delta_s", (value) => number(value));
  const latency = arms(unit, "latency", "latency", (value) => number(value, " ms"));
  const view = [
    el("p", {}, el("a", { href: "#", "data-key": "back" }, "← All units")),
    el("h1", { tabindex: "-1" }, title(unit)),
    el("p", { class: `state ${unit.state}` }, `${unit.sign} ${plain(unit.words)}`),
    el("section", { "aria-labelledby": "why" }, el("h2", { id: "why" }, "What was decided, and why"), el("p", {}, el("b", {}, plain(unit.because.headline))), said(unit.because), facts(unit)),
    el("section", { "aria-labelledby": "ramp" }, el("h2", { id: "ramp" }, "Ramp"), weight.place, weight.numbers),
    el("section", { "aria-labelledby": "gates" }, el("h2", { id: "gates" }, "Gates"), gates(unit)),
    el("section", { "aria-labelledby": "problems" }, el("h2", { id: "problems" }, "Evidence problems"), problems(unit)),
    el("div", { class: "two" },
      el("section", { "aria-labelledby": "drift" }, el("h2", { id: "drift" }, "ΔS of both arms"), drift.place, drift.numbers),
      el("section", { "aria-labelledby": "latency" }, el("h2", { id: "latency" }, "Latency of both arms"), latency.place, latency.numbers)),
    el("p", { class: "faint" }, "Median and 95th percentile as each decision judged them: of its window, or of the stage's evidence so far. Whole distributions stay in the workers' checkpoints; a decision carries these two points of them."),
    el("section", { "aria-labelledby": "decisions" }, el("h2", { id: "decisions" }, "Decisions, newest first"), decisions(unit)),
  ];
  return { view, draw: () => [weight, drift, latency].forEach((one) => one.draw()) };
}

// ---- Keeping up ----

async function ask(path) {
  try {
    const answer = await fetch(path);
    return await answer.json();
  } catch { return { error: "the server does not answer" }; }
}

function forget() {
  charts.forEach(({ plot }) => plot.destroy());
  charts = [];
}

async function draw(moved = false) {
  const unit = chosen(), turn = ++asked;
  const focused = document.activeElement?.dataset?.key;
  if (!unit) {
    forget();
    drawn = null;
    main.replaceChildren(...drawList().filter(Boolean));
  } else {
    const found = await ask(`api/units/${encodeURIComponent(unit.flag)}/${encodeURIComponent(unit.region)}`);
    if (turn !== asked) return;
    forget();
    if (found.error) {
      main.replaceChildren(el("p", {}, el("a", { href: "#" }, "← All units")), el("h1", { tabindex: "-1" }, title(unit)), el("p", {}, found.error));
    } else {
      drawn = found;
      const { view, draw: charts } = drawUnit(found);
      main.replaceChildren(...view);
      charts();
      main.querySelectorAll("details.numbers").forEach((one) => one.addEventListener("toggle", () => one.open ? opened.add(one.dataset.id) : opened.delete(one.dataset.id)));
    }
  }
  if (moved) {
    scrollTo(0, 0);
    main.querySelector("h1")?.focus();
  } else if (focused) {
    [...main.querySelectorAll("[data-key]")].find((one) => one.dataset.key === focused)?.focus({ preventScroll: true });
  }
}

function status() {
  const old = away !== null ? `broker away since ${when(away)}: what is shown is from before` : null;
  link.textContent = connected ? old ?? "Live" : "Connection lost, trying again; what is shown is from before";
  link.className = connected && !old ? "" : "lost";
}

function take(line) {
  const before = units.get(key(line));
  units.set(key(line), line);
  if (before && (before.state !== line.state || before.verdict !== line.verdict)) news.textContent = `${title(line)}: ${plain(line.words)}`;
  return line;
}

let waiting = null;
function soon() {
  // Many changes at once are drawn once.
  waiting ??= setTimeout(() => { waiting = null; draw(); }, 250);
}

function listen() {
  const stream = new EventSource("api/events");
  stream.addEventListener("units", (event) => {
    const all = JSON.parse(event.data);
    skew = Date.now() - all.now;
    connected = true;
    away = all.broker_away_since;
    notShown = all.not_shown;
    units.clear();
    all.units.forEach((line) => units.set(key(line), line));
    status();
    soon();
  });
  stream.addEventListener("unit", (event) => {
    const line = take(JSON.parse(event.data)), unit = chosen();
    if (!unit || key(unit) === key(line)) soon();
  });
  stream.addEventListener("broker", (event) => { away = JSON.parse(event.data).broker_away_since; status(); });
  stream.addEventListener("error", () => {
    connected = false;
    status();
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  });
}

addEventListener("hashchange", () => draw(true));
addEventListener("resize", () => charts.forEach(({ plot, place }) => plot.setSize({ width: Math.max(240, place.clientWidth), height: 220 })));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
setInterval(() => document.querySelectorAll("[data-age]").forEach((one) => { one.textContent = age(Number(one.dataset.age)); }), 10000);
draw();
listen();
