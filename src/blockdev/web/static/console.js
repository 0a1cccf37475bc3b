// What pages do beside what the server says: the theme switch, times in the reader's zone, forms that are sent once.
"use strict";
(function () {
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
  document.addEventListener("htmx:load", (event) => localTimes(event.detail.elt));
  themeSwitch();
  localTimes(document);
  signInByCode();
})();
