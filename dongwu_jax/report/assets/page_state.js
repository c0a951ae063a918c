"use strict";
// What all charts share: the data of the page, the tools to draw, and the view they have in common.
// Text from files only ever becomes text: nothing makes markup from strings.
const data = JSON.parse(document.getElementById("data").textContent);
const axis = data.axis;
const tooltip = document.getElementById("tooltip");
const MARGIN = { left: 58, right: 14, top: 10, bottom: 26 };
const view = { mode: "steps", zoom: null, hover: null };
const stepCharts = [];

function element(parent, name, attributes = {}, text = null) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}
function shape(parent, name, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}
// Index of the first entry that is at least `value`.
function search(sorted, value) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1; else high = middle;
  }
  return low;
}
function nearest(sorted, value) {
  const after = search(sorted, value);
  if (after === 0) return 0;
  if (after === sorted.length) return after - 1;
  return value - sorted[after - 1] <= sorted[after] - value ? after - 1 : after;
}
function interpolate(xs, ys, x) {
  if (!xs.length) return 0;
  const after = search(xs, x);
  if (after === 0) return ys[0];
  if (after === xs.length) return ys[ys.length - 1];
  const width = xs[after] - xs[after - 1];
  const part = width > 0 ? (x - xs[after - 1]) / width : 0;
  return ys[after - 1] + part * (ys[after] - ys[after - 1]);
}
const tint = (series) => series.role === "beneath" ? `color-mix(in srgb, ${colour(series.colour)} 38%, var(--card))` : colour(series.colour);
// Draw now, and again whenever the element's width has changed.
function onWidth(box, draw) {
  let width = box.clientWidth;
  draw();
  new ResizeObserver(() => requestAnimationFrame(() => {
    if (box.clientWidth === width) return;
    width = box.clientWidth;
    draw();
  })).observe(box);
}
const colour = (number) => `var(--c${number % 6})`;

// ---- steps, tokens, time ----
function fromStep(step) {
  if (view.mode === "tokens") return step * axis.tokensPerStep;
  return view.mode === "time" ? interpolate(axis.steps, axis.elapsed, step) : step;
}
function toStep(value) {
  if (view.mode === "tokens") return value / axis.tokensPerStep;
  return view.mode === "time" ? interpolate(axis.elapsed, axis.steps, value) : value;
}
