"use strict";
// The leaderboard: a button in the header sorts the models of each dataset; models without the value stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const sort = (head) => {
    const before = head.getAttribute("aria-sort");
    const order = before ? (before === "ascending" ? "descending" : "ascending") : (head.dataset.first === "lowest" ? "ascending" : "descending");
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const key = head.dataset.key, sign = order === "ascending" ? 1 : -1;
    const bodies = [...table.tBodies], datasets = [...new Set(bodies.map((body) => body.dataset.dataset))];
    if (key === "dataset") datasets.sort((a, b) => sign * a.localeCompare(b));
    const value = (body) => JSON.parse(body.dataset.values)[key];
    const compare = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
    };
    const place = (body) => datasets.indexOf(body.dataset.dataset);
    bodies.sort((a, b) => place(a) - place(b) || compare(value(a), value(b)));
    table.append(...bodies);
  };
  heads.forEach((head) => head.querySelector("button").addEventListener("click", () => sort(head)));
}

// The faces behind a cell of a confusion matrix.
const dialog = document.getElementById("faces");
if (dialog) {
  const { images, cells } = JSON.parse(document.getElementById("faces-data").textContent);
  const element = (name, values, ...children) => {
    const one = Object.assign(document.createElement(name), values);
    one.append(...children);
    return one;
  };
  const figure = (face, cell) => {
    const told = `${face.sample_id}: labeled ${cell.actual}, predicted ${cell.predicted}`;
    const shown = [element("img", { src: images[face.image], alt: told })];
    if (face.cam !== null) shown.push(element("img", { src: images[face.cam], alt: `Grad-CAM of ${face.sample_id}` }));
    const sure = element("b", {}, `${(100 * face.confidence).toFixed(1)} %`);
    return element("figure", {}, ...shown, element("figcaption", {}, sure, ` ${face.sample_id}`));
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-cell]");
    if (!button) return;
    const cell = button.dataset, faces = cells[cell.result][cell.cell];
    dialog.querySelector("h2").textContent = `${cell.actual} predicted as ${cell.predicted}`;
    dialog.querySelector("p").textContent =
      `${cell.model}: the ${faces.length} most confident of ${cell.count}, each with the probability of the wrong class`;
    dialog.querySelector("div").replaceChildren(...faces.map((face) => figure(face, cell)));
    dialog.showModal();
  });
}
