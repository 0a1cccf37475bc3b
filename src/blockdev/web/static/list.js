// The list of VMs: sorts and filters in the browser, for a thousand rows at once, and keeps the figures fresh.
"use strict";
(function () {
  const table = document.getElementById("vms");
  const body = table.tBodies[0];
  const AT_ONCE = 100; // rows in the table; more come when its end is seen: laying a thousand out takes a second
  const more = document.getElementById("more");
  const end = document.getElementById("end");
  const rows = [...body.rows, ...(more ? more.content.querySelectorAll("tr") : [])].filter((row) => row.dataset.id);
  let order = rows; // as sorted,
  let fitting = rows; // and of these, what the filter lets through
  const heads = Array.from(table.tHead.rows[0].cells);
  const question = document.getElementById("q");
  const choice = document.getElementById("show");
  const { show, whileSeen, fetchJson } = window.blockdev;
  const LIVE = [[1, show.count], [2, show.rate], [3, show.latency], [4, show.size], [5, show.size]]; // columns of figures
  const collator = new Intl.Collator(undefined, { numeric: true });
  // what sorting and filtering need of all rows: made when the page is there and nothing else is to be done, or when it is needed
  const lazily = (make) => { let made = null; return () => (made ??= make()); };
  const names = lazily(() => new Map(rows.slice().sort((a, b) => collator.compare(a.cells[0].dataset.v, b.cells[0].dataset.v)).map((row, at) => [row, at])));
  const texts = lazily(() => new Map(rows.map((row) => [row, row.textContent.toLowerCase()])));
  (window.requestIdleCallback || setTimeout)(() => { names(); texts(); });
  let sorted = { column: 0, down: false };

  function key(row, column) {
    const text = row.cells[column].dataset.v;
    if (text === "") return null;
    return heads[column].classList.contains("n") ? Number(text) : text;
  }

  let matches = () => true;

  // the first rows that fit, in their order
  function fill() {
    fitting = order.filter(matches);
    body.replaceChildren(...fitting.slice(0, AT_ONCE));
    const vms = rows.length === 1 ? "1 VM" : `${show.count(rows.length)} VMs`;
    document.getElementById("shown").textContent = fitting.length === rows.length ? vms : `${show.count(fitting.length)} of ${vms}`;
    if (end) watch();
  }

  function grow() {
    const there = body.rows.length;
    body.append(...fitting.slice(there, there + AT_ONCE));
    if (body.rows.length < fitting.length) watch();
  }

  const seen = new IntersectionObserver((found) => { if (found.some((one) => one.isIntersecting)) grow(); }, { rootMargin: "600px" });
  function watch() {
    seen.unobserve(end);
    seen.observe(end);
  }

  function sort() {
    const { column, down } = sorted;
    const keyed = rows.map((row) => [key(row, column), row]);
    if (keyed.length && column === 0) for (const one of keyed) one[0] = names().get(one[1]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // what is not known comes last, either way
      const order = typeof a === "number" ? a - b : collator.compare(a, b);
      return down ? -order : order;
    });
    order = keyed.map(([, row]) => row);
    fill();
    heads.forEach((head, at) => {
      if (at === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  function filter() {
    const words = question.value.toLowerCase().split(/\s+/).filter(Boolean);
    const tag = choice.value;
    matches = (row) => {
      const text = texts().get(row);
      return words.every((word) => text.includes(word)) && (!tag || row.dataset.tags.split(" ").includes(tag));
    };
    fill();
    const address = new URL(location);
    for (const [name, value] of [["q", question.value], ["show", tag]]) {
      if (value) address.searchParams.set(name, value);
      else address.searchParams.delete(name);
    }
    history.replaceState(null, "", address);
  }

  // rows of VMs that were counted once and are no more: somebody else deleted them
  const counted = new Set(), gone = new Map();
  function tellGone(row) {
    if (!counted.has(row) || gone.has(row)) return;
    const mark = document.createElement("span");
    mark.className = "state bad";
    mark.textContent = "deleted";
    row.cells[0].querySelector("a").after(" ", mark);
    gone.set(row, mark);
  }

  async function refresh() {
    const now = await fetchJson("/figures");
    const isKnown = Object.keys(now.vms).length > 0; // else nothing is counted yet
    for (const row of rows) {
      const figures = now.vms[row.dataset.id];
      if (!figures) {
        if (isKnown) tellGone(row);
        continue;
      }
      counted.add(row);
      gone.get(row)?.remove();
      gone.delete(row);
      LIVE.forEach(([column, words], at) => {
        const cell = row.cells[column];
        const text = figures[at] === null ? "" : String(figures[at]);
        if (cell.dataset.v === text) return;
        cell.dataset.v = text;
        cell.textContent = words(figures[at]);
      });
      const tags = new Set(row.dataset.tags.split(" ").filter(Boolean));
      if (figures[0]) tags.add("busy"); else tags.delete("busy");
      row.dataset.tags = Array.from(tags).join(" ");
    }
    for (const [name, words] of [["iops", show.count], ["throughput", show.rate], ["latency", show.latency]]) {
      document.querySelector(`#glance [data-figure=${name}]`).textContent = words(now.pool[name]);
    }
    // rows do not move away under a pointer or a focus
    const isUsed = body.matches(":hover") || body.contains(document.activeElement);
    if (sorted.column >= 1 && sorted.column <= 5 && !isUsed) sort();
  }

  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const isNumber = head.classList.contains("n");
    sorted = { column, down: sorted.column === column ? !sorted.down : isNumber || column === 7 };
    sort();
  }));
  document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
  question.addEventListener("input", filter);
  choice.addEventListener("change", filter);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      question.focus();
    }
  });
  if (question.value || choice.value) filter();
  else if (end) watch();
  if (rows.length) whileSeen(5, () => refresh().catch(() => {}));
})();
