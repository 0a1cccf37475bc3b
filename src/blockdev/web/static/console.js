// What pages do beside what the server says: the theme switch, times in the reader's zone, forms that are sent once, what
// happens as it happens, and the words of numbers for other scripts (blockdev.show).
"use strict";
window.blockdev = (function () {
  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  const AWAY_MS = 5000; // a stream that breaks is there again within 3 s
  const three = (value) => Number(value.toPrecision(3)).toString();

  // as rendering.py has them
  const show = {
    size(number) {
      if (number === null || number === undefined) return "–";
      let unit = 0;
      while (Math.abs(number) >= 1024 && unit < UNITS.length - 1) { number /= 1024; unit += 1; }
      return `${unit === 0 || Math.abs(number) >= 100 ? Math.round(number) : three(number)} ${UNITS[unit]}`;
    },
    rate(number) { return number === null || number === undefined ? "–" : `${show.size(number)}/s`; },
    count(number) {
      if (number === null || number === undefined) return "–";
      return Math.abs(number) >= 10 || Number.isInteger(number) ? Math.round(number).toLocaleString("en") : number.toFixed(1);
    },
    // for axes
    short(number) {
      if (number === null || number === undefined) return "";
      return number >= 1e6 ? `${three(number / 1e6)}M` : number >= 1e4 ? `${three(number / 1e3)}k` : number < 10 ? three(number) : show.count(number);
    },
    iops(number) { return number === null || number === undefined ? "–" : `${show.count(number)} IOPS`; },
    latency(number) {
      if (number === null || number === undefined) return "–";
      if (number < 1000) return `${number < 10 ? three(number) : Math.round(number)} µs`;
      return number < 1e6 ? `${three(number / 1000)} ms` : `${three(number / 1e6)} s`;
    },
    duration(number) {
      if (number === null || number === undefined) return "–";
      const [step, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([one]) => number >= one) || [1, "s"];
      return `${three(number / step)} ${unit}`;
    },
  };

  // calls work every so many seconds while the page is seen
  function whileSeen(seconds, work) {
    setInterval(() => { if (!document.hidden) work(); }, seconds * 1000);
    document.addEventListener("visibilitychange", () => { if (!document.hidden) work(); });
  }

  async function fetchJson(address) {
    const answer = await fetch(address, { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(`${answer.status} of ${address}`);
    return answer.json();
  }

  const root = document.documentElement;

  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function themeSwitch() {
    const button = document.getElementById("theme");
    if (!button) return;
    const tell = () => { button.textContent = isDark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Use ${isDark() ? "light" : "dark"} colours`); };
    button.hidden = false;
    tell();
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.setItem("theme", root.dataset.theme); } catch { /* for this page alone */ }
      tell();
      document.dispatchEvent(new CustomEvent("theme"));
    });
  }

  const zoned = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  function localTimes(within) {
    for (const time of within.querySelectorAll("time[datetime]")) {
      const moment = new Date(time.dateTime);
      if (!Number.isNaN(moment.getTime())) time.title = zoned.format(moment);
    }
  }

  // a code in the address is put into the form, where the person sees that it is there and presses the button: an address
  // that somebody sent signs nobody in by itself
  function signInByCode() {
    const form = document.getElementById("sign-in");
    const match = form && /^#code=([A-Za-z0-9_-]+)$/.exec(location.hash);
    if (!match) return;
    form.elements.token.value = match[1];
    history.replaceState(null, "", location.pathname + location.search);
    form.querySelector("button").focus();
  }

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.dataset.confirm && !confirm(form.dataset.confirm)) {
      event.preventDefault();
      return;
    }
    if (form.method === "post") setTimeout(() => { for (const button of form.querySelectorAll("button")) button.disabled = true; });
  });
  addEventListener("pageshow", (event) => {
    if (event.persisted) for (const button of document.querySelectorAll("form button")) button.disabled = false;
  });

  // who comes by a link from elsewhere has sent no cookie, which is for requests of our own pages: ask once more from here
  function returnIfSignedIn() {
    const form = document.getElementById("sign-in");
    if (!form || form.elements.token.value || document.querySelector("main .error")) return;
    fetchJson("/session").then((told) => { if (told.signed_in) location.replace(form.elements.to.value); }, () => {});
  }

  // stays: until it is removed by whoever said it
  function toast(words, isBad, stays) {
    const place = document.getElementById("live");
    const line = document.createElement("div");
    line.textContent = words;
    if (isBad) line.className = "bad";
    if (stays) line.dataset.stays = "yes";
    place.append(line);
    const passing = place.querySelectorAll(":scope > :not([data-stays])");
    if (passing.length > 4) passing[0].remove();
    if (!stays) setTimeout(() => line.remove(), 12000);
    return line;
  }

  function listen() {
    if (!document.body.dataset.live) return;
    const source = new EventSource(document.body.dataset.live);
    const tell = (name, detail) => document.body.dispatchEvent(new CustomEvent(`live:${name}`, { bubbles: true, detail }));
    source.addEventListener("events", (message) => {
      const event = JSON.parse(message.data);
      tell("events", event);
      if (event.level !== "info") toast(event.message, event.level === "error");
    });
    source.addEventListener("jobs", (message) => tell("jobs", JSON.parse(message.data)));
    // a page whose figures stand still says so
    let told = null, waiting = 0;
    const say = (words) => { told?.remove(); told = toast(words, true, true); };
    source.addEventListener("open", () => { clearTimeout(waiting); waiting = 0; told?.remove(); told = null; });
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) {
        clearTimeout(waiting);
        say("This page is no longer live: load it again.");
      } else if (!waiting) {
        waiting = setTimeout(() => say("blockdevd does not answer: what is shown stands still until it is back."), AWAY_MS);
      }
    });
    addEventListener("pagehide", () => { clearTimeout(waiting); source.close(); });
  }

  function copyButtons() {
    for (const button of document.querySelectorAll("[data-copy]")) {
      if (!navigator.clipboard) return;
      button.hidden = false;
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(button.parentElement.querySelector("pre").textContent);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 2000);
      });
    }
  }

  function addRows() {
    for (const button of document.querySelectorAll("[data-add-row]")) {
      const rows = document.getElementById(button.dataset.addRow);
      button.hidden = false;
      button.addEventListener("click", () => {
        const row = rows.lastElementChild.cloneNode(true);
        const number = rows.children.length + 1;
        for (const input of row.querySelectorAll("input")) {
          input.value = "";
          input.setAttribute("aria-label", input.getAttribute("aria-label").replace(/\d+$/, String(number)));
        }
        rows.append(row);
        row.querySelector("input").focus();
      });
    }
  }

  // a table that is wider than its place is reached and scrolled by keyboard, too
  function scrollByKeyboard() {
    for (const box of document.querySelectorAll(".scroll")) {
      if (box.scrollWidth > box.clientWidth) {
        const words = box.querySelector("caption") || box.closest("section")?.querySelector("h1, h2, h3") || document.querySelector("h1");
        box.tabIndex = 0;
        box.setAttribute("role", "group");
        box.setAttribute("aria-label", `${words ? words.textContent.trim() : "Table"}, to be scrolled sideways`);
      } else {
        for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
      }
    }
  }

  // Parts that come anew: what had the focus there has it afterwards; nothing goes away under a finger or key that is down;
  // what was asked for beside the newest stays.
  const focusable = "a[href], button, input, select, summary, [tabindex]";
  const likeness = (one) => [one.tagName, one.getAttribute("href"), one.form?.getAttribute("action"), one.name, one.getAttribute("aria-label") || one.textContent].join("|");
  let held = null;
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { target, elt } = event.detail;
    if ("kept" in target.dataset || target.querySelector(":active")) {
      event.detail.shouldSwap = false;
      return;
    }
    if (elt.matches("[data-older]")) target.parentElement.dataset.kept = "yes";
    const focused = document.activeElement;
    held = focused !== target && target.contains(focused) ? { place: target.parentElement, like: likeness(focused) } : null;
  });
  document.addEventListener("htmx:afterSwap", () => {
    if (!held) return;
    const { place, like } = held;
    held = null;
    const again = Array.from(place.querySelectorAll(focusable)).find((one) => likeness(one) === like);
    if (!again) place.tabIndex = -1; // it is gone: Tab goes on from where it was
    (again || place).focus({ preventScroll: true });
  });

  // A page with Cancel is a dialog: Escape leaves it; once something was typed it goes to Cancel only, and Enter leaves.
  // Whoever comes back from a page is where it was opened.
  function dialogs() {
    const leave = document.querySelector("[data-leave]");
    let isTouched = Boolean(document.querySelector("main .error"));
    document.addEventListener("input", () => { isTouched = true; });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !leave || event.defaultPrevented || event.isComposing) return;
      if (isTouched) leave.focus(); else leave.click();
    });
    const here = location.pathname;
    let came = null;
    try { came = JSON.parse(sessionStorage.getItem("came")); } catch { /* no storage, or not ours */ }
    if (came && here === came.from && !location.hash && !document.querySelector("main [autofocus]")) {
      Array.from(document.querySelectorAll("main a[href]")).find((link) => link.getAttribute("href") === came.by)?.focus();
    }
    document.addEventListener("click", (event) => {
      const link = event.target.closest("main a[href]");
      if (!link || link === leave || link.pathname === here) return;
      try { sessionStorage.setItem("came", JSON.stringify({ from: here, to: link.pathname, by: link.getAttribute("href") })); } catch { /* none */ }
    });
    if (came && here !== came.to) sessionStorage.removeItem("came");
  }

  document.addEventListener("htmx:load", (event) => { localTimes(event.detail.elt); scrollByKeyboard(); });
  addEventListener("resize", scrollByKeyboard);
  scrollByKeyboard();
  themeSwitch();
  localTimes(document);
  signInByCode();
  returnIfSignedIn();
  listen();
  copyButtons();
  addRows();
  dialogs();
  return { show, whileSeen, fetchJson };
})();
