// A map of vector tiles in one PMTiles file beside the page, drawn by MapLibre; nothing is asked for elsewhere.

const OTHER = "#808080"; // a value that nobody told of

// MapLibre's expression for the colour of a polygon by a column, and what the legend says.
function paintOf(column) {
  if (!column) return { colour: PALETTE[0], legend: [] };
  if (column.kind === "number") {
    const [low, high] = column.range, wide = (high - low || 1) / (RAMP.length - 1);
    const stops = RAMP.flatMap((colour, k) => [low + k * wide, colour]);
    return { colour: ["interpolate", ["linear"], ["to-number", ["get", column.name], low], ...stops], ramp: column.range };
  }
  const entries = column.names.map((name, k) => [column.colours[k] || PALETTE[k % PALETTE.length], name]);
  if (!entries.length) return { colour: OTHER, legend: [] };
  const told = entries.flatMap(([colour, name]) => [name, colour]);
  return { colour: ["match", ["to-string", ["get", column.name]], ...told, OTHER], legend: entries };
}

class WebMap {
  constructor(element, data) {
    this.data = data;
    this.layers = [
      ...data.rasters.map((each) => ({ ...each, kind: "raster" })),
      ...data.layers.map((each) => ({ ...each, kind: "shapes", visible: true, opacity: 0.95, paint: paintOf(each.columns.find((c) => c.name === each.by)) })),
    ];
    this.onselect = () => {};
    maplibregl.addProtocol("pmtiles", new pmtiles.Protocol().tile);
    this.map = new maplibregl.Map({
      container: element, style: this.style(), attributionControl: false, renderWorldCopies: false,
      bounds: data.bounds, fitBoundsOptions: { padding: 20 }, maxZoom: 23, pitchWithRotate: false, dragRotate: false, canvasContextAttributes: { preserveDrawingBuffer: true },
    });
    this.map.touchZoomRotate.disableRotation();
    this.map.addControl(new maplibregl.NavigationControl({ showCompass: false }), "top-left");
    this.map.addControl(new maplibregl.ScaleControl(), "bottom-left");
    this.map.getCanvas().setAttribute("aria-label", "Map. Arrow keys move it, plus and minus zoom, 0 shows all of it, Enter selects what is in the middle, Escape lets go.");
    this.map.getCanvas().addEventListener("keydown", (event) => this.key(event));
    this.map.on("click", (event) => this.pick(event.point));
  }

  style() {
    const sources = { tiles: { type: "vector", url: `pmtiles://${new URL(this.data.tiles, location.href)}` } };
    const layers = [];
    for (const layer of this.layers) {
      const layout = { visibility: layer.visible ? "visible" : "none" };
      if (layer.kind === "raster") {
        const tiles = [new URL(layer.tiles, location.href).href.replaceAll("%7B", "{").replaceAll("%7D", "}")];
        sources[layer.id] = { type: "raster", tiles, tileSize: 256, bounds: this.data.bounds, maxzoom: layer.maxzoom };
        layers.push({ id: layer.id, type: "raster", source: layer.id, layout, paint: { "raster-opacity": layer.opacity, "raster-fade-duration": 0, "raster-resampling": layer.smooth ? "linear" : "nearest" } });
        continue;
      }
      const from = { source: "tiles", "source-layer": layer.id };
      layers.push({ id: `${layer.id}/fill`, type: "fill", ...from, layout, paint: { "fill-color": layer.paint.colour, "fill-opacity": 0.3 * layer.opacity } });
      layers.push({ id: `${layer.id}/line`, type: "line", ...from, layout, paint: { "line-color": layer.paint.colour, "line-width": 1.5, "line-opacity": layer.opacity } });
      for (const [part, colour, width] of [["under", "#000000", 6], ["over", "#ffffff", 3]]) {
        layers.push({ id: `${layer.id}/${part}`, type: "line", ...from, filter: false, paint: { "line-color": colour, "line-width": width } });
      }
    }
    return { version: 8, sources, layers };
  }

  parts(layer) {
    return layer.kind === "raster" ? [[layer.id, "raster-opacity", 1]] : [[`${layer.id}/fill`, "fill-opacity", 0.3], [`${layer.id}/line`, "line-opacity", 1]];
  }

  // What the panel changes, shown.
  draw() {
    for (const layer of this.layers) {
      for (const [id, opacity, share] of this.parts(layer)) {
        this.map.setLayoutProperty(id, "visibility", layer.visible ? "visible" : "none");
        this.map.setPaintProperty(id, opacity, layer.opacity * share);
      }
      if (layer.kind !== "shapes") continue;
      this.map.setPaintProperty(`${layer.id}/fill`, "fill-color", layer.paint.colour);
      this.map.setPaintProperty(`${layer.id}/line`, "line-color", layer.paint.colour);
    }
  }

  pick({ x, y }) {
    const fills = this.layers.filter((layer) => layer.kind === "shapes" && layer.visible).map((layer) => `${layer.id}/fill`);
    const found = this.map.queryRenderedFeatures([[x - 2, y - 2], [x + 2, y + 2]], { layers: fills });
    const inside = this.map.queryRenderedFeatures([x, y], { layers: fills });
    this.select((inside.length ? inside : found)[0] || null);
  }

  select(feature) {
    for (const layer of this.layers.filter((each) => each.kind === "shapes")) {
      const mine = feature && feature.sourceLayer === layer.id && feature.properties.id !== undefined;
      const filter = mine ? ["==", ["get", "id"], feature.properties.id] : false;
      for (const part of ["under", "over"]) this.map.setFilter(`${layer.id}/${part}`, filter);
    }
    this.onselect(feature);
  }

  key(event) {
    const canvas = this.map.getCanvas();
    const does = {
      Enter: () => this.pick({ x: canvas.clientWidth / 2, y: canvas.clientHeight / 2 }),
      0: () => this.map.fitBounds(this.data.bounds, { padding: 20, animate: false }),
      Escape: () => this.select(null),
    }[event.key];
    if (!does || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    does();
  }
}

function tilesRow(web, layer) {
  const name = `layer-${layer.id}`, redraw = () => web.draw(), key = make("div", { class: "key" });
  const box = make("input", { type: "checkbox", id: name, onchange: () => { layer.visible = box.checked; redraw(); } });
  box.checked = layer.visible;
  const slider = make("input", {
    type: "range", min: 0, max: 100, value: Math.round(layer.opacity * 100), "aria-label": `Opacity of ${layer.title}`,
    oninput: () => { layer.opacity = slider.value / 100; redraw(); },
  });
  const parts = [make("div", { class: "layer" }, make("label", { for: name }, box, " ", layer.title), slider)];
  const show = ({ ramp, legend }) => key.replaceChildren(ramp ? rampBar(ramp) : legendList(legend || []));
  show(layer.paint || layer);
  if (layer.columns && layer.columns.length) {
    const choice = make("select", {
      id: `by-${layer.id}`,
      onchange: () => { layer.paint = paintOf(layer.columns.find((c) => c.name === choice.value)); show(layer.paint); redraw(); },
    }, ...layer.columns.map((c) => make("option", { value: c.name, selected: c.name === layer.by }, c.name.replaceAll("_", " "))));
    parts.push(make("div", { class: "by" }, make("label", { for: choice.id }, "coloured by "), choice));
  }
  return make("li", {}, ...parts, key);
}

function told(feature) {
  const panel = document.querySelector("#attributes");
  if (!feature) {
    panel.replaceChildren(make("p", { class: "hint" }, "Click an outline."));
    return;
  }
  const rows = Object.entries(feature.properties).filter(([, value]) => value !== null && value !== "");
  panel.replaceChildren(make("table", {}, make("tbody", {}, ...rows.map(([name, value]) => make("tr", {},
    make("th", { scope: "row" }, name.replaceAll("_", " ")), make("td", {}, typeof value === "number" ? number(value) : String(value)))))));
}

function startWebMap() {
  const data = JSON.parse(document.querySelector("#tiles").textContent), notice = document.querySelector("#notice");
  const say = (text) => { notice.textContent = text; notice.hidden = false; };
  told(null);
  if (location.protocol === "file:") {
    say(`A browser reads parts of a file only from a server: geoseg serve ${data.file}, or put this page and ${data.file} on any host.`);
    return;
  }
  const web = new WebMap(document.querySelector("#webmap"), data);
  document.querySelector("#layers").replaceChildren(...web.layers.map((layer) => tilesRow(web, layer)).reverse());
  web.onselect = told;
  web.map.on("error", (event) => say(`The map cannot be read: ${event.error && event.error.message}`));
  window.geosegMap = web; // for whoever wants to drive the map from the console
}

startWebMap();
