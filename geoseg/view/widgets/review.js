// The review of footprints: what is shown and which key says what. What is said is kept by the kernel.

const SVG = "http://www.w3.org/2000/svg";
const WORDS = { accept: "Accepted", reject: "Rejected", relabel: "Relabelled", skip: "Skipped", undo: "Taken back", view: "All right" };

function element(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// The order is that of the buttons; a key is what KeyboardEvent.key says.
function actions(classes) {
  const relabel = (classes.length > 1 ? classes.slice(0, 9) : []).map((label, i) => ({ does: "relabel", label, text: `Is ${label}`, key: `${i + 1}` }));
  return [
    { does: "accept", text: "Accept", key: "a" },
    { does: "reject", text: "Reject", key: "r" },
    ...relabel,
    { does: "skip", text: "Skip", key: "s" },
    { does: "undo", text: "Back", key: "b" },
    { does: "view", text: "All in view is right", key: "v" },
    { does: "outlines", text: "Hide outlines", key: "h" },
  ];
}

function render({ model, el }) {
  const stage = element("div", { class: "stage" });
  const facts = element("dl", { class: "facts" });
  const bar = element("progress", { "aria-label": "Footprints looked at" });
  const count = element("p", { class: "count" });
  const note = element("p", { class: "note" });
  const said = element("p", { class: "said", role: "status", "aria-live": "polite" });
  const buttons = element("div", { class: "buttons", role: "toolbar", "aria-label": "What is it?" });
  const side = element("div", { class: "side" }, element("div", { class: "done" }, bar, count), facts, buttons, said, note);
  const root = element("section", {
    class: "geoseg-review", tabindex: "0", "aria-label": "Review of footprints",
    "data-lm-suppress-shortcuts": "true", // JupyterLab would take the keys for its own
  }, stage, side);
  let waiting = false;

  function act(action) {
    if (action.does === "outlines") {
      const hidden = root.classList.toggle("bare");
      buttons.querySelector("[data-does=outlines]").setAttribute("aria-pressed", String(hidden));
      return;
    }
    if (waiting || (action.does !== "undo" && !model.get("piece").id)) return;
    waiting = true;
    model.send({ does: action.does, label: action.label || null, id: model.get("piece").id || null });
  }

  function drawButtons() {
    const all = actions(model.get("classes"));
    buttons.replaceChildren(...all.map((action) => {
      const key = element("kbd", { "aria-hidden": "true" }, action.key.toUpperCase());
      const made = element("button", { type: "button", "data-does": action.does, "aria-keyshortcuts": action.key }, action.text, key);
      if (action.does === "outlines") made.setAttribute("aria-pressed", String(root.classList.contains("bare")));
      made.addEventListener("click", () => act(action));
      return made;
    }));
    return all;
  }

  let known = drawButtons();
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const action = known.find((each) => each.key === event.key.toLowerCase());
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    if (!event.repeat) act(action);
  });

  let address = null;
  function picture(side) {
    if (address) URL.revokeObjectURL(address);
    const bytes = model.get("picture");
    address = bytes && bytes.byteLength ? URL.createObjectURL(new Blob([bytes], { type: "image/webp" })) : null;
    return address ? [element("svg:image", { href: address, width: side, height: side })] : [];
  }

  function drawPiece() {
    const piece = model.get("piece");
    waiting = false;
    root.classList.toggle("finished", !piece.id);
    if (!piece.id) {
      stage.replaceChildren(element("p", { class: "end" }, "Everything has been looked at."));
      facts.replaceChildren();
      return;
    }
    const twice = (path, kind) => [
      element("svg:path", { d: path, class: `dark ${kind}` }), element("svg:path", { d: path, class: `light ${kind}` }),
    ];
    stage.replaceChildren(element("svg:svg", { viewBox: `0 0 ${piece.side} ${piece.side}`, role: "img", "aria-label": piece.title },
      ...picture(piece.side),
      ...piece.others.map(([path, state]) => element("svg:path", { d: path, class: `other ${state}` })),
      ...twice(piece.outline, "asked")));
    facts.replaceChildren(...piece.told.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
  }

  function drawProgress() {
    const { done, count: all, accept, reject, relabel, skip } = model.get("progress");
    bar.max = Math.max(all, 1);
    bar.value = done;
    count.textContent = `${done.toLocaleString("en")} of ${all.toLocaleString("en")}: ${accept} accepted, ${reject} rejected, ${relabel} relabelled, ${skip} skipped`;
  }

  function drawSaid() {
    const { does, label, error } = model.get("said");
    said.textContent = error || (does ? `${WORDS[does] || does}${label ? `: ${label}` : ""}.` : "");
    said.classList.toggle("wrong", Boolean(error));
    waiting = false;
  }

  const drawNote = () => { note.textContent = model.get("note"); };
  const watched = [
    ["change:piece", drawPiece], ["change:progress", drawProgress], ["change:said", drawSaid], ["change:note", drawNote],
    ["change:classes", () => { known = drawButtons(); }],
  ];
  for (const [name, draw] of watched) {
    model.on(name, draw);
    if (name !== "change:classes") draw();
  }
  el.append(root);
  return () => {
    for (const [name, draw] of watched) model.off(name, draw);
    if (address) URL.revokeObjectURL(address);
  };
}

export default { render };
