"use strict";
(() => {
  const root = document.documentElement, button = document.getElementById("theme"), tip = document.getElementById("tip");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const shown = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const label = () => { button.textContent = shown() === "dark" ? "Light" : "Dark"; };
  button.addEventListener("click", () => { root.dataset.theme = shown() === "dark" ? "light" : "dark"; label(); });
  dark.addEventListener("change", label);
  button.hidden = false;
  label();
  for (const hint of document.querySelectorAll(".scripted")) hint.hidden = false;

  const tell = (mark) => { tip.hidden = !mark; tip.textContent = mark ? mark.dataset.tip : ""; };
  document.addEventListener("pointerover", (event) => tell(event.target.closest && event.target.closest("[data-tip]")));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tell(null); });

  for (const list of document.querySelectorAll(".tokens, .chart")) {
    const items = [...list.querySelectorAll("[data-tip]")];
    let at = -1;
    const go = (to) => {
      if (items[at]) items[at].classList.remove("here");
      at = to;
      if (items[at]) { items[at].classList.add("here"); items[at].scrollIntoView({ block: "nearest" }); }
      tell(items[at] || null);
    };
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      go(Math.min(items.length - 1, Math.max(0, at + step)));
    });
    list.addEventListener("blur", () => go(-1));
  }
})();
