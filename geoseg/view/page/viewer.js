// A map on a canvas: pictures and outlines in the pixels of one grid, with layers, swipe and selection.
// No library, no network but for tiles of the page's own server. `geoseg.view` packs what is shown here.
"use strict";

const RAMP = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00", "#7a7a7a"];
const LEVELS = 32; // colours of a ramp that are told apart
const AT_ONCE = 10; // outlines of one path: the time for a path grows faster than what is in it
const NEAR = 6; // CSS pixels within which a small outline is hit

// --- what was packed

function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// Numbers of 7 bits a byte, the lowest first; a set high bit says that more come.
function numbersOf(text) {
  const bytes = bytesOf(text), found = new Uint32Array(bytes.length);
  let count = 0, value = 0, shift = 0;
  for (const byte of bytes) {
    value |= (byte & 127) << shift;
    if (byte & 128) { shift += 7; continue; }
    found[count++] = value;
    value = shift = 0;
  }
  return found.subarray(0, count);
}

class Shapes {
  constructor(layer) {
    const perShape = numbersOf(layer.rings), perRing = numbersOf(layer.points), deltas = numbersOf(layer.deltas);
    this.count = perShape.length;
    this.firstRing = new Uint32Array(this.count + 1);
    this.firstPoint = new Uint32Array(perRing.length + 1);
    for (let i = 0; i < this.count; i++) this.firstRing[i + 1] = this.firstRing[i] + perShape[i];
    for (let i = 0; i < perRing.length; i++) this.firstPoint[i + 1] = this.firstPoint[i] + perRing[i];
    this.x = new Float32Array(deltas.length / 2);
    this.y = new Float32Array(deltas.length / 2);
    let x = 0, y = 0;
    for (let i = 0; i < this.x.length; i++) {
      x += (deltas[2 * i] >>> 1) ^ -(deltas[2 * i] & 1);
      y += (deltas[2 * i + 1] >>> 1) ^ -(deltas[2 * i + 1] & 1);
      this.x[i] = x * layer.step;
      this.y[i] = y * layer.step;
    }
    this.boxes = new Float32Array(4 * this.count);
    for (let i = 0; i < this.count; i++) this.boxes.set(this.boxOf(i), 4 * i);
    this.columns = layer.columns;
    this.colours = layer.colours || {};
    this.first = layer.first || null;
  }

  boxOf(i) {
    let [west, north, east, south] = [Infinity, Infinity, -Infinity, -Infinity];
    for (let p = this.firstPoint[this.firstRing[i]]; p < this.firstPoint[this.firstRing[i + 1]]; p++) {
      west = Math.min(west, this.x[p]); east = Math.max(east, this.x[p]);
      north = Math.min(north, this.y[p]); south = Math.max(south, this.y[p]);
    }
    return [west, north, east, south];
  }

  value(column, i) {
    if (column.kind === "same") return column.value;
    return column.kind === "category" ? column.names[column.codes[i]] : column.values[i];
  }

  row(i) {
    return this.columns.map((column) => [column.name, this.value(column, i)]);
  }

  contains(i, x, y) {
    let inside = false;
    for (let ring = this.firstRing[i]; ring < this.firstRing[i + 1]; ring++) {
      const begin = this.firstPoint[ring], end = this.firstPoint[ring + 1];
      for (let p = begin, q = end - 1; p < end; q = p++) {
        const above = this.y[p] > y;
        if (above !== this.y[q] > y &&
            x < (this.x[q] - this.x[p]) * (y - this.y[p]) / (this.y[q] - this.y[p]) + this.x[p]) inside = !inside;
      }
    }
    return inside;
  }

  // The smallest outline at a place, or else one whose box is within `slack`.
  at(x, y, slack) {
    let best = -1, smallest = Infinity;
    for (let i = 0; i < this.count; i++) {
      const [west, north, east, south] = this.boxes.subarray(4 * i, 4 * i + 4);
      if (x < west - slack || x > east + slack || y < north - slack || y > south + slack) continue;
      const size = (east - west) * (south - north), small = Math.max(east - west, south - north) < 2 * slack;
      if (size < smallest && (this.contains(i, x, y) || small)) { best = i; smallest = size; }
    }
    return best;
  }

  // Columns by which outlines can be coloured.
  colourable() {
    return this.columns.filter((c) => c.kind === "number" || (c.kind === "category" && c.names.length <= 24));
  }

  // Colour of each outline by a column: a list of colours, an index for each, and what the legend says.
  paint(name) {
    const column = this.columns.find((c) => c.name === name), index = new Uint16Array(this.count);
    if (!column || column.kind === "same") {
      const colour = this.colours[column && column.value] || PALETTE[0];
      return { colours: [colour], index, legend: column ? [[colour, String(column.value)]] : [] };
    }
    if (column.kind === "category") {
      const colours = column.names.map((n, k) => this.colours[n] || PALETTE[k % PALETTE.length]);
      for (let i = 0; i < this.count; i++) index[i] = column.codes[i];
      return { colours, index, legend: column.names.map((n, k) => [colours[k], String(n)]) };
    }
    const [low, high] = column.range, colours = Array.from({ length: LEVELS }, (_, k) => rampAt(k / (LEVELS - 1)));
    for (let i = 0; i < this.count; i++) {
      const share = (column.values[i] - low) / (high - low || 1);
      index[i] = Math.round(Math.max(0, Math.min(1, share || 0)) * (LEVELS - 1));
    }
    return { colours, index, ramp: [low, high] };
  }
}

function rampAt(share) {
  const place = share * (RAMP.length - 1), k = Math.min(RAMP.length - 2, Math.floor(place));
  const [a, b] = [RAMP[k], RAMP[k + 1]].map((c) => [1, 3, 5].map((at) => parseInt(c.slice(at, at + 2), 16)));
  return "#" + a.map((v, c) => Math.round(v + (b[c] - v) * (place - k)).toString(16).padStart(2, "0")).join("");
}

// --- the map

class Viewer {
  constructor(root, data) {
    this.root = root;
    this.grid = data.grid;
    this.canvas = root.querySelector("canvas");
    this.context = this.canvas.getContext("2d");
    this.layers = data.layers.map((layer) => ({ ...layer, ready: false }));
    this.swipe = 0.5;
    this.swiping = this.layers.some((layer) => layer.side);
    this.selected = null;
    this.onselect = () => {};
    this.onmove = () => {};
    this.tiles = new Map();
    this.pointers = new Map();
    this.queued = false;
    [this.width, this.height, this.ratio] = [0, 0, 1];
    [this.x, this.y, this.scale, this.fitted] = [this.grid.width / 2, this.grid.height / 2, 1, true];
    for (const layer of this.layers) this.load(layer);
    this.listen();
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    this.resize();
  }

  load(layer) {
    if (layer.kind === "shapes") {
      layer.shapes = new Shapes(layer);
      layer.paint = layer.shapes.paint(layer.by);
      layer.ready = true;
      return;
    }
    layer.image = new Image();
    layer.image.onload = () => { layer.ready = true; this.draw(); };
    layer.image.src = layer.src;
  }

  layer(id) {
    return this.layers.find((layer) => layer.id === id);
  }

  // --- where one looks: (x, y) is the pixel of the grid in the middle, scale CSS pixels for each of them

  resize() {
    const box = this.canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    if (!box.width || !box.height) return; // nobody sees it, or not yet: a frame in a notebook is laid out after its scripts
    [this.width, this.height] = [box.width, box.height];
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.ratio = ratio;
    if (this.fitted) this.fit();
    else this.draw();
  }

  fitting() {
    return Math.min(this.width / this.grid.width, this.height / this.grid.height);
  }

  fit() {
    this.look(this.grid.width / 2, this.grid.height / 2, this.fitting() * 0.98);
    this.fitted = true; // until one looks elsewhere, also in another size: on paper, say
  }

  look(x, y, scale) {
    this.fitted = false;
    this.scale = Math.max(this.fitting() * 0.5, Math.min(scale, Math.max(16, this.fitting() * 16)));
    this.x = Math.max(0, Math.min(this.grid.width, x));
    this.y = Math.max(0, Math.min(this.grid.height, y));
    this.onmove(this);
    this.draw();
  }

  zoom(factor, atX = this.width / 2, atY = this.height / 2) {
    const [x, y] = this.world(atX, atY), before = this.scale;
    this.look(this.x, this.y, before * factor);
    const kept = this.scale;
    this.look(x - (atX - this.width / 2) / kept, y - (atY - this.height / 2) / kept, kept);
  }

  world(atX, atY) {
    return [this.x + (atX - this.width / 2) / this.scale, this.y + (atY - this.height / 2) / this.scale];
  }

  screen(x, y) {
    return [(x - this.x) * this.scale + this.width / 2, (y - this.y) * this.scale + this.height / 2];
  }

  // --- what people do

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.release(event));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-Math.max(-200, Math.min(200, event.deltaY)) / 250), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => this.zoom(2, event.offsetX, event.offsetY));
    canvas.addEventListener("keydown", (event) => this.key(event));
    for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => this.draw());
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    const onLine = this.swiping && Math.abs(event.offsetX - this.swipe * this.width) < 14;
    this.dragging = onLine && this.pointers.size === 1 ? "swipe" : "map";
    this.travelled = 0;
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.offsetX, event.offsetY];
    this.travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (this.pointers.size === 1) {
      if (this.dragging === "swipe") this.setSwipe(now[0] / this.width);
      else this.look(this.x - (now[0] - before[0]) / this.scale, this.y - (now[1] - before[1]) / this.scale, this.scale);
    } else {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const [far, wide] = [before, now].map((p) => Math.hypot(p[0] - other[0], p[1] - other[1]));
      this.zoom(wide / (far || 1), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    }
    this.pointers.set(event.pointerId, now);
  }

  release(event) {
    const alone = this.pointers.size === 1;
    this.pointers.delete(event.pointerId);
    if (event.type === "pointerup" && alone && this.dragging === "map" && this.travelled < 5) {
      this.pick(event.offsetX, event.offsetY);
    }
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 60 / this.scale;
    const does = {
      ArrowLeft: () => this.look(this.x - step, this.y, this.scale),
      ArrowRight: () => this.look(this.x + step, this.y, this.scale),
      ArrowUp: () => this.look(this.x, this.y - step, this.scale),
      ArrowDown: () => this.look(this.x, this.y + step, this.scale),
      "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5),
      0: () => this.fit(), Home: () => this.fit(),
      Enter: () => this.pick(this.width / 2, this.height / 2),
      n: () => this.step(1), p: () => this.step(-1),
      "[": () => this.setSwipe(this.swipe - 0.02), "]": () => this.setSwipe(this.swipe + 0.02),
      Escape: () => this.select(null),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    does();
  }

  pick(atX, atY) {
    const [x, y] = this.world(atX, atY);
    for (const layer of [...this.layers].reverse()) {
      if (layer.kind !== "shapes" || !layer.visible) continue;
      const index = layer.shapes.at(x, y, NEAR / this.scale);
      if (index >= 0) { this.select(layer, index); return; }
    }
    this.select(null);
  }

  select(layer, index) {
    this.selected = layer ? { layer, index } : null;
    this.onselect(this.selected);
    this.draw();
  }

  // Show an outline in the middle, with some ground around it.
  show(id, index) {
    const layer = this.layer(id), [west, north, east, south] = layer.shapes.boxes.subarray(4 * index, 4 * index + 4);
    layer.visible = true;
    const span = Math.max(east - west, south - north, 8) * 3.5;
    this.look((west + east) / 2, (north + south) / 2, Math.min(this.width, this.height) / span);
    this.select(layer, index);
  }

  // From the least to the most confident.
  step(by) {
    const layer = this.layers.find((each) => each.kind === "shapes" && each.visible);
    if (!layer || !layer.shapes.count) return;
    if (!layer.order) layer.order = this.ordered(layer.shapes);
    const rank = this.selected && this.selected.layer === layer ? layer.order.indexOf(this.selected.index) : -1;
    const next = rank < 0 ? (by > 0 ? 0 : layer.order.length - 1) : rank + by;
    this.show(layer.id, layer.order[(next + layer.order.length) % layer.order.length]);
  }

  ordered(shapes) {
    const column = shapes.columns.find((c) => c.name === "confidence" && c.kind === "number");
    const order = Array.from({ length: shapes.count }, (_, i) => i);
    const sure = (i) => (column.values[i] === null ? Infinity : column.values[i]);
    return column ? order.sort((a, b) => sure(a) - sure(b) || a - b) : order;
  }

  setSwipe(share) {
    this.swipe = Math.max(0, Math.min(1, share));
    this.onmove(this);
    this.draw();
  }

  // --- drawing

  draw() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => { this.queued = false; this.paint(); });
  }

  paint() {
    if (!this.width) return;
    const c = this.context, ratio = this.ratio;
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, this.width, this.height);
    for (const layer of this.layers) {
      if (!layer.visible || !layer.ready) continue;
      c.save();
      c.globalAlpha = layer.opacity;
      if (layer.side && this.swiping) this.clip(layer.side);
      if (layer.kind === "shapes") this.paintShapes(layer);
      else this.paintImage(layer);
      c.restore();
    }
    if (this.swiping) this.paintSwipe();
    if (this.selected && this.selected.layer.visible) this.paintSelected();
    if (document.activeElement === this.canvas && this.canvas.matches(":focus-visible")) this.paintCross();
  }

  clip(side) {
    const edge = this.swipe * this.width;
    this.context.beginPath();
    this.context.rect(side === "before" ? 0 : edge, 0, side === "before" ? edge : this.width - edge, this.height);
    this.context.clip();
  }

  paintImage(layer) {
    const c = this.context, [left, top] = this.screen(0, 0);
    c.imageSmoothingEnabled = layer.smooth && this.scale < 4;
    c.imageSmoothingQuality = "high";
    if (layer.tiles && this.scale * this.ratio > layer.image.width / this.grid.width) this.paintTiles(layer);
    else c.drawImage(layer.image, left, top, this.grid.width * this.scale, this.grid.height * this.scale);
  }

  // Tiles of the served page: squares of so many pixels, of the grid or of every 2nd, 4th ... of them.
  paintTiles(layer) {
    const level = Math.max(0, Math.floor(Math.log2(1 / (this.scale * this.ratio)) + 0.5)), side = layer.tile * 2 ** level;
    const [west, north] = this.world(0, 0), [east, south] = this.world(this.width, this.height);
    const rows = [Math.max(0, Math.floor(north / side)), Math.min(Math.ceil(this.grid.height / side), Math.ceil(south / side))];
    const cols = [Math.max(0, Math.floor(west / side)), Math.min(Math.ceil(this.grid.width / side), Math.ceil(east / side))];
    for (let row = rows[0]; row < rows[1]; row++) {
      for (let col = cols[0]; col < cols[1]; col++) this.paintTile(layer, level, row, col, side);
    }
  }

  // A tile, or until it is there that part of the overview.
  paintTile(layer, level, row, col, side) {
    const { image, tiles } = layer, tile = this.tile(`${tiles}/${level}/${row}/${col}`), { width, height } = this.grid;
    const [x, y] = [col * side, row * side], [right, bottom] = [Math.min(x + side, width), Math.min(y + side, height)];
    const corners = [...this.screen(x, y), ...this.screen(right, bottom)];
    const [left, top, east, south] = corners.map((at) => Math.round(at * this.ratio) / this.ratio); // no seams
    const there = tile.complete && tile.naturalWidth, source = there ? tile : image;
    const part = there ? [0, 0, tile.naturalWidth, tile.naturalHeight]
      : [x / width * image.width, y / height * image.height, (right - x) / width * image.width, (bottom - y) / height * image.height];
    this.context.drawImage(source, ...part, left, top, east - left, south - top);
  }

  tile(url) {
    let image = this.tiles.get(url);
    if (!image) {
      image = new Image();
      image.onload = () => this.draw();
      image.src = url;
      if (this.tiles.size > 300) this.tiles.delete(this.tiles.keys().next().value);
    } else {
      this.tiles.delete(url); // what was used last is kept longest
    }
    this.tiles.set(url, image);
    return image;
  }

  paintShapes(layer) {
    const { shapes, paint } = layer, c = this.context, groups = new Map();
    const [west, north] = this.world(0, 0), [east, south] = this.world(this.width, this.height), boxes = shapes.boxes;
    for (let i = 0; i < shapes.count; i++) {
      const k = 4 * i;
      if (boxes[k] > east || boxes[k + 2] < west || boxes[k + 1] > south || boxes[k + 3] < north) continue;
      const colour = paint.colours[paint.index[i]];
      if (!groups.has(colour)) groups.set(colour, []);
      groups.get(colour).push(i);
    }
    c.lineWidth = this.scale * (this.grid.metres || 1) > 0.5 ? 1.6 : 1;
    for (const [colour, members] of groups) {
      c.fillStyle = c.strokeStyle = colour;
      for (let first = 0; first < members.length; first += AT_ONCE) {
        c.beginPath();
        for (const i of members.slice(first, first + AT_ONCE)) this.trace(shapes, i, layer.least);
        c.globalAlpha = layer.opacity * layer.fill;
        c.fill(); // holes turn the other way; where two outlines overlap both are filled
        c.globalAlpha = layer.opacity;
        c.stroke();
      }
    }
  }

  // An outline; where it is smaller than `least`, in CSS pixels, a square.
  trace(shapes, i, least = 1) {
    const c = this.context, scale = this.scale, dx = this.width / 2 - this.x * scale, dy = this.height / 2 - this.y * scale;
    const k = 4 * i, wide = (shapes.boxes[k + 2] - shapes.boxes[k]) * scale, high = (shapes.boxes[k + 3] - shapes.boxes[k + 1]) * scale;
    if (Math.max(wide, high) < Math.max(3, least)) {
      const [w, h] = [Math.max(wide, least), Math.max(high, least)];
      c.rect(shapes.boxes[k] * scale + dx - (w - wide) / 2, shapes.boxes[k + 1] * scale + dy - (h - high) / 2, w, h);
      return;
    }
    for (let ring = shapes.firstRing[i]; ring < shapes.firstRing[i + 1]; ring++) {
      let lastX = Infinity, lastY = Infinity;
      for (let p = shapes.firstPoint[ring]; p < shapes.firstPoint[ring + 1]; p++) {
        const x = shapes.x[p] * scale + dx, y = shapes.y[p] * scale + dy;
        if (lastX === Infinity) c.moveTo(x, y);
        else if (Math.abs(x - lastX) + Math.abs(y - lastY) < 0.8) continue; // nobody could see it
        else c.lineTo(x, y);
        lastX = x; lastY = y;
      }
      c.closePath();
    }
  }

  paintSelected() {
    const c = this.context, { layer, index } = this.selected;
    c.lineJoin = "round";
    for (const [colour, width] of [["#000000", 6], ["#ffffff", 3]]) {
      c.beginPath();
      this.trace(layer.shapes, index, layer.least);
      c.strokeStyle = colour;
      c.lineWidth = width;
      c.stroke();
    }
  }

  paintSwipe() {
    const c = this.context, x = this.swipe * this.width, y = this.height / 2;
    c.fillStyle = "rgba(0,0,0,.55)";
    c.fillRect(x - 2.5, 0, 5, this.height);
    c.fillStyle = "#ffffff";
    c.fillRect(x - 1, 0, 2, this.height);
    c.beginPath();
    c.arc(x, y, 15, 0, 2 * Math.PI);
    c.fill();
    c.strokeStyle = "rgba(0,0,0,.6)";
    c.lineWidth = 1;
    c.stroke();
    c.fillStyle = "#222222";
    for (const way of [-1, 1]) {
      c.beginPath();
      c.moveTo(x + way * 4, y - 5); c.lineTo(x + way * 10, y); c.lineTo(x + way * 4, y + 5);
      c.fill();
    }
  }

  paintCross() {
    const c = this.context, x = this.width / 2, y = this.height / 2;
    for (const [colour, width] of [["#000000", 4], ["#ffffff", 1.5]]) {
      c.beginPath();
      for (const [a, b] of [[-12, -4], [4, 12]]) {
        c.moveTo(x + a, y); c.lineTo(x + b, y);
        c.moveTo(x, y + a); c.lineTo(x, y + b);
      }
      c.strokeStyle = colour;
      c.lineWidth = width;
      c.stroke();
    }
  }
}
