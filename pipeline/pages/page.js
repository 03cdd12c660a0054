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

  for (const table of document.querySelectorAll(".sortable")) {
    const heads = [...table.querySelectorAll("thead th")], body = table.querySelector("tbody");
    const value = (row, at) => { const cell = row.cells[at]; return cell && "value" in cell.dataset ? cell.dataset.value : ""; };
    heads.forEach((head, at) => {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending", order = new Intl.Collator(undefined, { numeric: true });
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const number = (text) => text !== "" && isFinite(text);
        const compare = (a, b) => number(a) && number(b) ? a - b : order.compare(a, b);
        const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * compare(value(a, at), value(b, at)));
        body.append(...rows);
      });
    });
  }

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
