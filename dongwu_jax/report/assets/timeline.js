// Where the time went, stretch by stretch.
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
