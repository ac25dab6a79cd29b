// A map whose kernel draws what is in view: it moves at once with what is there, and is sharp as soon as the kernel answers.

const PATIENCE = 10_000; // milliseconds for an answer: a question may be lost, or the kernel at work on something else
const GONE = "The kernel does not answer. It may be busy; if it was started anew, run the cell again.";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function render({ model, el }) {
  const about = model.get("about"), { width, height } = about;
  const canvas = element("canvas", { tabindex: "0", role: "application", "aria-label": about.label });
  const tools = element("div", { class: "tools", role: "toolbar", "aria-label": "Zoom" });
  const panel = element("div", { class: "panel" });
  const facts = element("table", { class: "facts" }), note = element("p", { class: "note", role: "status", "aria-live": "polite" });
  const view = crypto.getRandomValues(new Uint32Array(2)).join("-");
  const root = element("section", { class: "geoseg-live", "aria-label": about.label, "data-lm-suppress-shortcuts": "true" },
    element("div", { class: "stage" }, canvas, tools), panel);
  root.style.setProperty("--height", `${about.height_css}px`);
  const context = canvas.getContext("2d"), ratio = Math.min(window.devicePixelRatio || 1, 2);
  const shown = new Set(about.shown);
  let column = about.column, place = -1, selected = null;
  let left = 0, top = 0, step = 1, wide = 0, high = 0; // the look, in pixels of the grid and of the screen (CSS)
  let whole = null, sharp = null, queued = false;
  let number = 0, asked = 0, drawn = 0, fresh = 0, stale = false, patience = PATIENCE, waiting; // questions: the last one, the look that is open, the one that is drawn, the first of what is chosen now

  // --- what is drawn

  function draw() {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => { queued = false; paint(); });
  }

  function paint() {
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, wide, high);
    context.imageSmoothingEnabled = step >= 0.25;
    if (whole && (!sharp || !covers(sharp))) picture(whole);
    if (sharp) { wipe(sharp); picture(sharp); outlines(sharp); }
    if (selected) for (const [colour, thick] of [["#000000", 5], ["#ffffff", 2.5]]) stroke(selected, colour, thick);
  }

  const covers = (seen) => seen.left <= left && seen.top <= top && seen.right >= left + step * wide && seen.bottom >= top + step * high;
  const box = (seen) => [(seen.left - left) / step, (seen.top - top) / step, (seen.right - seen.left) / step, (seen.bottom - seen.top) / step];
  const wipe = (seen) => context.clearRect(...box(seen));
  const picture = (seen) => context.drawImage(seen.image, ...box(seen));

  function onGrid(draws) {
    context.save();
    context.transform(1 / step, 0, 0, 1 / step, -left / step, -top / step);
    draws();
    context.restore();
  }

  function outlines(seen) {
    onGrid(() => {
      context.lineWidth = 1.6 * step;
      for (const [colour, path] of seen.paths) {
        context.fillStyle = context.strokeStyle = colour;
        context.globalAlpha = 0.35;
        context.fill(path, "evenodd");
        context.globalAlpha = 1;
        context.stroke(path);
      }
    });
  }

  function stroke(path, colour, thick) {
    onGrid(() => { context.strokeStyle = colour; context.lineWidth = thick * step; context.stroke(path); });
  }

  // --- what is asked of the kernel: one look at a time, the last one that there was

  function look() { return { left, top, step: step / ratio, width: Math.round(wide * ratio), height: Math.round(high * ratio), layers: [...shown], column }; }

  // Its number; 0 if there is no kernel any more.
  function send(question) {
    try {
      model.send({ ...question, number: ++number, view });
      return number;
    } catch {
      note.textContent = GONE;
      return 0;
    }
  }

  function ask() {
    draw();
    if (!wide || !high) return;
    if (asked) { stale = true; return; }
    asked = send({ ask: "look", ...look() });
    root.dataset.busy = String(Boolean(asked));
    clearTimeout(waiting);
    if (asked) waiting = setTimeout(() => { note.textContent = GONE; patience *= 2; answered(asked, true); }, patience);
  }

  // What is shown is other than it was, also than an answer that is on its way.
  function anew() { whole = null; fresh = number + 1; ask(); }

  // An answer to a question is here, or will not come: the next one may be asked.
  function answered(question, again = false) {
    if (question !== asked) return;
    clearTimeout(waiting);
    asked = 0;
    root.dataset.busy = "false";
    if (stale || again) { stale = false; ask(); }
  }

  async function answer(told, buffers) {
    if (told.view !== view) return; // the same map is shown elsewhere, too
    try {
      if (told.of === "look" && told.number > drawn) await looked(told, buffers[0]);
      else if (told.of === "at") selects(told);
      else if (told.of === "error") throw new Error(told.why);
    } catch (error) {
      note.textContent = `This cannot be drawn: ${error.message}`;
    }
    patience = PATIENCE;
    answered(told.number);
    draw();
  }

  async function looked(told, bytes) {
    const image = await createImageBitmap(new Blob([bytes], { type: "image/webp" }));
    const paths = told.outlines.map(([colour, path]) => [colour, new Path2D(path)]);
    const seen = { ...told.look, right: told.look.left + told.look.step * told.look.width, bottom: told.look.top + told.look.step * told.look.height, image, paths };
    if (told.whole && told.number >= fresh) whole = seen;
    sharp = seen;
    drawn = told.number;
    legend(told.legend);
    note.textContent = told.note;
  }

  function selects(told) {
    selected = told.path ? new Path2D(told.path) : null;
    facts.replaceChildren(...told.rows.map(([name, text]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, text))));
    if (!told.centre) return;
    [left, top] = [told.centre[0] - step * wide / 2, told.centre[1] - step * high / 2];
    ask();
  }

  // --- how it moves

  function fit() {
    step = Math.max(width / wide, height / high) * 1.03;
    [left, top] = [(width - step * wide) / 2, (height - step * high) / 2];
    ask();
  }

  function zoom(factor, x = wide / 2, y = high / 2) {
    const now = Math.min(Math.max(step / factor, 0.02), 4 * Math.max(width / wide, height / high));
    [left, top, step] = [left + x * (step - now), top + y * (step - now), now];
    ask();
  }

  function pan(x, y) { left += x * step; top += y * step; ask(); }

  function pick(x, y) { send({ ask: "at", x: left + x * step, y: top + y * step, slack: 5 * step }); }

  function toPlace(by) {
    place = Math.max(0, place + by);
    if (step > about.near) step = about.near;
    send({ ask: "place", place });
  }

  const keys = {
    ArrowLeft: () => pan(-wide / 5, 0), ArrowRight: () => pan(wide / 5, 0), ArrowUp: () => pan(0, -high / 5), ArrowDown: () => pan(0, high / 5),
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit, n: () => toPlace(1), p: () => toPlace(-1),
    Enter: () => pick(wide / 2, high / 2), Escape: () => { selected = null; facts.replaceChildren(); draw(); },
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });

  let from = null, moved = 0;
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); from = [event.offsetX, event.offsetY]; moved = 0; });
  canvas.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [dx, dy] = [event.offsetX - from[0], event.offsetY - from[1]];
    moved += Math.abs(dx) + Math.abs(dy);
    from = [event.offsetX, event.offsetY];
    pan(-dx, -dy);
  });
  canvas.addEventListener("pointerup", (event) => { if (from && moved < 4) pick(event.offsetX, event.offsetY); from = null; });
  canvas.addEventListener("pointercancel", () => { from = null; });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(1.0015 ** -event.deltaY, event.offsetX, event.offsetY); }, { passive: false });

  // --- the panel

  const coloured = element("ul", { class: "legend" });
  function legend(told) {
    if (told.range) {
      const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });
      const bar = element("span", { class: "ramp" });
      bar.style.background = `linear-gradient(to right, ${about.ramp.join(", ")})`;
      coloured.replaceChildren(element("li", { class: "range" }, number(told.range[0]), bar, number(told.range[1])));
      return;
    }
    coloured.replaceChildren(...told.names.slice(0, 24).map(([colour, name]) => {
      const swatch = element("i");
      swatch.style.background = colour;
      return element("li", {}, swatch, name);
    }));
  }

  function layerBox([id, title]) {
    const box = element("input", { type: "checkbox" });
    box.checked = shown.has(id);
    box.addEventListener("change", () => { (box.checked ? shown.add(id) : shown.delete(id)); anew(); });
    return element("label", {}, box, title);
  }

  const select = element("select", {}, ...about.columns.map((name) => element("option", { value: name }, name)));
  select.value = column;
  select.addEventListener("change", () => { column = select.value; anew(); });
  panel.append(...about.layers.map(layerBox), element("label", { class: "by" }, "coloured by ", select), coloured, facts, note);
  for (const [text, name, does] of [["+", "Zoom in", () => zoom(1.5)], ["−", "Zoom out", () => zoom(1 / 1.5)], ["⤢", "All of it", fit]]) {
    const made = element("button", { type: "button", "aria-label": name, title: name }, text);
    made.addEventListener("click", does);
    tools.append(made);
  }

  function resize() {
    const [w, h] = [canvas.clientWidth, canvas.clientHeight];
    if (!w || !h || (w === wide && h === high)) return;
    const all = !wide || (left <= 0 && top <= 0 && left + step * wide >= width && top + step * high >= height);
    [left, top] = [left + step * (wide - w) / 2, top + step * (high - h) / 2]; // the middle stays
    [wide, high, canvas.width, canvas.height] = [w, h, Math.round(w * ratio), Math.round(h * ratio)];
    if (all) fit(); else ask();
  }

  model.on("msg:custom", answer);
  el.append(root);
  const observer = new ResizeObserver(resize);
  observer.observe(canvas);
  root.geosegLook = () => ({ left, top, step, wide, high }); // for tests
  return () => { observer.disconnect(); clearTimeout(waiting); model.off("msg:custom", answer); };
}

export default { render };
