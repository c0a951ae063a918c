// Numbers as a person reads them, and ticks of axes.
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
