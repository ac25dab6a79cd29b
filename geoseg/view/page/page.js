// What surrounds the map: layers, colours, attributes, swipe, tables, light and dark. Texts go in as text, never as HTML.
"use strict";

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function number(value) {
  if (!Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) < 10 ? 3 : 1 });
}

// --- light and dark

const THEMES = { system: "System", light: "Light", dark: "Dark" };

function themes() {
  const button = document.querySelector("#theme");
  if (!button) return;
  let theme = "system";
  try { theme = localStorage.getItem("geoseg-theme") || theme; } catch { /* not in a sandbox */ }
  const apply = () => {
    document.documentElement.dataset.theme = theme;
    button.querySelector("span").textContent = THEMES[theme];
    button.setAttribute("aria-label", `Colours: ${THEMES[theme]}; change`);
  };
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    theme = names[(names.indexOf(theme) + 1) % names.length];
    try { localStorage.setItem("geoseg-theme", theme); } catch { /* the same */ }
    apply();
  });
  if (!(theme in THEMES)) theme = "system";
  apply();
}

// --- the map's panel

function layerRow(viewer, layer) {
  const name = `layer-${layer.id}`, redraw = () => viewer.draw();
  const box = make("input", { type: "checkbox", id: name, onchange: () => { layer.visible = box.checked; redraw(); } });
  box.checked = layer.visible;
  const slider = make("input", {
    type: "range", min: 0, max: 100, value: Math.round(layer.opacity * 100), "aria-label": `Opacity of ${layer.title}`,
    oninput: () => { layer.opacity = slider.value / 100; redraw(); },
  });
  layer.box = box;
  const row = make("div", { class: "layer" }, make("label", { for: name }, box, " ", layer.title), slider);
  const parts = [row];
  if (layer.note) parts.push(make("p", { class: "hint" }, layer.note));
  if (layer.legend) parts.push(legendList(layer.legend));
  if (layer.ramp) parts.push(rampBar(layer.ramp));
  if (layer.kind === "shapes") parts.push(...colouring(viewer, layer));
  return make("li", {}, ...parts);
}

function legendList(entries) {
  return make("ul", { class: "legend" }, ...entries.map(([colour, name]) => {
    const swatch = make("i", { class: "swatch" });
    swatch.style.background = colour;
    return make("li", {}, swatch, name.replaceAll("_", " "));
  }));
}

function rampBar([low, high]) {
  const bar = make("i", { class: "ramp" });
  bar.style.background = `linear-gradient(to right, ${RAMP.join(",")})`;
  return make("div", { class: "ramp-row" }, make("span", {}, number(low)), bar, make("span", {}, number(high)));
}

function colouring(viewer, layer) {
  const key = make("div", { class: "key" }), columns = layer.shapes.colourable();
  const show = () => {
    key.replaceChildren(layer.paint.ramp ? rampBar(layer.paint.ramp) : legendList(layer.paint.legend));
  };
  show();
  if (columns.length < 1) return [key];
  const names = columns.map((c) => c.name);
  if (!names.includes(layer.by)) names.unshift(layer.by);
  const choice = make("select", {
    id: `by-${layer.id}`,
    onchange: () => { layer.paint = layer.shapes.paint(choice.value); show(); viewer.draw(); },
  }, ...names.map((name) => make("option", { value: name, selected: name === layer.by }, name.replaceAll("_", " "))));
  return [make("div", { class: "by" }, make("label", { for: choice.id }, "coloured by "), choice), key];
}

const PAGE = /^[\w%.~-]+\/[\w.-]+\.html$/; // a page in a folder beside this one, and nothing else

function attributes(viewer, selected) {
  const panel = document.querySelector("#attributes");
  if (!selected) {
    panel.replaceChildren(make("p", { class: "hint" }, "Click an outline, or step from the least confident one on."));
    return;
  }
  const shapes = selected.layer.shapes, rows = shapes.row(selected.index);
  const [west, north, east, south] = shapes.boxes.subarray(4 * selected.index, 4 * selected.index + 4);
  rows.push(["centre", place(viewer.grid, (west + east) / 2, (north + south) / 2)]);
  panel.replaceChildren(make("table", {}, make("tbody", {}, ...rows.filter(([, value]) => value !== null && value !== "").map(
    ([name, value]) => make("tr", {}, make("th", { scope: "row" }, name.replaceAll("_", " ")), make("td", {}, cell(name, value)))))));
}

function cell(name, value) {
  if (name === "page") return PAGE.test(value) ? make("a", { href: value }, "open") : "";
  return typeof value === "number" ? number(value) : String(value);
}

function place(grid, x, y) {
  const [a, b, c, d, e, f] = grid.affine, digits = Math.abs(a) < 0.01 ? 6 : 1;
  return `${(a * x + b * y + c).toFixed(digits)}, ${(d * x + e * y + f).toFixed(digits)} (${grid.crs})`;
}

function scaleBar(viewer) {
  const bar = document.querySelector("#scale"), metres = viewer.grid.metres;
  if (!metres) { bar.hidden = true; return; }
  const wanted = 110 / viewer.scale * metres, power = 10 ** Math.floor(Math.log10(wanted));
  const length = [5, 2, 1].find((n) => n * power <= wanted) * power;
  bar.querySelector("i").style.width = `${length / metres * viewer.scale}px`;
  bar.querySelector("span").textContent = length >= 1000 ? `${length / 1000} km` : `${length} m`;
}

function controls(viewer) {
  const does = { in: () => viewer.zoom(1.5), out: () => viewer.zoom(1 / 1.5), fit: () => viewer.fit(),
    next: () => viewer.step(1), previous: () => viewer.step(-1) };
  for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", does[button.dataset.do]);
  const slider = document.querySelector("#swipe");
  if (slider) slider.addEventListener("input", () => viewer.setSwipe(slider.value / 100));
  return slider;
}

function start() {
  themes();
  tables();
  const root = document.querySelector("#map"), text = document.querySelector("#data");
  if (!root || !text) return;
  const viewer = new Viewer(root, JSON.parse(text.textContent)), slider = controls(viewer);
  const list = document.querySelector("#layers");
  list.replaceChildren(...viewer.layers.map((layer) => layerRow(viewer, layer)).reverse());
  viewer.onmove = () => {
    scaleBar(viewer);
    if (slider) slider.value = Math.round(viewer.swipe * 100);
  };
  viewer.onselect = (selected) => {
    attributes(viewer, selected);
    for (const layer of viewer.layers) if (layer.box) layer.box.checked = layer.visible;
  };
  attributes(viewer, null);
  scaleBar(viewer);
  for (const link of document.querySelectorAll("[data-show]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      viewer.show(link.dataset.layer, Number(link.dataset.show));
      root.scrollIntoView({ block: "center" });
      viewer.canvas.focus({ preventScroll: true });
    });
  }
  window.geosegViewer = viewer; // for whoever wants to drive the map from the console
}

// --- tables that are sorted and filtered

function tables() {
  for (const table of document.querySelectorAll("table[data-sortable]")) sortable(table);
  const input = document.querySelector("#filter");
  if (!input) return;
  const rows = [...document.querySelectorAll("#scenes tbody tr")], count = document.querySelector("#filtered");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = words.length ? `${shown} of ${rows.length}` : "";
  });
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => way * compare(a, b));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

function compare(a, b) {
  const [x, y] = [parseFloat(a), parseFloat(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
}

start();
