// Decisions over steps, one row for each branch: bars as high as what was computed, drift and threshold beneath.

import { action, drawn, element } from "./words.js";

const HEIGHT = { recompute: 1, warp: 0.62, reuse: 0.32 };
const MANY = 6;
const ZOOM = 1.6;
const SHOWN = 12;

// Rows that know each step's place in their columns.
export function rowsOf(branches) {
  const one = new Set(Object.keys(branches).map((name) => name.split(".")[0])).size === 1;
  return Object.entries(branches).map(([name, columns]) => ({
    name: one ? name.split(".").slice(1).join(", block ") : name,
    columns,
    at: new Map(columns.step.map((step, place) => [step, place])),
    drifts: columns.drift.some((drift) => drift !== null),
  }));
}

// The drawing, for a width in pixels and a chosen step.
export function draw(rows, steps, width, chosen) {
  const few = rows.length <= MANY;
  const bar = few ? 30 : 9;
  const svg = drawn("svg", { "aria-hidden": "true" });
  const x = (step) => (step / steps) * width;
  const tops = [];
  let y = 0;
  for (const row of rows) {
    if (few) svg.append(drawn("text", { x: 0, y: y + 11 }, row.name));
    y += few ? 18 : 2;
    tops.push(y);
    svg.append(...bars(row, x, y, bar));
    y += bar + 2;
    if (few && row.drifts) {
      svg.append(...lines(row, x, y + 4, 46, width));
      y += 56;
    }
    y += few ? 10 : 0;
  }
  svg.append(...axis(steps, x, y + 12, width));
  svg.append(drawn("rect", { class: "cursor", x: x(chosen) - 1, y: 0, width: x(1) + 1, height: y }));
  svg.setAttribute("viewBox", `0 0 ${width} ${y + 16}`);
  return svg;
}

function bars(row, x, top, full) {
  return row.columns.step.map((step, place) => {
    const kind = action(row.columns.decision[place]);
    const height = full * HEIGHT[kind];
    const gap = Math.min(1.5, x(1) / 4);
    return drawn("rect", {
      class: kind, x: x(step) + gap / 2, y: top + full - height, width: x(1) - gap, height, rx: 1.5,
    });
  });
}

function lines(row, x, top, height, width) {
  const known = (values) => values.filter((value) => value !== null);
  const limits = known(row.columns.threshold);
  const highest = Math.max(...known(row.columns.drift));
  const most = limits.length ? Math.max(...limits, Math.min(highest, Math.max(...limits) * ZOOM)) : highest;
  const y = (value) => top + height - (Math.min(value, most) / (most || 1)) * height;
  const path = (values) => {
    const points = row.columns.step
      .map((step, place) => [step, values[place]])
      .filter(([, value]) => value !== null)
      .map(([step, value]) => `${(x(step) + x(1) / 2).toFixed(1)} ${y(value).toFixed(1)}`);
    return points.length ? `M${points.join("L")}` : "";
  };
  return [
    drawn("line", { class: "axis", x1: 0, x2: width, y1: top + height, y2: top + height }),
    drawn("path", { class: "threshold", d: path(row.columns.threshold) }),
    drawn("path", { class: "drift", d: path(row.columns.drift) }),
  ];
}

function axis(steps, x, y, width) {
  const apart = [1, 2, 5, 10, 20, 50, 100].find((each) => x(each) > 34) ?? 200;
  const marks = [];
  for (let step = 0; step < steps; step += apart) {
    const anchor = x(step) > width - 20 ? "end" : "start";
    marks.push(drawn("text", { x: x(step), y, "text-anchor": anchor }, String(step + 1)));
  }
  return marks;
}

// What was decided at a step, a line for each branch.
export function told(rows, steps, step) {
  const title = element("b", {}, `Step ${step + 1} of ${steps}`);
  if (rows.length > MANY) return [title, element("div", {}, summed(rows, step))];
  return [title, ...rows.map((row) => element("div", {}, `${row.name}: ${one(row, row.at.get(step))}`))];
}

function one({ columns }, place) {
  if (place === undefined) return "made by an earlier attempt";
  const kind = columns.decision[place];
  const word = action(kind);
  const drift = columns.drift[place];
  const threshold = columns.threshold[place];
  const limit = threshold === null ? "" : `, threshold ${threshold}`;
  return [
    word === "warp" && kind !== word ? `warp by ${kind}` : word,
    drift === null ? "" : ` at drift ${drift}${limit}`,
    columns.reason[place] ? ` (${columns.reason[place]})` : "",
  ].join("");
}

function summed(rows, step) {
  const counts = {};
  for (const { columns, at } of rows) {
    const kind = at.has(step) ? action(columns.decision[at.get(step)]) : "unknown";
    counts[kind] = (counts[kind] ?? 0) + 1;
  }
  return Object.entries(counts).map(([kind, count]) => `${kind} ${count}`).join(", ") + ` of ${rows.length} blocks`;
}

// The same as a table, for those who don't see it.
export function table(rows) {
  const line = (row) => {
    const counts = { recompute: [], warp: [], reuse: [] };
    row.columns.step.forEach((step, place) => counts[action(row.columns.decision[place])].push(step + 1));
    const cell = (steps) => element("td", {}, steps.length ? listed(steps) : "none");
    return element("tr", {}, element("th", { scope: "row" }, row.name), ...Object.values(counts).map(cell));
  };
  const heads = ["branch", "recompute", "warp", "reuse"].map((head) => element("th", { scope: "col" }, head));
  const caption = element("caption", {}, "Steps by decision");
  const made = element("table", {}, caption,
    element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows.slice(0, SHOWN).map(line)));
  return element("div", { className: "visually-hidden" }, made);
}

function listed(steps) {
  const runs = [];
  for (const step of steps) {
    const run = runs.at(-1);
    if (run && run[1] === step - 1) run[1] = step;
    else runs.push([step, step]);
  }
  return runs.map(([from, to]) => (from === to ? from : `${from} to ${to}`)).join(", ");
}
