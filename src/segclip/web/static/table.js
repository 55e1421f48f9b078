// The table of what was found, what was not, and the alternative text of the picture.

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const make = (kind, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...children);
  return element;
};
const hex = (colour) => `#${colour.map((one) => one.toString(16).padStart(2, "0")).join("")}`;

// acts: what happens when a row is used: hide(index, bool), alone(index), preview(index or null), colour(index, [r, g, b]).
export function fillTable(body, record, colours, hidden, acts) {
  body.replaceChildren(...record.found.map((found) => row(found, colours, hidden, acts)));
}

function row({ index, label, share, score }, colours, hidden, acts) {
  const bar = make("meter", { min: 0, max: 1, value: share });
  bar.setAttribute("aria-hidden", "true");
  const name = index ? make("button", { type: "button", className: "alone", textContent: label }) : make("span", { textContent: label });
  const cells = make("div", { className: "label" }, ...(index ? [tick(index, label, hidden, acts), swatch(index, label, colours, acts)] : []), name);
  const line = make("tr", { className: index ? "" : "none" }, make("th", { scope: "row" }, cells),
    make("td", { className: "share" }, bar, percent(share)), make("td", { className: "number", textContent: score.toFixed(2) }));
  line.dataset.index = index;
  if (!index) return line;
  name.setAttribute("aria-pressed", "false");
  name.title = "show it alone";
  name.addEventListener("click", () => acts.alone(index));
  line.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && acts.preview(index));
  line.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && acts.preview(null));
  return line;
}

function tick(index, label, hidden, acts) {
  const box = make("input", { type: "checkbox", checked: !hidden.has(index) });
  box.setAttribute("aria-label", `show ${label}`);
  box.addEventListener("change", () => acts.hide(index, !box.checked));
  return box;
}

function swatch(index, label, colours, acts) {
  const input = make("input", { type: "color", value: hex(colours[index]) });
  input.setAttribute("aria-label", `colour of ${label}`);
  input.addEventListener("input", () => acts.colour(index, [1, 3, 5].map((at) => parseInt(input.value.slice(at, at + 2), 16))));
  return input;
}

export function markAlone(body, alone) {
  for (const line of body.rows) {
    line.querySelector(".alone")?.setAttribute("aria-pressed", String(Number(line.dataset.index) === alone));
  }
}

// For each label that was not found: that it was not, and how to look for it anyway; for one that is looked for anyway,
// how not to. anyway: null: every label is looked for; else the names of those that are, wherever they seem to be.
export function fillMissing(list, record, anyway, lookAnyway) {
  const absent = (label) => anyway && record.presence[label] < 0.5;
  const shown = record.labels.filter((label) => record.not_found.includes(label) || (absent(label) && anyway.includes(label)));
  list.replaceChildren(...shown.map((label) => {
    const item = make("li", {}, make("b", { textContent: label }));
    if (!record.not_found.includes(label)) item.append(" looked for, though it seems not to be in the photo. ");
    else if (absent(label) && !anyway.includes(label)) item.append(" not found: it seems not to be in the photo. ");
    else item.append(" not found: other labels fit better everywhere. ");
    if (absent(label)) {
      const looked = anyway.includes(label);
      const button = make("button", { type: "button", textContent: looked ? "Leave it out" : "Look for it anyway" });
      button.addEventListener("click", () => lookAnyway(label, !looked));
      item.append(button);
    }
    return item;
  }));
}

// What a person who does not see the picture needs to know.
export function describe(name, record) {
  const found = record.found.map(({ label, share }) => `${label} ${percent(share)}`).join(", ");
  const missing = record.not_found.length ? `; not found: ${record.not_found.join(", ")}` : "";
  return `${name}, segmented: ${found}${missing}`;
}
