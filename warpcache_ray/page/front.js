// Speed and quality of the served model: measured lines, and where the service's settings stand on them.

import { drawn, element, number } from "./words.js";

const SIZE = { height: 300, left: 34, right: 74, top: 16, bottom: 42 };
const CONTROL = "fewer steps";

// Quality at so many calls on a measured line, or null outside of it.
export function onLine(points, calls) {
  for (let place = 1; place < points.length; place += 1) {
    const [[x0, y0], [x1, y1]] = [points[place - 1], points[place]];
    if (calls >= x0 && calls <= x1) return x1 === x0 ? y1 : y0 + ((y1 - y0) * (calls - x0)) / (x1 - x0);
  }
  return null;
}

// `settings`: {name, policy, calls}; `measured`: {calls, psnr} of the video that was compared, or null.
export function draw(front, settings, chosen, measured, width) {
  const methods = Object.entries(front.methods);
  const all = [...methods.flatMap(([, points]) => points), ...(measured ? [[measured.calls, measured.psnr]] : [])];
  const most = Math.max(...all.map(([calls]) => calls));
  const [low, high] = [Math.min(...all.map(([, db]) => db)) - 2, Math.max(...all.map(([, db]) => db)) + 3];
  const inner = { width: width - SIZE.left - SIZE.right, height: SIZE.height - SIZE.top - SIZE.bottom };
  const x = (calls) => SIZE.left + (calls / most) * inner.width;
  const y = (db) => SIZE.top + (1 - (db - low) / (high - low)) * inner.height;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${SIZE.height}`, "aria-hidden": "true" });
  svg.append(...grid(x, y, most, low, high, front.steps));
  const places = settings.map((each) => ({ ...each, db: onLine(front.methods[each.policy] ?? [], each.calls) }));
  const shown = places.filter((each) => each.db !== null);
  const best = shown[0]?.policy ?? methods.at(-1)[0];
  for (const [name, points] of methods) svg.append(...line(name, points, name === best, x, y));
  for (const place of shown) if (place.name !== chosen) svg.append(dot(place, x, y, false));
  for (const place of shown) if (place.name === chosen) svg.append(dot(place, x, y, true), ...label(place, x, y));
  if (measured) svg.append(...mine(measured, x, y, measured.calls > most / 2));
  return [svg, table(shown, chosen, front.steps)];
}

function grid(x, y, most, low, high, steps) {
  const marks = [];
  for (let db = Math.ceil(low / 10) * 10; db <= high; db += 10) {
    marks.push(
      drawn("line", { class: "axis", x1: x(0), x2: x(most), y1: y(db), y2: y(db) }),
      drawn("text", { x: x(0) - 8, y: y(db) + 4, "text-anchor": "end" }, String(db)),
    );
  }
  for (let calls = 10; calls <= most; calls += 10) {
    marks.push(drawn("text", { x: x(calls), y: SIZE.height - 24, "text-anchor": "middle" }, String(calls)));
  }
  marks.push(
    drawn("text", { x: x(0), y: SIZE.height - 6 }, `calls of ${steps}: fewer is faster`),
    drawn("text", { x: 0, y: 8 }, "PSNR, dB"),
  );
  return marks;
}

function line(name, points, best, x, y) {
  const d = `M${points.map(([calls, db]) => `${x(calls).toFixed(1)} ${y(db).toFixed(1)}`).join("L")}`;
  const drawnLine = drawn("path", { class: best ? "line best" : "line", d }, drawn("title", {}, name));
  const [calls, db] = points.at(-1);
  const named = best || name === CONTROL;
  const at = best ? { x: x(calls) + 6, y: y(db) - 6 } : { x: x(calls) + 8, y: y(db) + 4 };
  return named ? [drawnLine, drawn("text", { ...at, class: "name" }, name)] : [drawnLine];
}

function dot(place, x, y, chosen) {
  const title = drawn("title", {}, spoken(place));
  const attributes = { class: chosen ? "dot chosen" : "dot", cx: x(place.calls), cy: y(place.db), r: chosen ? 7 : 4.5 };
  return drawn("circle", attributes, title);
}

function label(place, x, y) {
  const at = { x: x(place.calls) + 14, y: y(place.db) + 16, class: "chosen-text" };
  return [drawn("text", at, `${place.name}: ${number(place.calls)} calls, ${number(place.db)} dB`)];
}

// Its name stands where there is room: `before` it, or behind.
function mine({ calls, psnr }, x, y, before) {
  const [cx, cy] = [x(calls), y(psnr)];
  const at = before ? { x: cx - 11, "text-anchor": "end" } : { x: cx + 11 };
  return [
    drawn("path", { class: "line best", d: `M${cx - 5} ${cy - 5}L${cx + 5} ${cy + 5}M${cx - 5} ${cy + 5}L${cx + 5} ${cy - 5}` }),
    drawn("text", { ...at, y: cy + 4, class: "name" }, `this video, ${number(psnr)} dB`),
  ];
}

const spoken = (place) => `${place.name}: ${number(place.calls)} calls, ${number(place.db)} dB`;

function table(places, chosen, steps) {
  const row = (place) =>
    element("tr", {}, element("th", { scope: "row" }, place.name === chosen ? `${place.name} (chosen)` : place.name),
      element("td", {}, `${number(place.calls)} of ${steps}`), element("td", {}, `${number(place.db)} dB`));
  const heads = ["quality", "calls", "PSNR"].map((head) => element("th", { scope: "col" }, head));
  const made = element("table", {}, element("caption", {}, "Settings of this service, as measured"),
    element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...places.map(row)));
  return element("div", { className: "visually-hidden" }, made);
}
