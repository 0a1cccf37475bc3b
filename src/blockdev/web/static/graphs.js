// Graphs of series over time: each <figure class="graph"> becomes a uPlot.  They have one range and one cursor; dragging over
// one zooms all, and asks the server for the finer numbers of that time.
//
//   <div class="ranges" data-series="ADDRESS">   buttons with data-seconds, one aria-pressed; a button with data-reset
//   <figure class="graph" data-title="IOPS" data-unit="iops" data-lines="COLUMN:Words:colour[:dash] ..." [data-stacked]>
//
// ADDRESS?since=&until= answers {"t": [seconds], COLUMN: [number or null]}.  Words: spaces are written _; colours are read,
// write, other, fourth.
"use strict";
(function () {
  const { show, whileSeen, fetchJson } = window.blockdev;
  const panel = document.querySelector("[data-series]");
  if (!panel || !window.uPlot) return;
  const figures = Array.from(document.querySelectorAll("figure.graph"));
  const buttons = Array.from(panel.querySelectorAll("[data-seconds]"));
  const reset = panel.querySelector("[data-reset]");
  const BINARY = ["size", "rate"], POWERS = Array.from({ length: 60 }, (_, at) => 2 ** at); // steps of axes
  const HEIGHT = 170, REFRESH_SECONDS = 10, ZOOM_SECONDS_MIN = 60;
  let seconds = Number((buttons.find((one) => one.getAttribute("aria-pressed") === "true") || buttons[0]).dataset.seconds);
  let zoom = null; // [since, until]
  let data = null;
  let asked = 0;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // of the axis of time: hours, and the day where it begins; or days alone
  const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });
  const two = (number) => String(number).padStart(2, "0");
  const ofDay = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
  const ofMonth = new Intl.DateTimeFormat(undefined, { month: "short", year: "numeric" });
  function clock(moments, step) {
    let before = null;
    return moments.map((moment) => {
      const time = new Date(moment * 1000), day = ofDay.format(time);
      if (step >= 20 * 86400) return ofMonth.format(time);
      if (step >= 86400) return day;
      const isNew = before !== null && before !== day;
      before = day;
      const text = `${two(time.getHours())}:${two(time.getMinutes())}${step < 60 ? `:${two(time.getSeconds())}` : ""}`;
      return isNew ? `${text}\n${day}` : text;
    });
  }

  class Graph {
    constructor(figure) {
      this.figure = figure;
      this.words = show[figure.dataset.unit] || show.count;
      this.short = figure.dataset.unit === "iops" || figure.dataset.unit === "count" ? show.short : this.words;
      this.isStacked = "stacked" in figure.dataset;
      this.lines = figure.dataset.lines.split(" ").map((text) => {
        const [column, words, hue, dash] = text.split(":");
        return { column, words: words.replaceAll("_", " "), hue, dash };
      });
      const caption = document.createElement("figcaption");
      caption.textContent = figure.dataset.title;
      this.box = document.createElement("div");
      this.said = document.createElement("p"); // what the cursor is at, for who does not see it
      this.said.className = "hidden-text";
      this.said.setAttribute("aria-live", "polite");
      figure.append(caption, this.box, this.said);
      figure.tabIndex = 0;
      figure.setAttribute("role", "group");
      figure.addEventListener("keydown", (event) => this.key(event));
      this.plot = null;
    }

    columns() {
      const found = this.lines.map((line) => data[line.column] || data.t.map(() => null));
      if (!this.isStacked) return [data.t, ...found];
      const sums = found.map((column) => column.slice());
      for (let at = sums.length - 2; at >= 0; at -= 1) {
        sums[at] = sums[at].map((value, place) => (value === null ? null : value + (sums[at + 1][place] || 0)));
      }
      return [data.t, ...sums];
    }

    // of the single parts, where lines are sums
    value(line, place) {
      const column = data[this.lines[line].column];
      return column && place !== null ? column[place] : null;
    }

    options() {
      const axis = { stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 }, font: "12px system-ui" };
      return {
        width: this.box.clientWidth || 320,
        height: HEIGHT,
        cursor: { sync: { key: "time" }, drag: { x: true, y: false, setScale: false }, points: { size: 6 } },
        scales: { x: { time: true, range: () => range() }, y: { range: (_plot, _low, high) => [0, high > 0 ? high * 1.08 : 1] } },
        axes: [
          { ...axis, values: (_plot, moments, _axis, _space, step) => clock(moments, step) },
          { ...axis, size: 72, incrs: BINARY.includes(this.figure.dataset.unit) ? POWERS : undefined, values: (_plot, values) => values.map((value) => this.short(value)) },
        ],
        series: [
          { value: (_plot, value) => (value === null ? "–" : moment.format(value * 1000)) },
          ...this.lines.map((line, at) => ({
            label: line.words,
            stroke: colour(line.hue),
            width: 1.5,
            dash: line.dash ? [5, 4] : undefined,
            fill: this.isStacked ? `color-mix(in srgb, ${colour(line.hue)} 35%, transparent)` : undefined,
            points: { size: 5, show: (plot, at) => plot.data[at].filter((value) => value !== null).length < 60 },
            value: (_plot, _value, _series, place) => this.words(this.value(at, place)),
          })),
        ],
        hooks: { setSelect: [(plot) => this.selected(plot)] },
      };
    }

    draw() {
      if (this.plot) this.plot.destroy();
      this.plot = new uPlot(this.options(), this.columns(), this.box);
      this.plot.over.addEventListener("dblclick", () => zoomTo(null));
      this.tell();
    }

    update() {
      if (!this.plot) this.draw();
      else this.plot.setData(this.columns());
      this.tell();
    }

    // what somebody hears who does not see the lines
    tell() {
      const parts = this.lines.map((line) => {
        const known = (data[line.column] || []).filter((value) => value !== null);
        if (!known.length) return `${line.words}: nothing known`;
        return `${line.words}: ${this.words(known[known.length - 1])} now, ${this.words(known.reduce((a, b) => Math.max(a, b)))} at most`;
      });
      this.figure.setAttribute("aria-label", `${this.figure.dataset.title}. ${parts.join("; ")}. Arrow keys move the cursor, + and - zoom.`);
    }

    // moves the cursor, in all graphs
    point(place) {
      const left = Math.min(Math.max(this.plot.valToPos(data.t[place], "x"), 0), this.plot.over.clientWidth);
      this.plot.setCursor({ left, top: HEIGHT / 3 }, true, true);
    }

    say(place) {
      const values = this.lines.map((line, at) => `${line.words} ${this.words(this.value(at, place))}`);
      this.said.textContent = `${moment.format(data.t[place] * 1000)}: ${values.join(", ")}`;
    }

    selected(plot) {
      const { left, width } = plot.select;
      plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
      if (width < 6) return;
      const since = plot.posToVal(left, "x"), until = plot.posToVal(left + width, "x");
      zoomTo(until - since < ZOOM_SECONDS_MIN ? [since, since + ZOOM_SECONDS_MIN] : [since, until]);
    }

    key(event) {
      const plot = this.plot;
      if (!plot || !data.t.length || event.ctrlKey || event.metaKey || event.altKey) return;
      const end = data.t.length - 1;
      const place = plot.cursor.idx === null || plot.cursor.idx === undefined ? end : plot.cursor.idx;
      const to = { ArrowLeft: place - 1, ArrowRight: place + 1, PageUp: place - 20, PageDown: place + 20, Home: 0, End: end }[event.key];
      const [since, until] = range(), width = until - since;
      if (to !== undefined) {
        const next = Math.min(Math.max(to, 0), end);
        this.point(next);
        this.say(next);
      } else if (event.key === "+" || event.key === "=") {
        this.zoomAround(data.t[place], width / 2);
      } else if (event.key === "-" && zoom && width * 2 < seconds) {
        this.zoomAround(data.t[place], width * 2);
      } else if (event.key === "-" || event.key === "Escape") {
        zoomTo(null);
        this.said.textContent = "The whole time is shown";
      } else {
        return;
      }
      event.preventDefault();
    }

    // the cursor stays at its moment; nothing is shown of what has not been yet
    async zoomAround(middle, width) {
      const whole = Math.max(width, ZOOM_SECONDS_MIN);
      const until = Math.min(middle + whole / 2, Date.now() / 1000), since = until - whole;
      this.said.textContent = `Shown: ${moment.format(since * 1000)} to ${moment.format(until * 1000)}`;
      await zoomTo([since, until]);
      const next = data.t.findIndex((time) => time >= middle);
      if (data.t.length) this.point(next < 0 ? data.t.length - 1 : next);
    }
  }

  const graphs = figures.map((figure) => new Graph(figure));

  function range() {
    if (zoom) return zoom;
    const now = Date.now() / 1000;
    return [now - seconds, now];
  }

  async function load() {
    const mine = (asked += 1);
    const [since, until] = zoom ? zoom.map(Math.round) : [-seconds, 0];
    try {
      const found = await fetchJson(`${panel.dataset.series}?since=${since}&until=${until}`);
      if (mine !== asked) return; // somebody has asked for another time meanwhile
      data = found;
      for (const graph of graphs) graph.update();
      panel.closest("section").removeAttribute("data-missing");
    } catch {
      panel.closest("section").dataset.missing = "yes";
    }
  }

  function zoomTo(next) {
    zoom = next;
    if (zoom === null && document.activeElement === reset) buttons.find((one) => one.getAttribute("aria-pressed") === "true").focus(); // it goes
    reset.hidden = zoom === null;
    return load();
  }

  for (const button of buttons) {
    button.addEventListener("click", () => {
      seconds = Number(button.dataset.seconds);
      for (const one of buttons) one.setAttribute("aria-pressed", String(one === button));
      zoomTo(null);
    });
  }
  reset.addEventListener("click", () => zoomTo(null));
  document.addEventListener("theme", () => { if (data) for (const graph of graphs) graph.draw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (data) for (const graph of graphs) graph.draw(); });
  let resizing = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(resizing);
    resizing = requestAnimationFrame(() => {
      for (const graph of graphs) if (graph.plot) graph.plot.setSize({ width: graph.box.clientWidth, height: HEIGHT });
    });
  });
  load();
  whileSeen(REFRESH_SECONDS, () => { if (!zoom) load(); });

  const figuresNow = document.querySelector("[data-now]");
  async function refreshNow() {
    const now = await fetchJson(figuresNow.dataset.now);
    for (const place of figuresNow.querySelectorAll("[data-figure]")) place.textContent = show[place.dataset.unit](now[place.dataset.figure]);
  }
  if (figuresNow) whileSeen(2, () => refreshNow().catch(() => {}));
})();
