// The labels as chips: a comma, a new line or Enter ends one; the last ones are remembered.
const REMEMBERED = "segclip.labels";

export class Labels {
  constructor({ list, input, most, longest, changed, complain }) {
    Object.assign(this, { list, input, most, longest, changed, complain });
    this.names = [];
    input.addEventListener("input", () => {
      if (/[,\n]/.test(input.value)) this.commit(false);
    });
    input.addEventListener("paste", (event) => {
      const text = event.clipboardData.getData("text");
      if (!/\n/.test(text)) return; // an input drops line ends
      event.preventDefault();
      input.value += text.replace(/[\r\n]+/g, ",");
      this.commit(true);
    });
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && input.value.trim()) {
        event.preventDefault();
        this.commit(true);
      } else if (event.key === "Backspace" && !input.value && this.names.length) {
        this.remove(this.names.length - 1);
      }
    });
  }

  // What was typed becomes chips; without `all`, what follows the last comma stays to be typed on.
  commit(all) {
    const parts = this.input.value.split(/[,\n]/);
    this.input.value = all ? "" : parts.pop().trimStart();
    this.add(parts);
  }

  add(names) {
    const before = this.names.length;
    for (const given of names) {
      const name = given.trim().replace(/\s+/g, " ");
      const known = this.names.some((other) => other.toLowerCase() === name.toLowerCase());
      if (!name || known) continue;
      if (name.length > this.longest) this.complain(`“${name.slice(0, 30)}…” is longer than ${this.longest} letters.`);
      else if (name.toLowerCase() === "background") this.complain("“background” is what no label fits; it needs no label.");
      else if (this.names.length >= this.most) this.complain(`At most ${this.most} labels; remove some to add others.`);
      else this.names.push(name);
    }
    if (this.names.length !== before) this.update();
  }

  set(names) {
    this.names = [];
    this.add(names);
    if (!names.length) this.update();
  }

  remove(index) {
    this.names.splice(index, 1);
    this.update();
    (this.list.querySelectorAll("button")[index] || this.input).focus();
  }

  update() {
    this.list.replaceChildren(...this.names.map((name, index) => {
      const chip = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "×";
      button.setAttribute("aria-label", `remove ${name}`);
      button.addEventListener("click", () => this.remove(index));
      chip.append(name, button);
      return chip;
    }));
    try {
      localStorage.setItem(REMEMBERED, JSON.stringify(this.names));
    } catch { /* a browser that stores nothing */ }
    this.changed();
  }

  recall() {
    try {
      const names = JSON.parse(localStorage.getItem(REMEMBERED));
      if (Array.isArray(names)) this.add(names.filter((name) => typeof name === "string"));
    } catch { /* nothing stored, or something else */ }
  }
}
