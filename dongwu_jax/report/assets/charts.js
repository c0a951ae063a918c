"use strict";
// Draws the page's charts from the JSON beside this script. Text from files only ever becomes
// text: nothing here makes markup from strings.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const axis = data.axis;
  const tooltip = document.getElementById("tooltip");
  const MARGIN = { left: 58, right: 14, top: 10, bottom: 26 };
  const view = { mode: "steps", zoom: null, hover: null };
  const stepCharts = [];

  // ---- small tools ----
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

  // ---- numbers ----
  function short(value) {
    const size = Math.abs(value);
    for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"]]) {
      if (size >= unit) return `${trim((value / unit).toFixed(2))}${letter}`;
    }
    if (size >= 1e4) return `${trim((value / 1e3).toFixed(1))}k`;
    return size >= 1000 ? value.toLocaleString("en-US", { maximumFractionDigits: 0 }) : significant(value, 4);
  }
  function trim(text) {
    return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  }
  function significant(value, digits) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-3 || size >= 1e6) return exponent(value, digits);
    return trim(value.toPrecision(Math.max(digits, Math.floor(Math.log10(size)) + 1)));
  }
  function exponent(value, digits) {
    if (value === 0) return "0";
    const [mantissa, power] = value.toExponential(digits - 1).split("e");
    return `${trim(mantissa)}e${Number(power)}`;
  }
  function written(value, form, digits = 5) {
    if (form === "percent") return `${trim((100 * value).toFixed(100 * value < 1 ? 3 : 2))}%`;
    if (form === "exponent") return exponent(value, digits);
    if (form === "count") return value.toLocaleString("en-US", { maximumFractionDigits: value < 100 ? 2 : 0 });
    return significant(value, digits);
  }
  function onAxis(value, form) {
    if (form === "percent") return `${trim((100 * value).toFixed(2))}%`;
    if (form === "exponent") return exponent(value, 3);
    return form === "count" ? short(value) : Math.abs(value) >= 1e4 ? short(value) : significant(value, 4);
  }
  function whole(value) {
    return Math.round(value).toLocaleString("en-US");
  }

  // ---- ticks ----
  function linearTicks(low, high, count) {
    const rough = (high - low) / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const unit = [1, 2, 2.5, 5, 10].map((m) => m * power).find((step) => step >= rough * 0.999);
    const ticks = [];
    for (let k = Math.ceil(low / unit - 1e-9); k * unit <= high * (1 + 1e-12) + unit * 1e-9; k++) {
      ticks.push(Number((k * unit).toPrecision(12)));
    }
    return ticks;
  }
  function logTicks(low, high, count) {
    const decades = Math.log10(high / low);
    if (decades < 0.9) return linearTicks(low, high, count);
    const every = Math.max(1, Math.ceil(decades / count));
    const parts = decades < count / 2.5 ? [1, 2, 5] : [1];
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high) + 1e-9; power++) {
      if (power % every) continue;
      for (const part of parts) {
        const tick = Number((part * 10 ** power).toPrecision(6));
        if (tick >= low * 0.9999 && tick <= high * 1.0001) ticks.push(tick);
      }
    }
    return ticks;
  }

  // ---- one chart ----
  class Chart {
    constructor(parent, spec, ofSteps) {
      this.spec = spec;
      this.ofSteps = ofSteps;
      this.log = spec.log;
      this.box = element(parent, "div", { class: spec.wide ? "chart wide" : "chart" });
      const head = element(this.box, "div", { class: "chart-head" });
      element(head, "span", { class: "name" }, spec.title);
      if (spec.series.length > 1) this.addLegend(head);
      element(head, "span", { class: "spacer" });
      this.readout = element(head, "span", { class: "readout" });
      if (spec.logPossible) this.addLogButton(head);
      this.svg = shape(this.box, "svg", { role: "img", "aria-label": spec.title });
      this.clipId = `clip${Chart.count++}`;
      this.listen();
    }

    addLegend(head) {
      const legend = element(head, "span", { class: "legend" });
      for (const series of this.spec.series) {
        if (series.role === "beneath") continue;
        const entry = element(legend, "span");
        element(entry, "i", { style: `border-color: ${colour(series.colour)}` });
        entry.append(series.name.replace(", smoothed", ""));
      }
      if (legend.children.length < 2) legend.remove();
    }

    addLogButton(head) {
      const button = element(head, "button", { type: "button", "aria-pressed": this.log, title: "logarithmic axis" }, "log");
      button.addEventListener("click", () => {
        this.log = !this.log;
        button.setAttribute("aria-pressed", this.log);
        this.draw();
      });
    }

    // Where the x axis begins and ends, in its own unit.
    domain() {
      if (this.ofSteps) return (view.zoom || data.range).map(fromStep);
      const xs = this.spec.series.flatMap((series) => series.x);
      const low = Math.min(...xs), high = Math.max(...xs);
      return low < high ? [low / 1.15, high * 1.15] : [low / 2, high * 2];
    }

    visible(series) {
      if (!this.ofSteps || !view.zoom) return [0, series.x.length];
      return [search(series.x, view.zoom[0]), search(series.x, view.zoom[1] + 1e-9)];
    }

    range() {
      let low = Infinity, high = -Infinity;
      for (const series of this.spec.series) {
        let values = series.y.slice(...this.visible(series));
        if (this.log) values = values.filter((value) => value > 0);
        if (!values.length) continue;
        values.sort((a, b) => a - b);
        // Single points of what lies beneath must not flatten the rest.
        const cut = series.role === "beneath" ? Math.floor(values.length * 0.004) : 0;
        low = Math.min(low, values[cut]);
        high = Math.max(high, values[values.length - 1 - cut]);
      }
      if (!(low <= high)) return this.log ? [0.1, 1] : [0, 1];
      if (this.log) {
        const pad = Math.max((high / low) ** 0.05, 1.01);
        return [low / pad, high * pad];
      }
      if (this.spec.zero && low >= 0) return [0, high > 0 ? high * 1.06 : 1];
      const pad = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
      return [low - pad, high + pad];
    }

    draw() {
      const width = Math.max(this.box.clientWidth - 20, 120), height = this.spec.wide ? 330 : 190;
      const svg = this.svg;
      svg.replaceChildren();
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.setAttribute("height", height);
      const left = MARGIN.left, right = width - MARGIN.right, top = MARGIN.top, bottom = height - MARGIN.bottom;
      this.area = { left, right, top, bottom };
      const [x0, x1] = this.domain(), [y0, y1] = this.range();
      const xLog = !this.ofSteps;
      const xPart = xLog ? (x) => Math.log(x / x0) / Math.log(x1 / x0) : (x) => (x - x0) / (x1 - x0 || 1);
      this.xOf = (x) => left + (right - left) * xPart(x);
      this.xAt = (pixel) => {
        const part = (pixel - left) / (right - left);
        return xLog ? x0 * (x1 / x0) ** part : x0 + part * (x1 - x0);
      };
      const yPart = this.log ? (y) => Math.log(y / y0) / Math.log(y1 / y0) : (y) => (y - y0) / (y1 - y0);
      this.yOf = (y) => bottom - (bottom - top) * yPart(y);
      this.drawAxes([x0, x1], [y0, y1], xLog);
      const clip = shape(shape(shape(svg, "defs"), "clipPath", { id: this.clipId }), "rect", { x: left, y: top - 4, width: right - left, height: bottom - top + 4 });
      clip.setAttribute("rx", 0);
      const inside = shape(svg, "g", { "clip-path": `url(#${this.clipId})` });
      if (this.ofSteps) this.drawRestarts(inside);
      for (const series of this.spec.series) this.drawSeries(inside, series);
      if (this.ofSteps && this.spec.marked) this.drawAnomalies(inside);
      this.crosshair = shape(inside, "line", { class: "crosshair", y1: top, y2: bottom, visibility: "hidden" });
      this.selection = shape(inside, "rect", { class: "zooming", y: top, height: bottom - top, visibility: "hidden" });
      shape(svg, "rect", { class: "plot", x: left, y: top, width: right - left, height: bottom - top });
      this.showHover();
    }

    drawAxes([x0, x1], [y0, y1], xLog) {
      const { left, right, top, bottom } = this.area, svg = this.svg;
      const yTicks = (this.log ? logTicks : linearTicks)(y0, y1, Math.round((bottom - top) / 42));
      for (const tick of yTicks) {
        const y = this.yOf(tick);
        shape(svg, "line", { class: "grid", x1: left, x2: right, y1: y, y2: y });
        shape(svg, "text", { x: left - 7, y: y + 4, "text-anchor": "end" }).textContent = onAxis(tick, this.spec.form);
      }
      shape(svg, "line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom });
      const room = Math.max(Math.round((right - left) / 68), 2);
      const ticks = xLog ? this.ownTicks(room) : linearTicks(x0, x1, room);
      for (const tick of ticks) {
        const x = this.xOf(tick);
        if (x < left - 0.5 || x > right + 0.5) continue;
        shape(svg, "line", { class: "axis", x1: x, x2: x, y1: bottom, y2: bottom + 4 });
        // The last label would be cut off in the middle.
        const anchor = x > right - 18 ? "end" : "middle";
        shape(svg, "text", { x: anchor === "end" ? right + 10 : x, y: bottom + 17, "text-anchor": anchor }).textContent = this.xLabel(tick, x1);
      }
    }

    // Ticks where points are, as many as there is room for.
    ownTicks(room) {
      const all = [...new Set(this.spec.series.flatMap((series) => series.x))].sort((a, b) => a - b);
      if (all.length <= room) return all;
      const [x0, x1] = this.domain();
      return logTicks(x0, x1, room);
    }

    xLabel(value, highest) {
      if (!this.ofSteps) return value.toLocaleString("en-US", { maximumFractionDigits: 1 });
      if (view.mode === "steps") return highest >= 1e5 ? short(value) : value.toLocaleString("en-US");
      return view.mode === "tokens" ? short(value) : significant(value, 4);
    }

    drawSeries(parent, series) {
      const [first, last] = this.visible(series);
      const parts = [];
      for (let k = Math.max(first - 1, 0); k < Math.min(last + 1, series.x.length); k++) {
        if (this.log && series.y[k] <= 0) continue;
        const x = this.xOf(this.ofSteps ? fromStep(series.x[k]) : series.x[k]);
        parts.push(`${x.toFixed(1)},${this.yOf(series.y[k]).toFixed(1)}`);
      }
      if (parts.length > 1) {
        shape(parent, "path", { class: `curve ${series.role}`, d: `M${parts.join("L")}`, style: `stroke: ${tint(series)}` });
      }
      if (series.role !== "points" && parts.length > 1) return;
      if (parts.length > 150) return;
      for (const part of parts) {
        const [x, y] = part.split(",");
        shape(parent, "circle", { cx: x, cy: y, r: 2.6, style: `fill: ${colour(series.colour)}` });
      }
    }

    drawRestarts(parent) {
      for (const restart of data.restarts) {
        const x = this.xOf(fromStep(restart.step));
        shape(parent, "line", { class: "restart", x1: x, x2: x, y1: this.area.top, y2: this.area.bottom });
      }
    }

    drawAnomalies(parent) {
      for (const anomaly of data.anomalies) {
        const x = this.xOf(fromStep(anomaly.step)), y = this.area.top - 4;
        shape(parent, "path", { class: "anomaly", d: `M${x - 5},${y}L${x + 5},${y}L${x},${y + 8}Z` });
      }
    }

    // ---- pointing and zooming ----
    listen() {
      this.svg.addEventListener("pointermove", (event) => this.moved(event));
      this.svg.addEventListener("pointerleave", () => { if (this.dragFrom === undefined) hoverAt(null); });
      this.svg.addEventListener("pointerdown", (event) => this.pressed(event));
      this.svg.addEventListener("pointerup", (event) => this.released(event));
      this.svg.addEventListener("pointercancel", () => { this.dragFrom = undefined; this.draw(); });
      if (this.ofSteps) this.svg.addEventListener("dblclick", () => zoomTo(null));
    }

    pixel(event) {
      const box = this.svg.getBoundingClientRect();
      return Math.min(Math.max(event.clientX - box.left, this.area.left), this.area.right);
    }

    moved(event) {
      const pixel = this.pixel(event), value = this.xAt(pixel);
      if (this.dragFrom !== undefined) {
        const start = Math.min(pixel, this.dragFrom);
        this.selection.setAttribute("x", start);
        this.selection.setAttribute("width", Math.abs(pixel - this.dragFrom));
        this.selection.setAttribute("visibility", "visible");
      }
      if (this.ofSteps) hoverAt(toStep(value));
      else this.crosshairAt(pixel);
      this.showTooltip(event, this.ofSteps ? toStep(value) : value);
    }

    pressed(event) {
      if (!this.ofSteps || event.button !== 0 || event.pointerType === "touch") return;
      this.svg.setPointerCapture(event.pointerId);
      this.dragFrom = this.pixel(event);
    }

    released(event) {
      if (this.dragFrom === undefined) return;
      const ends = [this.dragFrom, this.pixel(event)].sort((a, b) => a - b);
      this.dragFrom = undefined;
      this.selection.setAttribute("visibility", "hidden");
      if (ends[1] - ends[0] > 6) zoomTo(ends.map((pixel) => toStep(this.xAt(pixel))));
    }

    crosshairAt(pixel) {
      this.crosshair.setAttribute("x1", pixel);
      this.crosshair.setAttribute("x2", pixel);
      this.crosshair.setAttribute("visibility", "visible");
    }

    // The value at the pointer, or the last one.
    showHover() {
      if (!this.ofSteps) return;
      const series = this.spec.series.find((one) => one.role !== "beneath");
      const at = view.hover === null ? (view.zoom ? view.zoom[1] : Infinity) : view.hover;
      this.readout.textContent = written(series.y[nearest(series.x, at)], this.spec.form, 4);
      if (view.hover === null) this.crosshair.setAttribute("visibility", "hidden");
      else this.crosshairAt(this.xOf(fromStep(view.hover)));
    }

    showTooltip(event, at) {
      tooltip.replaceChildren();
      element(tooltip, "div", { class: "where" }, this.ofSteps ? describeStep(at) : `${whole(at)} ${this.spec.xName}`);
      for (const series of this.spec.series) {
        const place = nearest(series.x, at), row = element(tooltip, "div", { class: "row" });
        element(row, "i", { style: `background: ${tint(series)}` });
        const far = this.ofSteps ? series.role === "points" : true;
        element(row, "span", {}, far ? `${series.name}, ${this.ofSteps ? "step" : "at"} ${whole(series.x[place])}` : series.name);
        element(row, "b", {}, written(series.y[place], this.spec.form));
      }
      if (this.ofSteps) this.tellOfMarks(at);
      placeTooltip(event);
    }

    tellOfMarks(at) {
      const close = Math.abs(toStep(this.xAt(this.area.left + 6)) - toStep(this.xAt(this.area.left))) || 1;
      const reach = view.mode === "time" ? (data.range[1] - data.range[0]) / 100 : close;
      for (const restart of data.restarts) {
        if (Math.abs(restart.step - at) <= reach) element(tooltip, "div", { class: "where" }, restart.what);
      }
      const marks = this.spec.marked ? data.anomalies.filter((one) => Math.abs(one.step - at) <= reach) : [];
      for (const mark of marks.slice(0, 4)) {
        element(tooltip, "div", { class: "warn" }, `step ${whole(mark.step)}: ${mark.kind}, ${mark.what}`);
      }
    }
  }
  Chart.count = 0;

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

  // ---- where the time went ----
  function drawTimeline(box) {
    const timeline = data.timeline;
    const draw = () => {
      box.replaceChildren();
      const width = Math.max(box.clientWidth, 200), height = 86, plot = 62;
      const svg = shape(box, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": "where the time went" });
      const each = width / timeline.shares.length;
      let first = 0;
      timeline.shares.forEach((shares, column) => {
        const next = timeline.shares[column + 1];
        if (next && shares.every((share, kind) => share === next[kind])) return;
        const x = Math.round(first * each), right = Math.round((column + 1) * each);
        let y = plot;
        shares.forEach((share, kind) => {
          if (share <= 0) return;
          y -= share * plot;
          shape(svg, "rect", { class: `kind-${timeline.kinds[kind]}`, x, y: y.toFixed(2), width: right - x, height: (share * plot).toFixed(2) });
        });
        first = column + 1;
      });
      const [unit, name] = timeline.hours > 72 ? [24, "d"] : timeline.hours > 2 ? [1, "h"] : timeline.hours > 1 / 30 ? [1 / 60, "min"] : [1 / 3600, "s"];
      for (const tick of linearTicks(0, timeline.hours / unit, Math.round(width / 110))) {
        const x = (tick * unit / timeline.hours) * width;
        shape(svg, "line", { class: "axis", x1: x, x2: x, y1: plot, y2: plot + 5 });
        const anchor = x < 14 ? "start" : x > width - 24 ? "end" : "middle";
        shape(svg, "text", { x: Math.min(Math.max(x, 5), width - 5), y: plot + 17, "text-anchor": anchor }).textContent = `${tick} ${name}`;
      }
      svg.addEventListener("pointermove", (event) => tell(event, svg));
      svg.addEventListener("pointerleave", () => { tooltip.hidden = true; });
    };
    const tell = (event, svg) => {
      const bounds = svg.getBoundingClientRect(), part = (event.clientX - bounds.left) / bounds.width;
      const column = Math.min(Math.max(Math.floor(part * timeline.shares.length), 0), timeline.shares.length - 1);
      tooltip.replaceChildren();
      element(tooltip, "div", { class: "where" }, `${significant(part * timeline.hours, 3)} h after the first start`);
      timeline.shares[column].forEach((share, kind) => {
        if (share < 0.0005) return;
        const row = element(tooltip, "div", { class: "row" });
        element(row, "i", { class: `kind-${timeline.kinds[kind]}` });
        element(row, "span", {}, timeline.names[kind]);
        element(row, "b", {}, written(share, "percent"));
      });
      placeTooltip(event);
    };
    onWidth(box, draw);
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
})();
