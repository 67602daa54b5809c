"use strict";
(() => {
  const table = document.querySelector("#rows table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];

  // A cell sorts by its data-value where it has one, else by its text; what is empty comes last.
  const keyOf = (cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(text);
    return { text, number, empty: text === "", numeric: text !== "" && !Number.isNaN(number) };
  };
  const inOrder = (a, b) => (a.numeric && b.numeric ? a.number - b.number
    : a.text.localeCompare(b.text, undefined, { numeric: true }));
  const sortBy = (column, descending) => {
    const keyed = [...body.rows].map((row) => [keyOf(row.cells[column]), row]);
    keyed.sort(([a], [b]) => a.empty - b.empty || (descending ? inOrder(b, a) : inOrder(a, b)));
    body.append(...keyed.map(([, row]) => row));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(column, descending);
    });
  });

  const form = document.querySelector(".filters");
  const rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));
  const fits = ({ row, text }) => [...form.querySelectorAll("select")].every((select) => {
    const wanted = select.value;
    if (wanted === "") return true;
    const here = row.dataset[select.name];
    return select.name === "verdict" ? here.split(" ").includes(wanted) : here === wanted.slice(1);
  }) && text.includes(form.elements.search.value.trim().toLowerCase());
  const filter = () => {
    const shown = new Set();
    rows.forEach((entry) => {
      const keep = fits(entry);
      entry.row.classList.toggle("out", !keep);
      if (keep) shown.add(entry.row.dataset.index);
    });
    document.querySelectorAll("figure [data-row]").forEach((mark) => {
      mark.classList.toggle("out", !shown.has(mark.dataset.row));
    });
    document.querySelectorAll(".problem, .suite").forEach((group) => {
      group.classList.toggle("out", !group.querySelector("[data-row]:not(.out)"));
    });
    form.querySelector("output").textContent = `${shown.size} of ${rows.length} rows`;
  };
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  filter();

  // The browser's own tooltips are slow and unknown to touch screens.
  const tip = document.querySelector(".tip");
  const show = (event) => {
    const mark = event.target.closest?.(".plot [data-row]");
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - width - 6);
    const above = event.clientY - height - 12;
    tip.style.left = `${Math.max(6, left)}px`;
    tip.style.top = `${above > 6 ? above : event.clientY + 16}px`;
  };
  document.querySelectorAll(".plot [data-row]").forEach((mark) => {
    const title = mark.querySelector("title");
    mark.dataset.tip = title.textContent;
    title.remove();
  });
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
})();
