"use strict";
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const views = {};
  const chosen = { pair: 0, swapped: false, metric: null };
  const FACET = 128;

  // Rows were packed as columns, and their words as numbers.
  const rowsOf = (columns) => {
    const keys = Object.keys(columns);
    if (!keys.length) return [];
    const lists = keys.map((key) => {
      const column = columns[key];
      return Array.isArray(column) ? column : column.indices.map((index) => column.words[index]);
    });
    return lists[0].map((_, row) => Object.fromEntries(keys.map((key, index) => [key, lists[index][row]])));
  };
  for (const figure of Object.values(content.figures)) {
    for (const name of Object.keys(figure.spec.datasets)) {
      figure.spec.datasets[name] = rowsOf(figure.spec.datasets[name]);
    }
  }

  for (const map of content.maps || []) map.rows = rowsOf(map.rows);

  // ---- what is kept when the page reloads itself -------------------------------------------------------
  const memory = {
    key: "report:" + location.pathname,
    read() {
      try { return JSON.parse(sessionStorage.getItem(this.key)) || {}; } catch { return {}; }
    },
    keep(values) {
      try { sessionStorage.setItem(this.key, JSON.stringify({ ...this.read(), ...values })); } catch { /* no storage */ }
    },
  };

  // ---- figures -----------------------------------------------------------------------------------------
  const isMap = (name) => name.startsWith("map_");

  function fitted(name, element) {
    const spec = structuredClone(content.figures[name].spec);
    const width = element.clientWidth;
    if (spec.facet) {
      const inner = spec.spec, grid = spec.facet.column;
      const across = grid ? new Set(spec.datasets.curves.map((row) => row.x)).size : 0;
      const columns = grid ? across : Math.max(1, Math.min(spec.columns, Math.floor((width - 45) / (FACET * 0.7))));
      if (!grid) spec.columns = columns;
      inner.width = Math.max(grid ? 44 : 70, Math.min(240, Math.floor((width - (grid ? 110 : 50)) / columns) - 16));
      const side = grid || spec.facet;
      side.header = { ...side.header, labelLimit: inner.width };
      for (const layer of inner.layer || []) if (layer.mark.type === "text") layer.encoding.x.value = inner.width / 2;
      if (chosen.metric) spec.params.find((param) => param.name === "metric").value = chosen.metric;
      return spec;
    }
    if (isMap(name)) {
      const rows = mapRows();
      const columns = new Set(rows.map((row) => row.x)).size;
      spec.datasets.cells = rows;
      const [x, y] = axes();
      for (const layer of spec.layer) {
        layer.encoding.x.title = x;
        layer.encoding.y.title = y;
        for (const each of [].concat(layer.encoding.tooltip || [])) {
          if (each.field === "x") each.title = x;
          if (each.field === "y") each.title = y;
        }
      }
      const label = Math.max(...rows.map((row) => row.y.length));
      const beside = Math.max(90, 50 + 6 * Math.min(label, 30)); // the vertical axis
      spec.width = Math.max(120, Math.min(width - beside, 84 * columns));
      const cell = spec.width / columns;
      for (const layer of spec.layer) {
        if (layer.mark.type === "text") layer.mark.fontSize = cell < 34 ? 9 : 12;
        if (layer.encoding.x.axis) layer.encoding.x.axis.labelLimit = cell - 4;
      }
      for (const layer of spec.layer) {
        const legend = layer.encoding.shape && layer.encoding.shape.legend;
        if (legend) legend.columns = width < 420 ? 2 : 3;
      }
      return spec;
    }
    spec.width = width;
    spec.autosize = { type: "fit-x", contains: "padding" };
    return spec;
  }

  async function embed(name) {
    const element = document.querySelector(`[data-figure="${name}"]`);
    if (views[name]) views[name].finalize();
    views[name] = await vegaEmbed(element, fitted(name, element), {
      mode: "vega-lite",
      actions: false,
      renderer: content.figures[name].renderer,
      config: content.themes[dark.matches ? "dark" : "light"],
      tooltip: { theme: dark.matches ? "dark" : "light" },
    });
    if (isMap(name)) equip(name, element);
  }

  async function embedAll(names = Object.keys(content.figures)) {
    document.body.dataset.ready = "false";
    for (const name of names) await embed(name);
    document.body.dataset.ready = "true";
  }

  // ---- phase diagram -----------------------------------------------------------------------------------
  const axes = () => {
    const { x, y } = content.maps[chosen.pair];
    return chosen.swapped ? [y, x] : [x, y];
  };
  const mapRows = () => content.maps[chosen.pair].rows.map((row) => chosen.swapped
    ? { ...row, x: row.y, y: row.x, xi: row.yi, yi: row.xi } : row);

  function equip(name, element) {
    const panel = element.parentElement.querySelector(".cell-numbers");
    panel.hidden = false;
    panel.replaceChildren("Point at a cell, or select it with the Tab and arrow keys, to see its numbers.");
    const cells = [...element.querySelectorAll(".cells_marks path")];
    const at = (cell) => cell.__data__.datum;
    cells.forEach((cell, index) => {
      cell.setAttribute("tabindex", index === 0 ? "0" : "-1");
      cell.setAttribute("role", "button");
      cell.setAttribute("aria-label", at(cell).label);
      cell.addEventListener("focus", () => describe(panel, at(cell)));
      cell.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          open(panel, at(cell));
        }
        const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
        if (step) {
          event.preventDefault();
          const next = nearest(cells, at(cell), step);
          if (next) {
            cells.forEach((each) => each.setAttribute("tabindex", "-1"));
            next.setAttribute("tabindex", "0");
            next.focus();
          }
        }
      });
    });
    const view = views[name].view;
    view.addEventListener("pointerover", (event, item) => item && item.datum && item.datum.runs && describe(panel, item.datum));
    view.addEventListener("click", (event, item) => {
      if (item && item.datum && item.datum.runs) open(panel, item.datum, event.pointerType === "touch");
    });
  }

  function nearest(cells, from, [dx, dy]) {
    let best = null, least = Infinity;
    for (const cell of cells) {
      const to = cell.__data__.datum;
      const along = dx ? (to.xi - from.xi) * dx : (to.yi - from.yi) * dy;
      const across = dx ? Math.abs(to.yi - from.yi) : Math.abs(to.xi - from.xi);
      const distance = along + 100 * across;
      if (along > 0 && distance < least) [best, least] = [cell, distance];
    }
    return best;
  }

  function describe(panel, cell) {
    const [x, y] = axes();
    const values = y ? `${x} ${cell.x}, ${y} ${cell.y}` : `${x} ${cell.x}`;
    const text = document.createElement("p");
    text.style.margin = "0";
    const numbers = Object.entries(content.measures).map(([name, brief]) => `${brief} ${cell[name + "_text"]}`);
    text.textContent = `${values}: ${cell.outcomes}; ${numbers.join("; ")}.`;
    const list = document.createElement("ul");
    for (const index of cell.runs.slice(0, 50)) {
      const run = content.runs[index];
      const item = document.createElement("li");
      const link = document.createElement("a");
      link.href = run.href;
      link.textContent = run.label;
      item.append(link, `: ${run.outcome}`, run.evidence ? `; ${run.evidence}` : "");
      list.append(item);
    }
    panel.replaceChildren(text, list);
    if (cell.runs.length > 50) panel.append(`and ${cell.runs.length - 50} more; see the table of all runs.`);
  }

  function open(panel, cell, ask = false) {
    describe(panel, cell);
    const only = content.runs[cell.runs[0]].href;
    if (cell.runs.length === 1 && !ask && only.endsWith(".html")) location.href = only;
    else panel.querySelector("a").focus();
  }

  async function showPair() {
    const pair = content.maps[chosen.pair];
    document.getElementById("averaged").textContent = pair.averaged;
    const [x, y] = axes();
    for (const name of Object.keys(content.figures).filter(isMap)) {
      const figure = document.getElementById(`figure-${name}`);
      const table = figure.querySelector("table");
      const title = figure.querySelector("h3").textContent;
      content.figures[name].spec.description = `${title} over ${x} and ${y}; the numbers are in the table below.`;
      table.tHead.rows[0].cells[0].textContent = x;
      table.tHead.rows[0].cells[1].textContent = y;
      table.tBodies[0].replaceChildren(...mapRows().map((row) => {
        const line = document.createElement("tr");
        for (const key of ["x", "y", "outcomes", ...content.columns.map((name) => `${name}_text`), "n"]) {
          line.insertCell().textContent = row[key];
        }
        return line;
      }));
    }
    memory.keep({ pair: chosen.pair, swapped: chosen.swapped });
    await embedAll(Object.keys(content.figures).filter(isMap));
  }

  // ---- table -------------------------------------------------------------------------------------------
  function equipTable() {
    const table = document.getElementById("runs");
    if (!table) return;
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, text: `${row.dataset.words} ${row.textContent}`.toLowerCase() }));
    const filter = document.getElementById("filter"), outcome = document.getElementById("outcome");
    const heads = [...table.tHead.rows[0].cells];
    const key = (row, column) => {
      const cell = row.cells[column], text = cell.dataset.key ?? cell.textContent;
      const value = text === "" ? NaN : Number(text);
      return Number.isNaN(value) ? text : value;
    };
    const compare = (a, b, direction) => {
      if (a === "" || b === "") return (a === "") - (b === "");  // missing values stay at the end
      if (typeof a === "number" && typeof b === "number") return (a - b) * direction;
      if (typeof a !== typeof b) return (typeof a === "number" ? -1 : 1) * direction;
      return a.localeCompare(b, undefined, { numeric: true }) * direction;
    };
    const show = () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      // key=value matches the entire value; anything else may be part of a word
      const has = (text, word) => word.includes("=")
        ? text.split(/\s+/).some((each) => each === word || each.endsWith(`.${word}`)) : text.includes(word);
      let shown = 0;
      for (const { row, text } of rows) {
        const fits = (!outcome.value || row.dataset.outcome === outcome.value) && words.every((word) => has(text, word));
        row.hidden = !fits;
        shown += fits;
      }
      document.getElementById("shown").textContent = `${shown} of ${rows.length} runs`;
      memory.keep({ filter: filter.value, outcome: outcome.value });
    };
    const sort = (column, direction) => {
      heads.forEach((head, index) => {
        if (index === column) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      });
      const keyed = rows.map(({ row }) => [key(row, column), row]);
      keyed.sort((a, b) => compare(a[0], b[0], direction));
      body.append(...keyed.map(([, row]) => row));
      memory.keep({ column, direction });
    };
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      sort(column, head.getAttribute("aria-sort") === "descending" ? 1 : head.getAttribute("aria-sort") === "ascending" ? -1 : startWith(column));
    }));
    const startWith = (column) => ("bestFirst" in heads[column].dataset ? -1 : 1);
    filter.addEventListener("input", show);
    outcome.addEventListener("change", show);
    const before = memory.read();
    if (before.filter || before.outcome) {
      filter.value = before.filter || "";
      outcome.value = before.outcome || "";
      show();
    }
    if (before.column !== undefined && heads[before.column]) sort(before.column, before.direction);
  }

  // ---- controls ----------------------------------------------------------------------------------------
  function equipControls() {
    const before = memory.read();
    const across = document.getElementById("across"), up = document.getElementById("up");
    const metric = document.getElementById("metric");
    const choose = (changed, other) => {
      const find = (x, y) => content.maps.findIndex((map) => map.x === x && map.y === y);
      if (changed.value === other.value) {  // one axis twice: change the other one
        const free = [...other.options].map((option) => option.value).filter((value) => value !== changed.value);
        other.value = free.find((value) => find(value, changed.value) >= 0 || find(changed.value, value) >= 0) || free[0];
      }
      const there = find(across.value, up.value), turned = find(up.value, across.value);
      if (there >= 0 || turned >= 0) {
        chosen.pair = there >= 0 ? there : turned;
        chosen.swapped = there < 0;
        showPair();
      }
      [across.value, up.value] = axes();
    };
    if (across) {
      across.addEventListener("change", () => choose(across, up));
      up.addEventListener("change", () => choose(up, across));
      document.getElementById("swap").addEventListener("click", () => {
        chosen.swapped = !chosen.swapped;
        [across.value, up.value] = axes();
        showPair();
      });
      [across.value, up.value] = axes();
    }
    if (metric) {
      if ([...metric.options].some((option) => option.value === before.metric)) metric.value = before.metric;
      chosen.metric = metric.value;
      metric.addEventListener("change", () => {
        chosen.metric = metric.value;
        memory.keep({ metric: metric.value });
        views.curves.view.signal("metric", metric.value).runAsync();
      });
    }
    if (across && before.pair !== undefined && content.maps[before.pair]) {
      chosen.pair = before.pair;
      chosen.swapped = before.swapped;
      [across.value, up.value] = axes();
      return true;
    }
    return false;
  }

  function equipRefresh() {
    const seconds = Number(document.body.dataset.refresh);
    if (!seconds) return;
    const button = document.getElementById("refresh-button"), text = document.getElementById("refresh-text");
    let timer = setTimeout(() => location.reload(), seconds * 1000);
    button.addEventListener("click", () => {
      const paused = timer !== null;
      if (paused) { clearTimeout(timer); timer = null; } else location.reload();
      button.textContent = "Resume";
      text.textContent = "Still running: reloading is paused.";
    });
  }

  equipTable();
  const another = equipControls();
  equipRefresh();
  if (window.vegaEmbed) {
    embedAll().then(() => another && showPair());
    dark.addEventListener("change", () => embedAll());
    let width = window.innerWidth, later = 0;
    window.addEventListener("resize", () => {
      if (window.innerWidth === width) return;
      width = window.innerWidth;
      clearTimeout(later);
      later = setTimeout(() => embedAll(), 200);
    });
  } else {
    document.body.dataset.ready = "true";
  }
})();
