// The reader's choice of light or dark, before anything is shown; without one the system's.
"use strict";
(function () {
  try {
    const chosen = localStorage.getItem("theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch { /* no storage: the system's */ }
})();
