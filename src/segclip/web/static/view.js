// The photo with its labels on a canvas: zoom, pan, what is under the pointer, a pin.
const TINT_SIDE = 2048; // pixels of the long side at which labels are coloured
const LARGEST = 16; // times the whole photo's size
const NAME_SIDE = 160; // pixels of the long side at which the places of names are found
const STILL = 6; // pixels that a finger may move and still tap

export class View {
  constructor(canvas, plain, told) {
    Object.assign(this, { canvas, plain, told });
    this.opacity = 0.55;
    this.showNames = true;
    this.reset();
    this.fingers = new Map();
    new ResizeObserver(() => this.draw()).observe(canvas);
    for (const one of [canvas, plain]) this.listen(one);
    canvas.addEventListener("keydown", (event) => this.press(event));
    canvas.addEventListener("blur", () => this.point(null));
  }

  reset() {
    Object.assign(this, { zoom: 1, x: 0.5, y: 0.5, pinned: null, cursor: null, result: null, tint: null, places: [] });
  }

  setPhoto(bitmap, width, height) {
    this.reset();
    Object.assign(this, { bitmap, width, height });
    this.draw();
  }

  // colours: of each index; hidden: indices that are not shown; alone: the only one that is, or null.
  setResult(result, colours, hidden, alone) {
    if (result !== this.result) {
      this.places = result ? findPlaces(result) : [];
      this.pinned = null;
    }
    Object.assign(this, { result, colours, hidden, alone });
    this.tint = result && paint(result, colours, (index) => this.isShown(index));
    this.draw();
    this.tell();
  }

  isShown(index) {
    return index > 0 && (this.alone === null ? !this.hidden.has(index) : index === this.alone);
  }

  // Pixels of the photo per pixel of the page, and the photo's upper left corner there.
  frame(canvas) {
    const [across, down] = [canvas.clientWidth, canvas.clientHeight];
    const scale = this.zoom * Math.min(across / this.width, down / this.height);
    const place = (length, room, middle) =>
      length <= room ? (room - length) / 2 : Math.min(0, Math.max(room - length, room / 2 - middle * length));
    return { scale, left: place(this.width * scale, across, this.x), top: place(this.height * scale, down, this.y) };
  }

  draw() {
    if (!this.bitmap || this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.canvas.style.aspectRatio = this.plain.style.aspectRatio = `${this.width} / ${this.height}`;
      this.drawOn(this.canvas, true);
      if (!this.plain.hidden) this.drawOn(this.plain, false);
    });
  }

  drawOn(canvas, coloured) {
    const dots = devicePixelRatio || 1;
    const size = [Math.round(canvas.clientWidth * dots), Math.round(canvas.clientHeight * dots)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    const to = canvas.getContext("2d");
    to.setTransform(dots, 0, 0, dots, 0, 0);
    to.clearRect(0, 0, ...size);
    const { scale, left, top } = this.frame(canvas);
    const area = [left, top, this.width * scale, this.height * scale];
    to.imageSmoothingQuality = "high";
    to.imageSmoothingEnabled = scale < 3;
    to.drawImage(this.bitmap, ...area);
    if (!coloured || !this.tint) return;
    to.globalAlpha = this.opacity;
    to.imageSmoothingEnabled = false;
    to.drawImage(this.tint, ...area);
    to.globalAlpha = 1;
    if (this.showNames) this.writeNames(to, scale, left, top);
    for (const spot of [this.pinned, this.cursor]) if (spot) cross(to, left + (spot.x + 0.5) * scale, top + (spot.y + 0.5) * scale);
  }

  writeNames(to, scale, left, top) {
    const size = Math.max(11, Math.min(18, this.width * scale / 36));
    to.font = `600 ${size}px system-ui, sans-serif`;
    to.textAlign = "center";
    to.textBaseline = "middle";
    for (const { index, x, y, reach } of this.places) {
      const name = this.result.record.labels[index - 1];
      if (!this.isShown(index) || reach * scale < 0.6 * size || to.measureText(name).width > 8 * reach * scale) continue;
      pill(to, name, left + x * scale, top + y * scale, size);
    }
  }

  // The whole of the photo and its labels, at the photo's size.
  toBlob() {
    const sheet = document.createElement("canvas");
    [sheet.width, sheet.height] = [this.width, this.height];
    const to = sheet.getContext("2d");
    to.drawImage(this.bitmap, 0, 0, this.width, this.height);
    to.globalAlpha = this.opacity;
    to.imageSmoothingEnabled = false;
    if (this.tint) to.drawImage(this.tint, 0, 0, this.width, this.height);
    to.globalAlpha = 1;
    if (this.showNames && this.tint) this.writeNames(to, 1, 0, 0);
    return new Promise((done) => sheet.toBlob(done, "image/png"));
  }

  setZoom(zoom, x = this.x, y = this.y) {
    this.zoom = Math.max(1, Math.min(LARGEST, zoom));
    [this.x, this.y] = [x, y].map((middle) => Math.max(0, Math.min(1, middle)));
    this.canvas.classList.toggle("zoomed", this.zoom > 1);
    this.plain.classList.toggle("zoomed", this.zoom > 1);
    this.draw();
  }

  zoomAt(canvas, event, factor) {
    const spot = this.spot(canvas, event);
    const before = this.zoom;
    const zoom = Math.max(1, Math.min(LARGEST, before * factor));
    const [x, y] = [spot.x / this.width, spot.y / this.height]; // it stays under the pointer
    this.setZoom(zoom, x + (this.x - x) * before / zoom, y + (this.y - y) * before / zoom);
  }

  spot(canvas, event) {
    const box = canvas.getBoundingClientRect();
    const { scale, left, top } = this.frame(canvas);
    return this.inside((event.clientX - box.left - left) / scale, (event.clientY - box.top - top) / scale);
  }

  inside(x, y) {
    const clamp = (value, length) => Math.max(0, Math.min(length - 1, Math.floor(value)));
    return { x: clamp(x, this.width), y: clamp(y, this.height) };
  }

  // Index and score of the label at a pixel of the photo.
  at({ x, y }) {
    const i = y * this.result.width + x;
    return { index: this.result.labels[i], score: this.result.scores[i] / 255, x, y };
  }

  point(spot) {
    this.cursor = spot;
    this.draw();
    this.tell();
  }

  pin(spot) {
    const again = this.pinned && Math.hypot(spot.x - this.pinned.x, spot.y - this.pinned.y) * this.frame(this.canvas).scale < 12;
    this.pinned = again ? null : spot;
    this.cursor = null;
    this.draw();
    this.tell();
  }

  tell(spot = this.cursor) {
    const told = spot || this.pinned;
    this.told(told && this.result ? this.at(told) : null, Boolean(this.pinned) && told === this.pinned);
  }

  listen(canvas) {
    let start = null;
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      this.zoomAt(canvas, event, Math.exp(-event.deltaY / 200));
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => this.zoomAt(canvas, event, 2));
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.fingers.set(event.pointerId, event);
      start = { x: event.clientX, y: event.clientY, moved: this.fingers.size > 1 };
      if (this.zoom > 1 || this.fingers.size > 1) canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = this.fingers.get(event.pointerId);
      if (last && start && Math.hypot(event.clientX - start.x, event.clientY - start.y) > STILL) start.moved = true;
      if (last && start?.moved) this.drag(canvas, last, event);
      if (last) this.fingers.set(event.pointerId, event);
      if (event.pointerType === "mouse" && !last && this.bitmap) this.tell(this.spot(canvas, event));
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => {
        this.fingers.delete(event.pointerId);
        if (kind === "pointerup" && start && !start.moved && this.result) this.pin(this.spot(canvas, event));
        start = null;
      });
    }
    canvas.addEventListener("pointerleave", () => this.tell());
  }

  drag(canvas, last, event) {
    const others = [...this.fingers].filter(([id]) => id !== event.pointerId).map(([, finger]) => finger);
    if (others.length) {
      const apart = (finger) => Math.hypot(finger.clientX - others[0].clientX, finger.clientY - others[0].clientY);
      this.zoomAt(canvas, event, apart(event) / Math.max(1, apart(last)));
    } else if (this.zoom > 1) {
      const { scale } = this.frame(canvas);
      this.setZoom(this.zoom, this.x - (event.clientX - last.clientX) / scale / this.width,
        this.y - (event.clientY - last.clientY) / scale / this.height);
    }
  }

  press(event) {
    const step = Math.max(1, Math.round(this.width / 40 / this.zoom)) * (event.shiftKey ? 4 : 1);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const move = moves[event.key];
    if (move) {
      const from = this.cursor || this.pinned || { x: this.width / 2, y: this.height / 2 };
      const spot = this.inside(from.x + move[0], from.y + move[1]);
      if (this.zoom > 1) this.setZoom(this.zoom, spot.x / this.width, spot.y / this.height);
      if (this.result) this.point(spot);
    } else if (event.key === "Enter" && this.cursor) this.pin(this.cursor);
    else if (event.key === "Escape") [this.pinned, this.cursor] = [null, null];
    else if (event.key === "+" || event.key === "=") this.setZoom(2 * this.zoom);
    else if (event.key === "-") this.setZoom(this.zoom / 2);
    else if (event.key === "0") this.setZoom(1);
    else return;
    event.preventDefault();
    this.draw();
    this.tell();
  }
}

// A canvas with the labels' colours, and white where two meet.
function paint({ width, height, labels }, colours, isShown) {
  const scale = Math.min(1, TINT_SIDE / Math.max(width, height));
  const sheet = document.createElement("canvas");
  sheet.width = Math.max(1, Math.round(width * scale));
  sheet.height = Math.max(1, Math.round(height * scale));
  const to = sheet.getContext("2d");
  const image = to.createImageData(sheet.width, sheet.height);
  const dots = new Uint32Array(image.data.buffer); // A B G R on every processor that browsers run on
  const inks = colours.map(([r, g, b], index) => isShown(index) ? (255 << 24 | b << 16 | g << 8 | r) >>> 0 : 0);
  const thick = Math.max(1, Math.round(Math.min(sheet.width, sheet.height) / 400));
  const column = Uint32Array.from({ length: sheet.width }, (_, x) => Math.min(width - 1, Math.floor((x + 0.5) / scale)));
  for (let y = 0; y < sheet.height; y++) {
    const row = Math.min(height - 1, Math.floor((y + 0.5) / scale)) * width;
    const above = Math.max(0, Math.min(height - 1, Math.floor((y - thick + 0.5) / scale))) * width;
    for (let x = 0; x < sheet.width; x++) {
      const [here, up] = [labels[row + column[x]], labels[above + column[x]]];
      const left = labels[row + column[Math.max(0, x - thick)]];
      const edge = (here !== up && (inks[here] || inks[up])) || (here !== left && (inks[here] || inks[left]));
      dots[y * sheet.width + x] = edge ? 0xffffffff : inks[here];
    }
  }
  to.putImageData(image, 0, 0);
  return sheet;
}

// For each label the spot that is farthest from its edges, by city blocks, and how far that is, in pixels.
function findPlaces({ width, height, labels }) {
  const scale = Math.min(1, NAME_SIDE / Math.max(width, height));
  const [across, down] = [width, height].map((length) => Math.max(1, Math.round(length * scale)));
  const small = new Uint8Array(across * down);
  const far = new Uint16Array(across * down);
  const fill = (x, y) => labels[Math.min(height - 1, Math.floor((y + 0.5) / scale)) * width + Math.min(width - 1, Math.floor((x + 0.5) / scale))];
  const same = (i, j, inRange) => inRange && small[i] === small[j] ? far[j] + 1 : 1;
  for (let y = 0; y < down; y++) {
    for (let x = 0; x < across; x++) {
      const i = y * across + x;
      small[i] = fill(x, y);
      far[i] = Math.min(same(i, i - 1, x > 0), same(i, i - across, y > 0));
    }
  }
  const best = new Map();
  for (let y = down - 1; y >= 0; y--) {
    for (let x = across - 1; x >= 0; x--) {
      const i = y * across + x;
      far[i] = Math.min(far[i], same(i, i + 1, x < across - 1), same(i, i + across, y < down - 1));
      if (small[i] && far[i] > (best.get(small[i])?.far ?? 0)) best.set(small[i], { far: far[i], x, y });
    }
  }
  return [...best].map(([index, { far: reach, x, y }]) => ({ index, x: (x + 0.5) / scale, y: (y + 0.5) / scale, reach: reach / scale }));
}

function pill(to, text, x, y, size) {
  const width = to.measureText(text).width + size;
  to.fillStyle = "rgb(0 0 0 / 72%)";
  to.beginPath();
  to.roundRect(x - width / 2, y - 0.75 * size, width, 1.5 * size, 0.75 * size);
  to.fill();
  to.fillStyle = "#fff";
  to.fillText(text, x, y + 0.05 * size);
}

function cross(to, x, y) {
  for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
    to.strokeStyle = colour;
    to.lineWidth = width;
    to.beginPath();
    to.arc(x, y, 7, 0, 2 * Math.PI);
    to.stroke();
  }
}
