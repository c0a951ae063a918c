// Pointing and zooming in all charts at once, the colour scheme, and putting the page together.
function describeStep(step) {
  const parts = [`step ${whole(step)}`];
  if (axis.tokensPerStep) parts.push(`${short(step * axis.tokensPerStep)} tokens`);
  if (axis.steps.length) parts.push(`${significant(interpolate(axis.steps, axis.elapsed, step), 4)} ${axis.unit}`);
  return parts.join(" · ");
}
function placeTooltip(event) {
  tooltip.hidden = false;
  const width = tooltip.offsetWidth, height = tooltip.offsetHeight;
  const right = event.clientX + 16 + width < window.innerWidth;
  tooltip.style.left = `${right ? event.clientX + 16 : Math.max(event.clientX - width - 16, 4)}px`;
  tooltip.style.top = `${Math.min(Math.max(event.clientY - height - 12, 4), window.innerHeight - height - 4)}px`;
}
function hoverAt(step) {
  view.hover = step;
  if (step === null) tooltip.hidden = true;
  for (const chart of stepCharts) chart.showHover();
}
function zoomTo(range) {
  view.zoom = range;
  document.getElementById("unzoom").hidden = range === null;
  for (const chart of stepCharts) chart.draw();
}

// ---- colour scheme ----
function chooseScheme(scheme) {
  document.documentElement.dataset.scheme = scheme;
}
const dark = window.matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
chooseScheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => { if (!chosen) chooseScheme(dark.matches ? "dark" : "light"); });
document.getElementById("scheme").addEventListener("click", () => {
  chosen = document.documentElement.dataset.scheme === "dark" ? "light" : "dark";
  chooseScheme(chosen);
});

// ---- put together ----
function addCharts(id, specs, ofSteps) {
  const parent = document.getElementById(id);
  if (!parent) return;
  const charts = specs.map((spec) => new Chart(parent, spec, ofSteps));
  if (ofSteps) stepCharts.push(...charts);
  onWidth(parent, () => charts.forEach((chart) => chart.draw()));
}
for (const button of document.querySelectorAll("[data-axis]")) {
  button.addEventListener("click", () => {
    view.mode = button.dataset.axis;
    for (const other of document.querySelectorAll("[data-axis]")) other.setAttribute("aria-pressed", other === button);
    for (const chart of stepCharts) chart.draw();
  });
}
document.getElementById("unzoom").addEventListener("click", () => zoomTo(null));
addCharts("step-charts", data.curves, true);
addCharts("perplexity-charts", data.perplexities, false);
const timelineBox = document.getElementById("timeline");
if (timelineBox) drawTimeline(timelineBox);
