// The quantization playground. First the arithmetic, bit for bit that of tinyq (tests/test_playground.py holds the two
// against each other); then the tensors to play with; then the page. No library, no network.
(() => {
"use strict";

// ---- Arithmetic: float32 at every step, as in tinyq/affine.py, solvers.py and per_group.py ---------------------------
const f = Math.fround;
const TINY = 2 ** -126, BIG = (2 - 2 ** -23) * 2 ** 127; // the normal range of float32
const GRIDS = ["symf", "symr", "asym"];
const clamp = (v, lo, hi) => Math.min(Math.max(v, lo), hi);

function roundHalfEven(v) {
  const low = Math.floor(v), rest = v - low;
  return rest < .5 ? low : rest > .5 ? low + 1 : low % 2 ? low + 1 : low;
}

function intRange(bits, narrow = false) {
  if (!Number.isInteger(bits) || bits < 1 || bits > 8) throw new RangeError(`bits is ${bits}; choose from 1 to 8`);
  return [-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1];
}

const roundScale = s => s === 0 ? 1 : Math.sign(s) * clamp(Math.abs(s), TINY, BIG);

// Lowest and highest of x[from..to), 0 included.
function extremes(x, from, to) {
  let lo = 0, hi = 0;
  for (let i = from; i < to; i++) { if (x[i] < lo) lo = x[i]; else if (x[i] > hi) hi = x[i]; }
  return [lo, hi];
}

// Scale and zero point (null on a symmetric grid) of one group.
function solve(x, from, to, bits, grid) {
  if (!GRIDS.includes(grid)) throw new RangeError(`grid is ${grid}; choose from ${GRIDS}`);
  const [qmin, qmax] = intRange(bits, grid === "symr"), [lo, hi] = extremes(x, from, to), n = qmax - qmin;
  if (grid === "symr" && bits === 1) throw new RangeError("1 bit has no symmetric restricted grid; use symf or asym");
  if (grid === "symr") return [roundScale(f(Math.max(-lo, hi) / qmax)), null];
  if (grid === "symf") return [roundScale(f((hi > -lo ? hi : lo) / qmin)), null];
  const scale = roundScale(f(f(hi / n) - f(lo / n)));
  return [scale, clamp(roundHalfEven(f(qmin - f(lo / scale))), qmin, qmax)];
}

const encode = (v, scale, zero, qmin, qmax) => clamp(f(roundHalfEven(f(v / scale)) + zero), qmin, qmax) + 0;
const decode = (q, scale, zero) => f(scale * (q - zero));

// Codes of the whole of x on one grid that is given: quantize_affine, and at 8 bits linear_q_with_scale_and_zero_point.
function quantizeAffine(x, scale, zero, bits) {
  const [qmin, qmax] = intRange(bits);
  return Int8Array.from(x, v => encode(v, f(scale), zero, qmin, qmax));
}

// quantize_tensor: x is a Float32Array of rows x cols, group a number of columns, "row" or "tensor".
function quantizeTensor(x, rows, cols, bits, grid, group = "row") {
  if (group === "tensor") [rows, cols] = [1, rows * cols];
  const g = typeof group === "number" ? Math.min(group, cols) : cols, groups = Math.ceil(cols / g);
  const [qmin, qmax] = intRange(bits, grid === "symr"), codes = new Int8Array(x.length);
  const scale = new Float32Array(rows * groups), zero = grid === "asym" ? new Int8Array(rows * groups) : null;
  for (let r = 0, k = 0; r < rows; r++) for (let c = 0; c < cols; c += g, k++) {
    const from = r * cols + c, to = r * cols + Math.min(c + g, cols), [s, z] = solve(x, from, to, bits, grid);
    scale[k] = s; if (zero) zero[k] = z;
    for (let i = from; i < to; i++) codes[i] = encode(x[i], s, z ?? 0, qmin, qmax);
  }
  return { codes, scale, zero, bits, qmin, qmax, groups, rowLength: cols, groupSize: g };
}

// Where weight i lies: the number of its group, and the group's first and last weight.
function groupOf(q, i) {
  const r = Math.floor(i / q.rowLength), c = Math.floor((i - r * q.rowLength) / q.groupSize), from = r * q.rowLength + c * q.groupSize;
  return { k: r * q.groups + c, from, to: Math.min(from + q.groupSize, (r + 1) * q.rowLength) };
}

function dequantize(q) {
  return Float32Array.from(q.codes, (c, i) => { const { k } = groupOf(q, i); return decode(c, q.scale[k], q.zero ? q.zero[k] : 0); });
}

// The error in double precision, and what the codes take once packed.
function measure(x, q, back) {
  let noise = 0, power = 0, largest = 0;
  for (let i = 0; i < x.length; i++) {
    const e = back[i] - x[i];
    noise += e * e; power += x[i] * x[i]; largest = Math.max(largest, Math.abs(e));
  }
  const n = x.length, scales = 32 * q.scale.length / n, zeros = q.zero ? q.bits * q.zero.length / n : 0;
  const mse = noise / n, sqnr = noise ? 10 * Math.log10(power / noise) : Infinity;
  return { mse, sqnr, largest, scales, zeros, bpw: q.bits + scales + zeros, used: new Set(q.codes).size };
}

// ---- The tensors ---------------------------------------------------------------------------------------------------
// Repeatable noise, kept to two decimals so that it can be copied as text.
function noise(seed) {
  const uniform = () => {
    seed = Math.imul(seed ^ seed >>> 15, 1 | seed) + 0x6D2B79F5 | 0;
    const t = Math.imul(seed ^ seed >>> 15, 0x2C1B3C6D);
    return ((t ^ t >>> 12) >>> 0) / 2 ** 32 + 2 ** -33;
  };
  return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
}
const draw = (seed, n, make) => { const g = noise(seed); return Array.from({ length: n }, () => Math.round(make(g) * 100) / 100); };

const PRESETS = {
  gauss: { name: "Gaussian", rows: 8, cols: 16, axis: [-8, 8], step: .01, bits: 4, grid: "symr", group: "tensor",
    values: draw(7, 128, g => g()) },
  heavy: { name: "Heavy tails", rows: 8, cols: 16, axis: [-10, 16], step: .01, bits: 4, grid: "symr", group: "tensor",
    values: draw(31, 128, g => clamp(.8 * g() / Math.sqrt((g() ** 2 + g() ** 2) / 2), -7, 7)), spike: [77, 13] },
  positive: { name: "All positive", rows: 8, cols: 16, axis: [-6, 10], step: .01, bits: 3, grid: "asym", group: "row",
    values: draw(5, 128, g => .4 + .9 * Math.hypot(g(), g())) },
  T: { name: "3×3 matrix", rows: 3, cols: 3, axis: [-1000, 1000], step: .1, bits: 4, grid: "symr", group: "row",
    values: [191.6, -13.5, 728.6, 92.14, 295.5, -184, 0, 684.6, 245.5] },
};
for (const p of Object.values(PRESETS)) {
  if (p.spike) p.values[p.spike[0]] = p.spike[1];
  p.held = p.values.indexOf(Math.max(...p.values));
}

function fresh(preset) {
  const { bits, grid, group, held, values } = PRESETS[preset];
  return { preset, bits, grid, group, held, value: values[held], scale: 1, zero: 0 };
}

const opening = () => ({ ...fresh("gauss"), value: 5 }); // one weight already apart

function tensorOf(state) {
  const x = Float32Array.from(PRESETS[state.preset].values);
  x[state.held] = state.value;
  return x;
}

function run(state) {
  const { rows, cols } = PRESETS[state.preset], x = tensorOf(state);
  let q;
  if (state.grid === "hand") {
    const [qmin, qmax] = intRange(state.bits), scale = Float32Array.of(state.scale);
    const codes = quantizeAffine(x, state.scale, state.zero, state.bits), zero = Int16Array.of(state.zero);
    q = { codes, scale, zero, bits: state.bits, qmin, qmax, groups: 1, rowLength: x.length, groupSize: x.length };
  } else q = quantizeTensor(x, rows, cols, state.bits, state.grid, state.group);
  const back = dequantize(q);
  return { x, q, back, rows, cols, ...measure(x, q, back) };
}

// ---- State as text: the hash of a permalink, and Python --------------------------------------------------------------
function toHash(state) {
  const part = state.grid === "hand" ? { scale: pyFloat(f(state.scale)), zero: state.zero } : { group: state.group };
  return "#" + new URLSearchParams({ tensor: state.preset, bits: state.bits, grid: state.grid, ...part, weight: state.held, value: state.value });
}

// The state that a hash stands for, brought within what is legal; null if it isn't one of ours.
function fromHash(hash) {
  const h = new URLSearchParams(hash.replace(/^#/, "")), preset = h.get("tensor");
  if (!Object.hasOwn(PRESETS, preset)) return null;
  const p = PRESETS[preset], state = fresh(preset);
  const number = (key, lo, hi, otherwise) => { const v = parseFloat(h.get(key)); return Number.isFinite(v) ? clamp(v, lo, hi) : otherwise; };
  state.bits = Math.round(number("bits", 1, 8, state.bits));
  if ([...GRIDS, "hand"].includes(h.get("grid"))) state.grid = h.get("grid");
  if (state.grid === "symr" && state.bits === 1) state.bits = 2;
  state.group = ["row", "tensor"].includes(h.get("group")) ? h.get("group") : Math.round(number("group", 1, p.cols, 0)) || state.group;
  if (state.group === p.cols) state.group = "row";
  state.held = Math.round(number("weight", 0, p.values.length - 1, state.held));
  state.value = number("value", ...p.axis, p.values[state.held]);
  const range = zeroRange(state.bits);
  state.scale = number("scale", 1e-6, 1e6, 1);
  state.zero = Math.round(number("zero", ...range, 0));
  return state;
}

const zeroRange = bits => { const [lo, hi] = intRange(bits); return [lo - 2 ** (bits - 1), hi + 2 ** (bits - 1)]; };

// The shortest decimal that is this float32, as Python writes a float.
function pyFloat(v) {
  for (let p = 1; p < 10; p++) if (f(+v.toPrecision(p)) === v) { const s = String(+v.toPrecision(p)); return /[.e]/.test(s) ? s : s + "."; }
}

function toCode(state) {
  if (state.grid === "hand") {
    const scale = pyFloat(f(state.scale));
    return state.bits === 8 ? `codes = linear_q_with_scale_and_zero_point(x, ${scale}, ${state.zero})`
      : `codes = quantize_affine(x, ${scale}, ${state.zero}, ${intRange(state.bits).join(", ")})`;
  }
  const group = state.group === "row" ? "" : state.group === "tensor" ? "-tensor" : `-g${state.group}`;
  return `q = quantize_tensor(x, "w${state.bits}a16${group}-${state.grid}")`;
}

// All of it: imports, the tensor, the line. It runs as it is.
function toScript(state) {
  const { x, rows, cols } = run(state), line = toCode(state);
  const row = r => "[" + Array.from(x.subarray(r * cols, (r + 1) * cols), pyFloat).join(", ") + "]";
  const data = Array.from({ length: rows }, (_, r) => row(r)).join(",\n                  ");
  return `import torch\nfrom tinyq import ${line.match(/= (\w+)/)[1]}\n\nx = torch.tensor([${data}])\n${line}\n`;
}

globalThis.tinyqPlayground = {
  roundHalfEven, intRange, solve, quantizeTensor, quantizeAffine, dequantize, measure, PRESETS, fresh, run, toHash, fromHash, toCode, toScript,
};

// ---- The page ---------------------------------------------------------------------------------------------------------
if (typeof document === "undefined") return;
const minus = s => s.replace(/-/g, "−");
function show(v, digits = 3) {
  if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
  if (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5)) return minus(v.toExponential(digits - 1)).replace("e+", "e");
  return minus(String(+v.toPrecision(digits)));
}
const showCode = c => minus(String(c));
const many = (n, one, more = one + "s") => `${n} ${n === 1 ? one : more}`;

const THEMES = {
  light: { mid: "#f1efe9", neg: "#0072B2", pos: "#D55E00", errNeg: "#5e4b9c", errPos: "#E69F00" },
  dark: { mid: "#2b2f36", neg: "#4aa8e0", pos: "#ff8a3d", errNeg: "#a996ea", errPos: "#ffc14d" },
};
const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
const mix = (a, b, t) => a.map((v, i) => v + (b[i] - v) * t);
const css = c => `rgb(${c.map(Math.round)})`;
const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const ink = c => { const [r, g, b] = c.map(v => linear(v / 255)); return .2126 * r + .7152 * g + .0722 * b > .18 ? "#000" : "#fff"; };
const VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"].map(rgb);
function ramp(stops, t) {
  const k = clamp(Math.floor(t *= stops.length - 1), 0, stops.length - 2);
  return mix(stops[k], stops[k + 1], t - k);
}
const signed = (neg, mid, pos, v, top) => mix(mid, v < 0 ? neg : pos, top ? Math.min(1, Math.abs(v) / top) ** .7 : 0);

const PANELS = ["original", "codes", "reconstruction", "error"];
const presetButton = ([key, { name }]) => `<button type="button" data-preset="${key}" aria-pressed="false">${name}</button>`;
const panelFigure = name => `<figure><figcaption><b>${name}</b> <span></span></figcaption><svg role="img" data-panel="${name}"></svg></figure>`;
const PICTURE = "Histogram of the weights above a number line. Lines lead from each weight to the level of the grid that it is rounded to.";
const TEMPLATE = `
<div class="pg-presets" role="group" aria-label="A tensor to start from">${Object.entries(PRESETS).map(presetButton).join("")}</div>
<div class="pg-main">
  <div class="pg-figure">
    <svg class="pg-line" role="img" aria-label="${PICTURE}"></svg>
    <input class="pg-handle" type="range" aria-label="Value of the weight you hold">
  </div>
  <dl class="pg-numbers">
    <div><dt>Mean squared error</dt><dd data-n="mse"></dd><dd class="pg-note" data-n="largest"></dd></div>
    <div><dt>Signal to noise</dt><dd data-n="sqnr"></dd><dd class="pg-note" data-n="more"></dd></div>
    <div><dt>Bits per weight</dt><dd data-n="bpw"></dd><dd class="pg-note" data-n="parts"></dd></div>
    <div><dt>Codes in use</dt><dd data-n="used"></dd><dd class="pg-note" data-n="clipped"></dd></div>
  </dl>
  <div class="pg-controls" role="group" aria-label="The grid">
    <label class="pg-slider"><span>Bits</span><b aria-hidden="true"></b><input type="range" name="bits" min="1" max="8" step="1"></label>
    <fieldset><legend>Grid</legend>
      <label><input type="radio" name="pg-grid" value="symr"><span>symmetric</span></label>
      <label><input type="radio" name="pg-grid" value="symf"><span>full range</span></label>
      <label><input type="radio" name="pg-grid" value="asym"><span>asymmetric</span></label>
      <label><input type="radio" name="pg-grid" value="hand"><span>by hand</span></label>
    </fieldset>
    <label class="pg-slider"><span>Group that shares a scale</span><b aria-hidden="true"></b><input type="range" name="group" min="0" step="1"></label>
    <label class="pg-slider"><span>Range of the codes</span><b aria-hidden="true"></b><input type="range" name="range" min="1" max="400" step="1"></label>
    <label class="pg-slider"><span>Zero point</span><b aria-hidden="true"></b><input type="range" name="zero" step="1"></label>
    <label class="pg-slider"><span>Weight you hold</span><b aria-hidden="true"></b><input type="range" name="held" min="0" step="1"></label>
    <button type="button" data-do="best">Find the best range</button>
  </div>
</div>
<p class="pg-said" role="status" aria-live="polite"></p>
<div class="pg-panels">${PANELS.map(panelFigure).join("")}</div>
<p class="pg-read"></p>
<div class="pg-share">
  <pre><code></code></pre>
  <div>
    <button type="button" data-do="copy">Copy as tinyq code</button>
    <button type="button" data-do="link">Copy link</button>
    <button type="button" data-do="reset">Reset</button>
  </div>
</div>
<details><summary>Every weight in a table</summary><div class="pg-table" tabindex="0" role="region" aria-label="Every weight"><table></table></div></details>`;

const setAll = (e, attributes) => { for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); };
function svg(parent, tag, attributes = {}) {
  const e = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
  setAll(e, attributes);
  return e;
}

class Playground {
  constructor(host) {
    this.root = document.createElement("div");
    this.root.className = "pg"; this.root.innerHTML = TEMPLATE;
    this.host = host; this.$ = s => this.root.querySelector(s);
    this.inputs = Object.fromEntries([...this.root.querySelectorAll("input[name]:not([type=radio])")].map(e => [e.name, e]));
    this.handle = this.$(".pg-handle"); this.line = this.$(".pg-line");
    this.state = fromHash(location.hash) ?? opening();
    this.width = 0; this.hover = null; this.drawLine(); this.drawPanels();
    this.listen(); this.prepare(); this.compute();
    this.say();
  }

  mount() {
    const mark = document.getElementById("tinyq-playground-static"), all = [...document.body.querySelectorAll("*")];
    const before = (a, b) => a.compareDocumentPosition(b) === Node.DOCUMENT_POSITION_FOLLOWING;
    const figure = mark ? all.filter(e => before(mark, e) && before(e, this.host)) : []; // what stands between the two marks
    this.host.append(this.root); this.theme(); this.resize(); // what fails, fails before the static figure is hidden
    new ResizeObserver(() => this.resize()).observe(this.root);
    for (const e of figure) e.hidden = true;
  }

  // -- what the reader does
  listen() {
    const { root, handle, inputs } = this;
    root.addEventListener("input", e => {
      const { name, value } = e.target;
      if (e.target === handle) this.set({ value: +value });
      else if (name === "bits") this.set(this.withBits(+value));
      else if (name === "pg-grid") this.set(value === "hand" ? this.byHand() : { grid: value, bits: Math.max(value === "symr" ? 2 : 1, this.state.bits) });
      else if (name === "group") this.set({ group: this.choices[+value] });
      else if (name === "range") this.set({ ...this.byHand(), scale: this.scaleAt(+value) });
      else if (name === "zero") this.set({ ...this.byHand(), zero: +value });
      else if (name === "held") this.hold(+value);
    });
    handle.addEventListener("keydown", e => { // a hundredth of the axis for an arrow, a step with shift, a tenth for a page
      const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[e.key];
      if (!way || e.altKey || e.ctrlKey || e.metaKey) return;
      e.preventDefault();
      const { axis: [a, b], step } = PRESETS[this.state.preset], v = this.state.value + way * (e.shiftKey ? step : (b - a) / 200);
      this.set({ value: clamp(+(Math.round(v / step) * step).toFixed(2), a, b) });
    });
    root.addEventListener("click", e => {
      const button = e.target.closest("button");
      if (!button) return;
      if (button.dataset.preset) this.start(fresh(button.dataset.preset));
      else if (button.dataset.do === "reset") this.start(fresh(this.state.preset));
      else if (button.dataset.do === "best") this.set(this.best());
      else this.copy(button);
    });
    for (const s of this.panels.map(p => p.svg)) {
      const at = e => {
        const b = s.getBoundingClientRect(), { rows, cols } = this.now, part = (v, n) => clamp(Math.floor(v * n), 0, n - 1);
        return part((e.clientY - b.top) / b.height, rows) * cols + part((e.clientX - b.left) / b.width, cols);
      };
      s.addEventListener("pointermove", e => { this.hover = at(e); this.later(); });
      s.addEventListener("pointerleave", () => { this.hover = null; this.later(); });
      s.addEventListener("click", e => this.hold(at(e)));
    }
    this.$("details").addEventListener("toggle", () => this.later());
    addEventListener("hashchange", () => { const s = fromHash(location.hash); if (s) this.start(s, false); });
    const theme = () => { this.theme(); this.later(); }; // a site's own switch may load its style sheet a little later
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
    const soon = () => [0, 150, 600].forEach(ms => setTimeout(theme, ms));
    new MutationObserver(soon).observe(document.body, { attributes: true, attributeFilter: ["class", "data-bs-theme"] });
  }

  set(change, remember = true) {
    Object.assign(this.state, change); this.changed ||= remember; this.later();
    clearTimeout(this.pause);
    this.pause = setTimeout(() => { // once it is quiet: the sentence, and the address
      this.say();
      if (this.changed) try { history.replaceState(null, "", toHash(this.state)); } catch { /* a page that has no address */ }
      this.changed = false;
    }, 450);
  }

  start(state, remember = true) { this.state = state; this.hover = null; this.prepare(); this.set({}, remember); }
  hold(i) { const { values } = PRESETS[this.state.preset]; if (i !== this.state.held) this.set({ held: i, value: values[i] }); }

  // The same range at another width: by hand, zero point and scale follow.
  withBits(bits) {
    const { grid, scale, zero, bits: old } = this.state;
    if (grid === "symr" && bits === 1) return { bits, grid: "symf" }; // 1 bit has no restricted grid
    if (grid !== "hand" || bits === old) return { bits };
    const [a] = intRange(old), [b] = intRange(bits), ratio = (2 ** bits - 1) / (2 ** old - 1);
    return { bits, scale: +(scale / ratio).toPrecision(4), zero: clamp(Math.round((zero - a) * ratio) + b, ...zeroRange(bits)) };
  }

  // Take over the grid of the weight that is held.
  byHand() {
    if (this.state.grid === "hand") return {};
    const { q } = run(this.state), { k } = groupOf(q, this.state.held);
    return { grid: "hand", scale: +Math.abs(q.scale[k]).toPrecision(4), zero: q.zero ? q.zero[k] : 0 };
  }

  // By hand, of all places of the range slider the one with the least squared error.
  best() {
    const hand = { ...this.state, ...this.byHand() }, error = scale => run({ ...hand, scale }).mse;
    const scale = Array.from({ length: 400 }, (_, t) => this.scaleAt(t + 1)).reduce((a, b) => error(b) < error(a) ? b : a);
    return { grid: "hand", zero: hand.zero, scale };
  }

  span() { const [a, b] = PRESETS[this.state.preset].axis; return 1.25 * (b - a); }
  scaleAt(t) { return +(t / 400 * this.span() / (2 ** this.state.bits - 1)).toPrecision(4); }

  async copy(button) {
    const code = button.dataset.do === "copy", text = code ? toScript(this.state) : location.href.split("#")[0] + toHash(this.state);
    let done = true;
    try { await navigator.clipboard.writeText(text); } catch {
      const area = document.body.appendChild(document.createElement("textarea"));
      area.value = text; area.select(); done = document.execCommand("copy"); area.remove(); button.focus();
    }
    this.copied = text;
    const what = code ? "the imports, the tensor and the line" : "the address of this state";
    this.$(".pg-said").textContent = done ? `Copied: ${what}.` : "This browser would not copy.";
    clearTimeout(this.told); this.told = setTimeout(() => this.say(), 3000);
  }

  // -- what the page shows
  later() { this.frame ??= requestAnimationFrame(() => { this.frame = null; this.compute(); this.draw(); }); }
  compute() { this.now = run(this.state); }

  theme() {
    const b = document.body.classList, text = getComputedStyle(this.host).color.match(/[\d.]+/g).map(Number); // light text is on a dark page
    const dark = b.contains("quarto-dark") || (!b.contains("quarto-light") && text[0] + text[1] + text[2] > 382);
    this.root.dataset.theme = dark ? "dark" : "light";
    this.colors = Object.fromEntries(Object.entries(THEMES[dark ? "dark" : "light"]).map(([k, v]) => [k, rgb(v)]));
  }

  // What changes only with the tensor.
  prepare() {
    const { preset } = this.state, { rows, cols, axis: [min, max], step, values } = PRESETS[preset], { handle, inputs } = this;
    this.choices = [...Array.from({ length: cols - 1 }, (_, i) => i + 1), "row", "tensor"];
    inputs.group.max = this.choices.length - 1; inputs.held.max = values.length - 1;
    Object.assign(handle, { min, max, step });
    for (const b of this.root.querySelectorAll("[data-preset]")) b.setAttribute("aria-pressed", b.dataset.preset === preset);
    for (const p of this.panels) {
      p.cells.replaceChildren();
      p.rects = values.map(() => svg(p.cells, "rect"));
      p.texts = values.length > 16 ? [] : values.map(() => svg(p.cells, "text", { "text-anchor": "middle", dy: ".35em" }));
    }
    this.place();
  }

  resize() {
    const w = this.$(".pg-figure").clientWidth;
    if (w && w !== this.width) { this.width = w; this.place(); this.draw(); }
  }

  // Sizes that change only with the window or the tensor.
  place() {
    if (!this.width) return;
    const { rows, cols } = PRESETS[this.state.preset], Y = this.Y = this.line.clientHeight > 300 ? TALL : LOW, y = (e, y) => setAll(e, { y });
    this.line.setAttribute("viewBox", `0 0 ${this.width} ${Y.height}`);
    for (const e of [this.parts["beyond-low"], this.parts["beyond-high"]]) setAll(e, { y: Y.top, height: Y.code - Y.top });
    y(this.lanes[0], Y.real + 4); y(this.lanes[1], Y.code - 8); y(this.bubble, Y.real - 21);
    const { clientWidth: wide, clientHeight: high } = this.$("[data-panel]"), w = wide / cols, h = high / rows, gap = Math.min(1, w / 12);
    for (const p of this.panels) {
      p.svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
      const col = i => i % cols, row = i => Math.floor(i / cols);
      p.rects.forEach((e, i) => setAll(e, { x: col(i) * w + gap / 2, y: row(i) * h + gap / 2, width: w - gap, height: h - gap }));
      p.texts.forEach((e, i) => setAll(e, { x: (col(i) + .5) * w, y: (row(i) + .5) * h }));
    }
    this.cell = { w, h };
  }

  draw() { this.showControls(); this.showLine(); this.showPanels(); this.showNumbers(); this.showTable(); }

  drawLine() {
    const s = this.line, path = name => svg(s, "path", { class: name });
    this.parts = Object.fromEntries(["beyond-low", "beyond-high"].map(n => [n, svg(s, "rect", { class: "pg-beyond" })]));
    for (const n of ["bars", "mine", "levels", "ticks", "rest", "arrows", "dots", "landed", "held", "axis", "zero"]) this.parts[n] = path(`pg-${n}`);
    this.words_ = svg(s, "g"); this.pool = [];
    this.lanes = ["weights", "codes"].map((t, i) => { const e = svg(s, "text", { class: "pg-lane", x: 2 }); e.textContent = t; return e; });
    this.bubble = svg(s, "text", { class: "pg-bubble" });
  }

  // A word of the figure, from a pool.
  word(k, x, y, text, kind) {
    const e = this.pool[k] ??= svg(this.words_, "text", { "text-anchor": "middle" });
    e.setAttribute("x", x.toFixed(1)); e.setAttribute("y", y); e.setAttribute("class", kind); e.textContent = text; e.style.display = "";
  }

  showLine() {
    const { x, q, back } = this.now, { held, preset } = this.state, { axis: [a, b] } = PRESETS[preset], P = this.parts, Y = this.Y;
    const W = this.width, at = v => Y.side + (v - a) / (b - a) * (W - 2 * Y.side), inside = p => p >= 0 && p <= W, n1 = v => v.toFixed(1);
    const { k, from, to } = groupOf(q, held), s = q.scale[k], z = q.zero ? q.zero[k] : 0, mine = i => i >= from && i < to;
    const set = (name, d) => P[name].setAttribute("d", d.join ? d.join("") : d);
    // the histogram: bins of the axis, the weights of this group in front
    const bins = Math.round(clamp(W / 9, 40, 72)), all = new Array(bins).fill(0), own = new Array(bins).fill(0);
    x.forEach((v, i) => { const j = clamp(Math.floor((v - a) / (b - a) * bins), 0, bins - 1); all[j]++; if (mine(i)) own[j]++; });
    const top = Math.max(...all), bw = (W - 2 * Y.side) / bins, up = n => n1(-(Y.floor - Y.top) * n / top);
    const bar = (n, j) => n ? `M${n1(Y.side + j * bw + .5)} ${Y.floor}v${up(n)}h${n1(bw - 1)}V${Y.floor}z` : "";
    set("bars", all.map(bar)); set("mine", own.map(bar));
    // the levels, and where the grid ends
    const codes = Array.from({ length: q.qmax - q.qmin + 1 }, (_, i) => q.qmin + i), spots = codes.map(c => at(decode(c, s, z))), apart = Math.abs(at(s) - at(0));
    const full = apart >= 4.5, ends = [Math.min(spots[0], spots.at(-1)), Math.max(spots[0], spots.at(-1))].map((p, i) => p + (i - .5) * apart);
    set("levels", full ? spots.filter(inside).map(p => `M${n1(p)} ${Y.top}V${Y.code}`) : "");
    P.ticks.style.strokeOpacity = full ? .7 : .3; set("ticks", spots.filter(inside).map(p => `M${n1(p)} ${Y.code - (full ? 4 : 9)}V${Y.code + 4}`));
    const [low, high] = ends.map(p => clamp(p, 0, W));
    setAll(P["beyond-low"], { x: 0, width: low }); setAll(P["beyond-high"], { x: high, width: W - high });
    // weights, and the way to their levels
    const dot = (px, py, r) => `M${n1(px - r)} ${py}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`, count = new Map(), rest = [], dots = [], arrows = [];
    x.forEach((v, i) => {
      const p = at(v);
      if (!mine(i)) { rest.push(dot(p, Y.real, 2)); return; }
      count.set(back[i], (count.get(back[i]) ?? 0) + 1);
      if (i !== held) { dots.push(dot(p, Y.real, 3)); arrows.push(`M${n1(p)} ${Y.real}L${n1(at(back[i]))} ${Y.code}`); }
    });
    set("rest", rest); set("dots", dots); set("arrows", arrows);
    set("landed", [...count].map(([v, n]) => dot(at(v), Y.code, +Math.min(8, 2 + Math.sqrt(n)).toFixed(1))));
    const hx = at(x[held]), tx = at(back[held]);
    set("held", `M${n1(hx)} ${Y.real}L${n1(tx)} ${Y.code}${dot(tx, Y.code, 4)}`);
    set("axis", `M${Y.side} ${Y.axis}H${W - Y.side}`); set("zero", `M${n1(at(0))} ${Y.top}V${Y.axis}`);
    // words: codes that have room, the axis
    let n = 0;
    if (ends[0] > 110) this.word(n++, ends[0] / 2, Y.top + 18, "beyond the grid", "pg-tick");
    if (W - ends[1] > 110) this.word(n++, (W + ends[1]) / 2, Y.top + 18, "beyond the grid", "pg-tick");
    const wide = 7 * Math.max(...[q.qmin, q.qmax].map(c => showCode(c).length)) + 8, skip = 2 ** Math.max(0, Math.ceil(Math.log2(wide / apart)));
    const unit = 10 ** Math.floor(Math.log10((b - a) / (W / 70))), tick = [1, 2, 5, 10].find(m => m * unit / (b - a) * W >= 46) * unit;
    codes.forEach((c, i) => {
      if ((c - z) % skip === 0 && spots[i] > 6 && spots[i] < W - 6) this.word(n++, spots[i], Y.code + 20, showCode(c), c === z ? "pg-q pg-z" : "pg-q");
    });
    for (let t = Math.ceil(a / tick); t * tick <= b; t++) this.word(n++, at(t * tick), Y.axis + 16, show(t * tick), "pg-tick");
    while (n < this.pool.length) this.pool[n++].style.display = "none";
    // the handle: a slider of the browser's own, over the line of weights
    const text = `${show(x[held], 4)} → code ${showCode(q.codes[held])} → ${show(back[held], 4)}`, half = 3.5 * text.length;
    this.lanes[0].setAttribute("x", hx < 90 ? W - 50 : 2);
    this.bubble.textContent = text; this.bubble.setAttribute("x", n1(clamp(hx, half + 2, W - half - 2)));
  }

  drawPanels() {
    this.panels = [...this.root.querySelectorAll("[data-panel]")].map(s => {
      const cells = svg(s, "g"), [group, held, halo, hover] = ["own", "mark", "halo", "hover"].map(n => svg(s, "rect", { class: `pg-${n}` }));
      return { svg: s, note: s.parentNode.querySelector("span"), cells, group, held, halo, hover };
    });
  }

  showPanels() {
    const { x, q, back, rows, cols, largest } = this.now, { held } = this.state, { mid, neg, pos, errNeg, errPos } = this.colors, { w, h } = this.cell;
    const top = Math.max(...x.map(Math.abs), ...back.map(Math.abs)), real = v => signed(neg, mid, pos, v, top);
    const range = a => `${show(Math.min(...a))} to ${show(Math.max(...a))}`;
    const error = Array.from(x, (v, i) => back[i] - v), { from, to } = groupOf(q, held), i = this.hover ?? held;
    const paint = [
      [x, real, range(x)], [q.codes, c => ramp(VIRIDIS, (c - q.qmin) / (q.qmax - q.qmin)), range(q.codes)],
      [back, real, many(new Set(back).size, "value")], [error, e => signed(errNeg, mid, errPos, e, largest), `±${show(largest, 2)}`]];
    const box = (e, first, last, out = 0) => { // around the weights from first to last
      const [x, r] = [first % cols, last % cols + 1], [y, b] = [Math.floor(first / cols), Math.floor(last / cols) + 1];
      setAll(e, { x: x * w - out, y: y * h - out, width: (r - x) * w + 2 * out, height: (b - y) * h + 2 * out });
    };
    paint.forEach(([values, color, note], k) => {
      const p = this.panels[k];
      for (let i = 0; i < values.length; i++) {
        const c = color(values[i]);
        const fill = css(c);
        if (p.rects[i].was !== fill) p.rects[i].setAttribute("fill", p.rects[i].was = fill);
        if (p.texts.length) { p.texts[i].textContent = show(values[i], k === 3 ? 2 : 3); p.texts[i].setAttribute("fill", ink(c)); }
      }
      p.note.textContent = note; p.svg.setAttribute("aria-label", `${p.svg.dataset.panel}: ${note}`);
      box(p.group, from, to - 1); box(p.held, held, held); box(p.halo, held, held, -2); box(p.hover, i, i);
      p.hover.style.display = this.hover === null ? "none" : "";
    });
    const { k } = groupOf(q, i), zero = q.zero?.[k] ? ` ${q.zero[k] < 0 ? "−" : "+"} ${Math.abs(q.zero[k])}` : "";
    this.$(".pg-read").textContent = `${this.where(i)}: ${show(x[i], 4)} ÷ ${show(q.scale[k], 4)}${zero} is rounded to `
      + `${showCode(q.codes[i])}, which stands for ${show(back[i], 4)}; error ${show(back[i] - x[i], 2)}`;
  }

  where(i) { const { cols } = this.now; return `Row ${Math.floor(i / cols) + 1}, column ${i % cols + 1}`; }

  showControls() {
    const { inputs, handle } = this, { bits, grid, group, held, value } = this.state, { q, x, cols, back } = this.now, hand = grid === "hand";
    const say = (input, value, text, long = text) => {
      input.value = value; input.setAttribute("aria-valuetext", long); input.previousElementSibling.textContent = text;
    };
    const { k } = groupOf(q, held), scale = q.scale[k], zero = q.zero ? q.zero[k] : 0, codes = q.qmax - q.qmin + 1;
    const ends = [q.qmin, q.qmax].map(c => decode(c, scale, zero)).sort((a, b) => a - b), range = `${show(ends[0])} to ${show(ends[1])}`;
    say(inputs.bits, bits, `${bits}  (${codes} codes)`, `${many(bits, "bit")}, ${codes} codes`);
    for (const e of this.root.querySelectorAll("[name=pg-grid]")) e.checked = e.value === grid;
    const i = hand ? this.choices.length - 1 : this.choices.indexOf(group), g = this.choices[i], ragged = cols % g;
    inputs.group.disabled = hand;
    const groups = g === "tensor" ? [`all ${x.length}`] : g === "row" ? [`row of ${cols}`] : !ragged ? [String(g), many(g, "weight")]
      : [`${g}, last ${ragged}`, `${many(g, "weight")}, the last group of a row ${ragged}`];
    say(inputs.group, i, ...groups);
    say(inputs.range, Math.round((ends[1] - ends[0]) / this.span() * 400), range, `${range}, steps of ${show(Math.abs(scale))}`);
    const [lo, hi] = zeroRange(bits); inputs.zero.min = lo; inputs.zero.max = hi;
    say(inputs.zero, zero, showCode(zero));
    say(inputs.held, held, this.where(held).toLowerCase());
    handle.value = value;
    handle.setAttribute("aria-valuetext", `${show(x[held], 4)}, code ${showCode(q.codes[held])}, comes back as ${show(back[held], 4)}`);
    this.root.classList.toggle("pg-hand", hand);
    this.$(".pg-share code").textContent = toCode(this.state);
  }

  clipped() { const { x, q, back } = this.now; return x.reduce((n, v, i) => n + (Math.abs(back[i] - v) > Math.abs(q.scale[groupOf(q, i).k]) * .5001), 0); }

  showNumbers() {
    const { mse, sqnr, largest, bpw, scales, zeros, used, q } = this.now, put = (n, t) => { this.$(`[data-n=${n}]`).textContent = t; };
    put("mse", show(mse)); put("largest", `largest error ${show(largest, 2)}`);
    put("sqnr", Number.isFinite(sqnr) ? `${minus(sqnr.toFixed(1))} dB` : "∞ dB"); put("more", "SQNR; 6 dB a bit");
    put("bpw", bpw.toFixed(2)); put("parts", `codes ${q.bits}, grids ${(scales + zeros).toFixed(2)}`);
    put("used", `${used} of ${q.qmax - q.qmin + 1}`); const n = this.clipped(); put("clipped", `${n || "no"} weight${n === 1 ? "" : "s"} clipped`);
  }

  showTable() {
    if (!this.$("details").open) return;
    const { x, q, back, cols } = this.now;
    const head = ["row, column", "weight", "code", "stands for", "error"].map(t => `<th scope=col>${t}`).join("");
    const row = (v, i) => `<tr><th scope=row>${Math.floor(i / cols) + 1}, ${i % cols + 1}`
      + [show(v, 4), showCode(q.codes[i]), show(back[i], 4), show(back[i] - v, 2)].map(t => `<td>${t}`).join("");
    this.$("table").innerHTML = `<thead><tr>${head}</thead><tbody>${Array.from(x, row).join("")}</tbody>`;
  }

  // The state in a sentence, and what there is to see in another.
  words() {
    const { x, q, sqnr, bpw } = this.now, { bits, grid, group, held } = this.state;
    const kind = { symr: "symmetric grid", symf: "symmetric grid of full range", asym: "asymmetric grid", hand: "grid set by hand" }[grid];
    const whole = grid === "hand" || group === "tensor";
    const share = whole ? `all ${x.length} weights` : group === "row" ? "each row" : group === 1 ? "each weight" : `every ${group} weights`;
    const db = Number.isFinite(sqnr) ? minus(sqnr.toFixed(1)) + " dB" : "no error at all";
    return [`${many(bits, "bit")}, ${kind}, one scale for ${share}: ${db} at ${bpw.toFixed(2)} bits per weight.`, this.insight()];
  }

  say() { const [what, see] = this.words(), e = document.createElement("b"); e.textContent = see; this.$(".pg-said").replaceChildren(what + " ", e); }

  insight() {
    const { x, q, back, bpw, scales, zeros, used } = this.now, { held, grid, bits } = this.state, { k, from, to } = groupOf(q, held), n = this.clipped();
    const codes = q.qmax - q.qmin + 1, z = q.zero ? q.zero[k] : 0;
    if (grid === "hand" && (z < q.qmin || z > q.qmax)) return "The zero point lies outside the codes, so no code stands for 0.";
    if (grid === "hand" && n) return `${many(n, "weight lies", "weights lie")} beyond the grid and ${n === 1 ? "is" : "are"} clipped to its end.`;
    if (grid === "hand" && used < codes / 2) return `Most codes stand for values that no weight has: the range is too wide.`;
    if (scales + zeros > bits) return `${zeros ? "Scales and zero points take" : "The scales take"} more room than the codes.`;
    const others = x.slice(from, to).filter((_, i) => i !== held - from), reach = ([l, h]) => grid === "asym" ? h - l : Math.max(-l, h);
    const ratio = reach(extremes(x, from, to)) / reach(extremes(others, 0, others.length));
    if (others.length && ratio > 1.25 && Number.isFinite(ratio))
      return `The weight you hold sets the scale of ${many(others.length, "neighbour")}: without it, their steps would be ${show(ratio, 2)} times finer.`;
    if (x.every(v => v >= 0) && grid !== "asym") return "No weight is negative, so half of the codes are idle: an asymmetric grid would use them.";
    if (grid === "asym" && x.some(v => v < 0)) return "The zero point lets a grid reach further to one side; 0 keeps a code of its own.";
    if (used === codes && !n) return "Every code is in use, and no weight is further than half a step from its level.";
    if (n) return `${many(n, "weight is", "weights are")} more than half a step off: on that side the grid has one code less.`;
    return "No weight is further than half a step from its level.";
  }
}

// Places in the figure, in pixels; playground.css knows the height, the side, and the line of the weights.
const TALL = { top: 8, floor: 168, real: 240, code: 350, axis: 392, height: 418, side: 16 };
const LOW = { top: 8, floor: 92, real: 142, code: 216, axis: 252, height: 276, side: 16 };

function begin() {
  const host = document.getElementById("tinyq-playground");
  if (!host || host.firstElementChild) return;
  try { const page = new Playground(host); page.mount(); globalThis.tinyqPlayground.page = page; }
  catch (e) { host.replaceChildren(); console.error(e); } // the static figure stays
}
document.readyState === "loading" ? addEventListener("DOMContentLoaded", begin) : begin();
})();
