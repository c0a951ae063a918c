// One chart against steps (with the others' view) or against an x axis of its own.
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
    else if (legend.children.length > 2) legend.classList.add("long");
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
