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

  // what the page is about was deleted or renamed by somebody else: that is said, and nothing more is asked
  let isGone = false;
  function missed(status) {
    if (status !== 404 || isGone) return;
    isGone = true;
    toast("What this page shows is not there any more: it was deleted or renamed.", true, true);
  }
  document.addEventListener("htmx:responseError", (event) => missed(event.detail.xhr.status));
  document.addEventListener("htmx:beforeRequest", (event) => { if (isGone) event.preventDefault(); });

  // calls work every so many seconds while the page is seen
  function whileSeen(seconds, work) {
    const look = () => { if (!document.hidden && !isGone) work(); };
    setInterval(look, seconds * 1000);
    document.addEventListener("visibilitychange", look);
  }

  async function fetchJson(address) {
    const answer = await fetch(address, { headers: { Accept: "application/json" } });
    missed(answer.status);
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
    if (form.dataset.sent || (form.dataset.confirm && !confirm(form.dataset.confirm))) {
      event.preventDefault();
      return;
    }
    if (form.method !== "post") return;
    form.dataset.sent = "yes"; // a second click comes before the buttons are disabled
    setTimeout(() => { for (const button of form.querySelectorAll("button")) button.disabled = true; });
  });
  // out of the browser's memory: as it was then, perhaps of somebody who has signed out since
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

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

  // What happens comes by one stream for all tabs of a session: a browser has six connections to us, and with a stream of each
  // tab the seventh page would wait for ever.  Of the tabs that are seen, for a browser may stop others, the one that holds the
  // lock has the stream; it tells all.
  function listen() {
    const { live, session } = document.body.dataset;
    if (!live) return;
    const tabs = navigator.locks ? new BroadcastChannel(`live ${session}`) : null; // none by plain HTTP and another name than localhost
    let newest = "", isOver = false, told = null, waiting = 0;
    const part = (name, detail) => document.body.dispatchEvent(new CustomEvent(`live:${name}`, { bubbles: true, detail }));
    // a page whose figures stand still says so
    const say = (words) => { told?.remove(); told = words ? toast(words, true, true) : null; };
    const calm = () => { clearTimeout(waiting); waiting = 0; };
    const hears = {
      events(event, id) {
        newest = id;
        part("events", event);
        if (event.level !== "info") toast(event.message, event.level === "error");
      },
      jobs(jobs) { part("jobs", jobs); },
      open() {
        calm();
        say("");
        for (const name of ["events", "jobs"]) part(name, null); // what was before is not told
      },
      away() { waiting ||= setTimeout(() => say("blockdevd does not answer: what is shown stands still until it is back."), AWAY_MS); },
      over() {
        calm();
        isOver = true;
        leave?.(); // a tab that is opened later may have the stream again
        say("This page is no longer live: load it again.");
      },
    };
    const hear = ([name, ...given]) => { if (!isOver) hears[name](...given); };
    const tell = (...message) => { hear(message); tabs?.postMessage(message); };
    tabs?.addEventListener("message", (message) => hear(message.data));
    function open() {
      const source = new EventSource(newest ? `${live}?after=${newest}` : live);
      for (const name of ["events", "jobs"]) source.addEventListener(name, (message) => tell(name, JSON.parse(message.data), message.lastEventId));
      source.addEventListener("open", () => tell("open"));
      source.addEventListener("error", () => tell(source.readyState === EventSource.CLOSED ? "over" : "away"));
      return source;
    }
    let leave = null; // the stream, or the queue for it
    function enter() {
      const waits = new AbortController();
      let source = null, release = null;
      leave = () => {
        leave = null;
        calm();
        waits.abort();
        source?.close();
        release?.();
      };
      const hold = () => new Promise((resolve) => { [source, release] = [open(), resolve]; });
      if (tabs) navigator.locks.request(`live ${session}`, { signal: waits.signal }, hold).catch(() => {}); // it left before
      else hold(); // a stream of its own, which it tells nobody of: others have theirs
    }
    function follow() {
      if (document.hidden) leave?.();
      else if (!leave && !isOver) enter();
    }
    document.addEventListener("visibilitychange", follow);
    addEventListener("pagehide", () => leave?.());
    follow();
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
  document.addEventListener("htmx:afterSwap", scrollByKeyboard); // htmx:load comes some 20 ms later, and Tab would pass by until then
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
