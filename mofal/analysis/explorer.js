"use strict";
/* The page of `mofal explore`: chemiscope, with a choice of atoms and a way from a cluster to where
   it was cut. What is drawn is `all`, a chemiscope dataset; `all.mofal` holds what chemiscope has no
   place for. */
(async () => {
  const get = (id) => document.getElementById(id);
  const complain = (text) => {
    get("said").textContent = text;
    get("said").style.display = "block";
  };

  async function unpack() {
    const packed = Uint8Array.from(atob(get("data").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  let all;
  try {
    all = await unpack();
  } catch (error) {
    get("selected").textContent = "";
    complain(`This page could not be read (${error}). It wants a browser of 2023 or later.`);
    return;
  }
  const own = all.mofal;
  for (const property of Object.values(all.properties)) {
    property.values = property.values.map((v) => (v === null ? NaN : v));
  }
  let visualizer = null;
  let shown = null; // row of `all` for every environment that is drawn
  let current = 0;

  function rowsOf(choice) {
    const [kind, what] = choice.split(":");
    const rows = all.environments.map((_, i) => i);
    if (kind === "element") return rows.filter((i) => own.element[i] === what);
    if (kind === "least") return own.least.slice(0, Number(what)).sort((a, b) => a - b);
    return rows;
  }

  function dataset(rows, choice) {
    const properties = {};
    const map = own.maps[choice.startsWith("element:") ? choice.slice(8) : "all"];
    const place = choice.startsWith("element:") ? (i) => own.rank[i] : (i) => i;
    ["PC 1", "PC 2"].forEach((name, j) => {
      properties[name] = {
        target: "atom",
        values: rows.map((i) => map[j][place(i)]),
        description: "principal component of the features of the atoms that are shown",
      };
    });
    for (const [name, property] of Object.entries(all.properties)) {
      if (name.startsWith("PC ")) continue;
      const values = rows.map((i) => property.values[i]);
      // chemiscope wants at least one number: what nothing shown has is no choice.
      const known = values.some((v) => typeof v !== "number" || Number.isFinite(v));
      if (known) properties[name] = { ...property, values };
      for (const option of get("colour").options) {
        if (option.value === name) option.disabled = !known;
      }
    }
    if (!(get("colour").value in properties)) get("colour").value = "element";
    return {
      meta: all.meta,
      structures: all.structures,
      environments: rows.map((i) => all.environments[i]),
      properties: properties,
      settings: settings(),
    };
  }

  function settings() {
    const name = get("colour").value;
    const view = own.views[name];
    const colour = { property: name, palette: view.palette };
    const atoms = view.element ? { property: "element" } : { property: name, palette: view.palette };
    if (view.limits) {
      [colour.min, colour.max] = view.limits;
      if (!view.element) [atoms.min, atoms.max] = view.limits;
    }
    return {
      target: "atom",
      map: {
        x: { property: "PC 1" }, y: { property: "PC 2" },
        color: colour, size: { factor: own.size }, markerOutline: false,
      },
      structure: [{
        color: atoms, unitCell: !own.large, keepOrientation: own.large,
        environments: {
          activated: true, center: own.large, cutoff: own.cutoff,
          bgColor: view.element ? "CPK" : "property",
          // Of a frame that is too large to draw, the surroundings of the chosen atom are drawn.
          bgStyle: own.large ? "hide" : "ball-stick",
        },
      }],
    };
  }

  function value(name, row) {
    const v = all.properties[name].values[row];
    if (typeof v !== "number") return v;
    if (Number.isNaN(v)) return "not known";
    return `${Number(v.toPrecision(3))} ${all.properties[name].units || ""}`.trimEnd();
  }

  function tell(row) {
    current = row;
    // After chemiscope has turned its own camera.
    if (own.large) setTimeout(() => approach(row), 50);
    const e = all.environments[row];
    const line = get("selected");
    line.textContent = "";
    const bold = document.createElement("b");
    bold.textContent = `${own.element[row]} ${e.center} of ${own.names[e.structure]}`;
    line.append(bold);
    const facts = own.told.map((name) => `${name} ${value(name, row)}`);
    if (facts.length) line.append(": " + facts.join(", "));
    line.dataset.row = row;
    get("jump").value = String(e.structure);
    const link = (text, target) => {
      const button = document.createElement("button");
      button.textContent = text;
      button.onclick = () => go(target);
      line.append(button);
    };
    const parent = own.parent[e.structure];
    if (parent >= 0 && own.parent_atom[row] >= 0) {
      link(`where it was cut: ${own.names[parent]}`, own.first[parent] + own.parent_atom[row]);
    }
    for (const child of (own.children[row] || []).slice(0, 6)) {
      link(own.names[all.environments[child].structure], child);
    }
  }

  /* chemiscope keeps the camera on the whole of a large frame; its surroundings are what is drawn. */
  function approach(row) {
    const { structure, center } = all.environments[row];
    const { x, y, z, size } = all.structures[structure];
    const near = [];
    for (let k = 0; k < size; k++) {
      const d = Math.hypot(x[k] - x[center], y[k] - y[center], z[k] - z[center]);
      if (d < own.cutoff) near.push(k);
    }
    for (const cell of visualizer.structure._cellsData?.values() ?? []) {
      const viewer = Object.values(cell).find((part) => part?._viewer?.zoomTo)?._viewer;
      viewer?.zoomTo({ index: near });
      viewer?.render();
    }
  }

  function go(row) {
    let place = shown.indexOf(row);
    if (place < 0) {
      get("which").value = "all";
      draw(row);
      return;
    }
    visualizer.select({ environment: place, structure: all.environments[row].structure, atom: all.environments[row].center });
    tell(row);
  }

  async function draw(row) {
    const choice = get("which").value;
    const rows = rowsOf(choice);
    shown = rows;
    if (visualizer !== null) visualizer.remove();
    for (const id of ["map", "structure", "info", "meta"]) get(id).textContent = "";
    const warnings = new Chemiscope.Warnings();
    warnings.addHandler((message) => console.warn(message));
    const config = { map: "map", structure: "structure", info: "info", meta: "meta" };
    const begin = performance.now();
    visualizer = await Chemiscope.DefaultVisualizer.load(config, dataset(rows, choice), warnings);
    const watch = (panel, event) => {
      const before = panel[event];
      panel[event] = (indexes) => {
        before(indexes);
        tell(shown[indexes.environment]);
      };
    };
    watch(visualizer.map, "onselect");
    watch(visualizer.structure, "onselect");
    watch(visualizer.info, "onchange");
    const first = rows.indexOf(row);
    go(first < 0 ? (own.least.find((i) => rows.includes(i)) ?? rows[0]) : row);
    window.explorer = { visualizer, rows, all, seconds: (performance.now() - begin) / 1000 };
  }

  const options = (select, entries) => {
    for (const [key, text] of entries) select.add(new Option(text, key));
  };
  options(get("colour"), Object.keys(own.views).map((name) => [name, name]));
  const elements = Object.keys(own.maps).filter((name) => name !== "all");
  options(get("which"), [
    ["all", `all (${all.environments.length})`],
    ...elements.map((name) => [`element:${name}`, `${name} (${own.maps[name][0].length}), on axes of their own`]),
    ...own.steps.map((n) => [`least:${n}`, `the ${n} least familiar`]),
  ]);
  options(get("jump"), own.names.map((name, i) => [String(i), name]));
  get("which").value = own.start;
  get("which").onchange = () => draw(current);
  get("colour").onchange = () => {
    const { map, structure } = settings();
    visualizer.map.applySettings({ color: map.color });
    visualizer.structure.applySettings([{ color: structure[0].color, environments: structure[0].environments }]);
  };
  get("jump").onchange = () => {
    const structure = Number(get("jump").value);
    const inside = own.least.find((i) => all.environments[i].structure === structure);
    go(inside ?? own.first[structure]);
  };
  try {
    await draw(-1);
  } catch (error) {
    complain(`chemiscope could not draw this: ${error}`);
    throw error;
  }
})();
