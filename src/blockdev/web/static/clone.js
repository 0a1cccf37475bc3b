// The clone dialog: which names there will be.
"use strict";
(function () {
  const form = document.getElementById("clone");
  const told = document.getElementById("told");
  const countField = form.elements.count;

  function name(pattern, number) {
    const match = /^([^#]*)(#*)(.*)$/.exec(pattern.includes("#") ? pattern : `${pattern}-#`);
    return `${match[1]}${String(number).padStart(match[2].length, "0")}${match[3]}`;
  }

  function tell() {
    const pattern = form.elements.names.value.trim();
    const count = Number(countField.value);
    if (!pattern || !(count >= 1)) told.textContent = "";
    else if (count === 1 && !pattern.includes("#")) told.textContent = `Makes ${pattern}.`;
    else if (count <= 3) told.textContent = `Makes ${Array.from({ length: count }, (_, at) => name(pattern, at + 1)).join(", ")}.`;
    else told.textContent = `Makes ${name(pattern, 1)}, ${name(pattern, 2)}, … ${name(pattern, count)}.`;
  }

  form.addEventListener("input", tell);
  form.elements.customize.addEventListener("change", (event) => {
    if (event.target.checked) form.querySelector("details").open = true;
  });
  tell();
})();
