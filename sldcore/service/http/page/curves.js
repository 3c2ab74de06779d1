/** Curves over the denoising steps, one line per concept, as SVG: colours and dashes differ, and a table says the same. */

import { drawn, element, scrollable } from "./elements.js";
import { figure } from "./words.js";

const HEIGHT = 200;
const MARGIN = { top: 10, right: 10, bottom: 36, left: 48 };
const COLOURS = 6;
const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
const TITLES = { norm: "Strength of guidance (norm)", relevance: "Relevance" };

/** Round numbers from 0, or below, up to at least ``top``: three to six of them. */
export function ticks(bottom, top) {
  const span = Math.max(top - bottom, Number.MIN_VALUE * 2 ** 60);
  const rough = span / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= rough * (1 - 1e-9));
  const first = Math.floor(bottom / step);
  const count = Math.ceil(top / step - 1e-9) - first;
  return Array.from({ length: Math.max(count, 1) + 1 }, (_, place) => Number(((first + place) * step).toPrecision(12)));
}

/** Runs of neighbouring steps that have values: a gap means that nothing was evaluated there. */
export function runs(values) {
  const found = [];
  values.forEach((value, step) => {
    if (value === null) return;
    if (step > 0 && found.length && values[step - 1] !== null) found.at(-1).push([step, value]);
    else found.push([[step, value]]);
  });
  return found;
}

function style(place) {
  return { class: `line line-${place % COLOURS}`, "stroke-dasharray": DASHES[Math.floor(place / COLOURS + place) % DASHES.length] || null };
}

function line(values, place, x, y) {
  return runs(values).map((run) =>
    run.length === 1
      ? drawn("circle", { class: `dot line-${place % COLOURS}`, cx: x(run[0][0]), cy: y(run[0][1]), r: 2.5 })
      : drawn("polyline", { ...style(place), points: run.map(([step, value]) => `${x(step)},${y(value)}`).join(" ") }),
  );
}

function chart(series, measure, width) {
  const steps = Math.max(...series.map(([, values]) => values.length));
  const known = series.flatMap(([, values]) => values.filter((value) => value !== null));
  const levels = ticks(Math.min(0, ...known), Math.max(0, ...known));
  const [low, high] = [levels[0], levels.at(-1)];
  const x = (step) => MARGIN.left + (step / Math.max(steps - 1, 1)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => HEIGHT - MARGIN.bottom - ((value - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const marks = ticks(0, Math.max(steps, 2)).filter((step) => Number.isInteger(step) && step > 0 && step <= steps);
  return drawn(
    "svg",
    { role: "img", viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-label": `${TITLES[measure]} over ${steps} steps; the table below has the numbers` },
    levels.map((level) => [
      drawn("line", { class: "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(level), y2: y(level) }),
      drawn("text", { x: MARGIN.left - 6, y: y(level) + 4, "text-anchor": "end" }, String(level)),
    ]),
    marks.map((step) => drawn("text", { x: x(step - 1), y: HEIGHT - MARGIN.bottom + 16, "text-anchor": "middle" }, String(step))),
    drawn("text", { x: (width + MARGIN.left) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "step"),
    series.map(([, values], place) => line(values, place, x, y)),
  );
}

function legend(series) {
  const entry = ([name], place) =>
    element("li", {}, drawn("svg", { width: 28, height: 10, "aria-hidden": "true" }, drawn("line", { ...style(place), x1: 1, x2: 27, y1: 5, y2: 5 })), name);
  return element("ul", { class: "legend" }, series.map(entry));
}

function table(series, measure) {
  const steps = Math.max(...series.map(([, values]) => values.length));
  const row = (step) =>
    element("tr", {}, element("th", { scope: "row" }, String(step + 1)), series.map(([, values]) => element("td", {}, figure(values[step]))));
  const heads = ["Step", ...series.map(([name]) => name)].map((name) => element("th", { scope: "col" }, name));
  const body = Array.from({ length: steps }, (_, step) => row(step));
  const whole = element("table", {}, element("caption", {}, TITLES[measure]), element("thead", {}, element("tr", {}, heads)), element("tbody", {}, body));
  return element("details", {}, element("summary", {}, "The numbers, as a table"), scrollable(TITLES[measure], whole));
}

function plot(series, measure) {
  const frame = element("div", { class: "chart" });
  let shown = 0;
  new ResizeObserver(([{ contentRect }]) => {
    const width = Math.floor(contentRect.width);
    if (width > 0 && width !== shown) frame.replaceChildren(chart(series, measure, (shown = width)));
  }).observe(frame);
  return element("figure", { class: "curves" }, element("figcaption", {}, TITLES[measure]), frame, legend(series), table(series, measure));
}

/** A plot for each measure that has values; null if there are none. ``curves`` has, per concept, ``norm`` and ``relevance`` over steps. */
export function curvePlots(curves) {
  const plots = Object.keys(TITLES).flatMap((measure) => {
    const series = Object.entries(curves ?? {}).map(([name, measures]) => [name, measures[measure] ?? []]);
    const known = series.some(([, values]) => values.some((value) => value !== null));
    return known ? [plot(series, measure)] : [];
  });
  return plots.length ? element("div", { class: "plots" }, plots) : null;
}
