// The page: photos and labels on one side, the result on the other.
import { asJson, distinct, download, stem, zip } from "./files.js";
import { Labels } from "./labels.js";
import { askCoco, askLabels, getConfig, sendPhoto } from "./server.js";
import { describe, fillMissing, fillTable, markAlone } from "./table.js";
import { View } from "./view.js";

const MOST_PHOTOS = 100;
const MOST_PAST = 30;
const MOST_PIXELS = 60_000_000; // of all results of the session; each takes two bytes of memory
const MOSTLY = 0.6; // share of background from which a button offers to do without
const PROTOCOLS = {
  open: "for photos of any kind (open)",
  paper: "as in the paper's evaluation, coarser (paper)",
};

const $ = (id) => document.getElementById(id);
const config = await getConfig();
const photos = []; // {file, name, bitmap, width, height, sha256, shown: {result, query}, thumb}
const past = []; // {photo, shown, item}, the newest first
let current = null; // the photo that is shown
let hidden = new Set();
let alone = null;
const anyway = new Set(); // labels that are looked for though they seem absent
const painted = new Map(); // colours that were chosen, by label
let turn = 0; // of the last run; older ones end
let again = 0; // a timer

const view = new View($("canvas"), $("plain"), tellUnder);
const labels = new Labels({
  list: $("chips"), input: $("label"), most: config.max_labels, longest: config.max_letters, changed: changed, complain,
});

fillForm();
labels.recall();
listen();
$("go").disabled = false;

function fillForm() {
  $("limits").textContent = `up to ${config.max_bytes / 2 ** 20} MiB each`;
  $("protocol").append(...config.protocols.map((name) => new Option(PROTOCOLS[name] || name, name)));
  $("model").append(...config.models.map((name) => new Option(name, name)));
  $("model-field").hidden = config.models.length < 2;
  for (const [name, names] of Object.entries(config.presets)) $("presets").append(button(name, () => labels.set(names)));
  $("presets").append(button("Clear", () => labels.set([])));
  for (const [name, names] of Object.entries(config.examples)) {
    const one = button(name, () => tryExample(name, names));
    const image = new Image(32, 32);
    image.src = `examples/${name}.small.jpg`;
    image.alt = "";
    one.prepend(image);
    $("examples").append(one);
  }
}

function button(text, act) {
  const one = document.createElement("button");
  one.type = "button";
  one.textContent = text;
  one.addEventListener("click", act);
  return one;
}

function listen() {
  $("file").addEventListener("change", () => { addPhotos([...$("file").files]); $("file").value = ""; });
  document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  document.addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    addPhotos([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => event.clipboardData.files.length && addPhotos([...event.clipboardData.files]));
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); labels.commit(true); run(true); });
  $("background").addEventListener("input", () => {
    $("threshold").hidden = $("background").querySelector(":checked").value !== "number";
    $("threshold-value").textContent = Number($("threshold").value).toFixed(2);
    changed();
  });
  for (const name of ["presence", "protocol", "model"]) $(name).addEventListener("change", changed);
  $("every-pixel").addEventListener("click", () => { chooseBackground("none"); changed(0); });
  $("opacity").addEventListener("input", () => { view.opacity = $("opacity").value / 100; view.draw(); });
  $("names").addEventListener("change", () => { view.showNames = $("names").checked; view.draw(); });
  $("beside").addEventListener("change", () => {
    $("plain").hidden = !$("beside").checked;
    $("stage").classList.toggle("beside", $("beside").checked);
    view.draw();
  });
  $("zoom-in").addEventListener("click", () => view.setZoom(2 * view.zoom));
  $("zoom-out").addEventListener("click", () => view.setZoom(view.zoom / 2));
  $("zoom-fit").addEventListener("click", () => view.setZoom(1));
  $("downloads").addEventListener("click", (event) => event.target.dataset.file && save(event.target.dataset.file));
}

function chooseBackground(value) {
  const choice = $("background").querySelector(`[value=${value}]`);
  choice.checked = true;
  choice.dispatchEvent(new Event("input", { bubbles: true }));
}

function query() {
  const background = $("background").querySelector(":checked").value;
  return {
    labels: [...labels.names],
    model: $("model").value,
    protocol: $("protocol").value,
    background: background === "number" ? Number($("threshold").value) : background,
    presence: $("presence").checked ? "none" : lookedForAnyway(),
  };
}

function lookedForAnyway() {
  const names = labels.names.map((label) => label.split("|")[0].trim()).filter((name) => anyway.has(name));
  return names.length ? names : "auto";
}

// A photo that has a result gets a new one by itself.
function changed(delay = 150) {
  clearTimeout(again);
  if (photos.some((photo) => photo.shown) && labels.names.length) again = setTimeout(() => run(false), delay);
}

async function tryExample(name, names) {
  labels.set(names);
  const blob = await (await fetch(`examples/${name}.jpg`)).blob();
  await addPhotos([new File([blob], `${name}.jpg`, { type: "image/jpeg" })]);
  if (!current?.shown) run(true);
}

async function addPhotos(files) {
  complain("");
  labels.commit(true);
  let first = null;
  const failed = [];
  for (const file of files) {
    const photo = { file, name: file.name || "photo.png" };
    if (photos.length >= MOST_PHOTOS) failed.push(`${photo.name}: at most ${MOST_PHOTOS} photos; load the page anew for others.`);
    else if (file.size > config.max_bytes) failed.push(`${photo.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB; at most ${config.max_bytes / 2 ** 20} are allowed: scale it down.`);
    else {
      try {
        await open(photo);
        photos.push(photo);
        first ??= photo;
      } catch (error) {
        failed.push(error.message);
      }
    }
  }
  tell("");
  listPhotos();
  if (first) show(first);
  if (failed.length) complain(failed.join(" "));
  if (first && labels.names.length) await run(false);
}

// Decodes and sends a photo; what the browser cannot show, the server sends back as a JPEG.
async function open(photo) {
  photo.bitmap = await createImageBitmap(photo.file).catch(() => null);
  await send(photo, !photo.bitmap);
  if (photo.bitmap && (photo.bitmap.width !== photo.width || photo.bitmap.height !== photo.height)) await send(photo, true);
}

async function send(photo, preview) {
  const sent = await sendPhoto(photo, query(), preview, tell).catch((error) => {
    throw new Error(error.message.replace(/^The photo:/, `${photo.name}:`));
  });
  Object.assign(photo, { sha256: sent.photo_sha256, width: sent.width, height: sent.height });
  if (sent.preview_jpeg) {
    const bytes = Uint8Array.from(atob(sent.preview_jpeg), (letter) => letter.charCodeAt(0));
    photo.bitmap = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
  }
}

// `work` with a photo that the server may have forgotten.
async function withPhoto(photo, work) {
  try {
    return await work();
  } catch (error) {
    if (error.status !== 410) throw error;
    await send(photo, false);
    return work();
  }
}

// Segments every photo, the one that is shown first; a newer run ends an older one.
async function run(asked) {
  clearTimeout(again);
  complain("");
  if (!photos.length) return asked && complain("No photo yet: drop one, or try an example.", $("file"));
  if (!labels.names.length) return asked && complain("No labels yet: type what is in the photo, such as cat.", $("label"));
  const mine = ++turn;
  const asks = query();
  const failed = [];
  for (const photo of [current, ...photos.filter((one) => one !== current)]) {
    if (same(photo.shown?.query, asks)) {
      if (photo === current && photo.on !== photo.shown) show(photo); // an older result was shown
      continue;
    }
    tell(photos.length > 1 ? `Finding your labels in ${photo.name} …` : "Finding your labels …");
    try {
      const start = performance.now();
      const result = await withPhoto(photo, () => askLabels(photo.sha256, asks, tell));
      if (mine !== turn) return;
      photo.shown = { result, query: asks, seconds: (performance.now() - start) / 1000 };
      remember(photo);
      listPhotos();
      if (photo === current) show(photo);
    } catch (error) {
      if (mine !== turn) return;
      failed.push(photos.length > 1 ? `${photo.name}: ${error.message}` : error.message);
    }
  }
  tell("");
  if (failed.length) complain(failed.join(" "));
  if (asked && innerWidth < 800) $("see").scrollIntoView({ behavior: "smooth" });
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

function show(photo, shown = photo.shown) {
  const other = photo !== current;
  if (other) view.setPhoto(photo.bitmap, photo.width, photo.height);
  current = photo;
  current.on = shown;
  $("empty").hidden = true;
  for (const name of ["tools", "stage"]) $(name).hidden = false;
  $("result").hidden = !shown;
  if (shown) {
    hidden = new Set();
    alone = null;
    const { record } = shown.result;
    fillTable($("rows"), record, colours(), hidden, acts);
    fillMissing($("missing"), record, lookedFor(shown.query), (label, look) => {
      if (look) anyway.add(label);
      else anyway.delete(label);
      changed(0);
    });
    $("caption").textContent = `${photo.name}: ${photo.width} × ${photo.height} pixels, ${shown.seconds.toFixed(1)} s. Point at the photo to see what is there. A tap on a label shows it alone; its tick hides it.`;
    const background = record.found.find(({ index }) => index === 0);
    $("mostly").hidden = !(background?.share > MOSTLY) || shown.query.background === "none";
  }
  $("canvas").setAttribute("aria-label", shown ? describe(photo.name, shown.result.record) : `${photo.name}, not segmented yet`);
  colour();
  listPhotos();
}

// The labels that a query looks for though they seem absent; null: it leaves none out.
function lookedFor({ presence, background }) {
  if (presence === "none" || background === "none") return null;
  return presence === "auto" ? [] : presence;
}

const acts = {
  hide: (index, hide) => { if (hide) hidden.add(index); else hidden.delete(index); colour(); },
  alone: (index) => { alone = alone === index ? null : index; markAlone($("rows"), alone); colour(); },
  preview: (index) => view.setResult(current.on.result, colours(), hidden, index ?? alone),
  colour: (index, chosen) => { painted.set(current.on.result.record.labels[index - 1], chosen); colour(); },
};

function colour() {
  const result = current.on?.result ?? null;
  view.setResult(result, colours(), hidden, alone);
}

function colours() {
  const names = current?.on?.result.record.labels ?? [];
  return [config.colours[0], ...names.map((name, i) => painted.get(name) ?? config.colours[i + 1])];
}

function listPhotos() {
  $("photos").hidden = photos.length < 2;
  $("downloads").querySelector("[data-file=zip]").hidden = photos.filter((photo) => photo.shown).length < 2;
  $("photos").replaceChildren(...photos.map((photo) => {
    const one = button("", () => show(photo));
    one.append(photo.thumb ??= thumbnail(photo));
    one.setAttribute("aria-label", `${photo.name}, ${photo.shown ? "segmented" : "not segmented yet"}`);
    one.setAttribute("aria-current", String(photo === current));
    one.classList.toggle("done", Boolean(photo.shown));
    const item = document.createElement("li");
    item.append(one);
    return item;
  }));
}

function thumbnail(photo) {
  const small = document.createElement("canvas");
  [small.width, small.height] = [96, 96];
  small.setAttribute("aria-hidden", "true");
  const side = Math.min(photo.bitmap.width, photo.bitmap.height);
  const [left, top] = [(photo.bitmap.width - side) / 2, (photo.bitmap.height - side) / 2];
  small.getContext("2d").drawImage(photo.bitmap, left, top, side, side, 0, 0, 96, 96);
  return small;
}

// The session's results, the newest first; another setting of the same labels takes its predecessor's place.
function remember(photo) {
  const { shown } = photo;
  const item = document.createElement("li");
  const found = shown.result.record.found.filter(({ index }) => index).map(({ label }) => label);
  const back = button("", () => { show(photo, shown); $("see").scrollIntoView({ behavior: "smooth" }); });
  const text = document.createElement("span");
  text.textContent = `${photo.name}: ${found.join(", ") || "nothing found"}`;
  back.append(thumbnail(photo), text);
  item.append(back);
  const newest = past[0];
  if (newest?.photo === photo && same(newest.shown.query.labels, shown.query.labels)) past.shift();
  past.unshift({ photo, shown, item });
  const pixels = () => past.reduce((sum, one) => sum + one.photo.width * one.photo.height, 0);
  while (past.length > MOST_PAST || (past.length > 1 && pixels() > MOST_PIXELS)) past.pop();
  $("past").replaceChildren(...past.map((one) => one.item));
  $("history").hidden = false;
}

async function save(kind) {
  complain("");
  try {
    const { name, on } = current;
    if (kind === "mask") download(`${stem(name)}.mask.png`, on.result.maskFile, "image/png");
    if (kind === "overlay") download(`${stem(name)}.overlay.png`, await view.toBlob(), "image/png");
    if (kind === "json") download(`${stem(name)}.json`, asJson(on.result.record), "application/json");
    if (kind === "coco") download(`${stem(name)}.coco.json`, asJson(await coco(current, on)), "application/json");
    if (kind === "zip") download("segclip.zip", await zipAll(), "application/zip");
  } catch (error) {
    complain(error.message);
  }
  tell("");
}

async function coco(photo, shown) {
  const data = await withPhoto(photo, () => askCoco(photo.sha256, shown.query, tell));
  for (const image of data.images) image.file_name = photo.name;
  return data;
}

async function zipAll() {
  const done = photos.filter((photo) => photo.shown);
  const stems = distinct(done.map((photo) => stem(photo.name)));
  const files = [];
  const back = [current, current.on];
  for (const [i, photo] of done.entries()) {
    tell(`Packing ${photo.name} …`);
    show(photo);
    const overlay = new Uint8Array(await (await view.toBlob()).arrayBuffer());
    files.push([`${stems[i]}.mask.png`, photo.shown.result.maskFile], [`${stems[i]}.overlay.png`, overlay]);
    files.push([`${stems[i]}.json`, asJson(photo.shown.result.record)]);
    files.push([`${stems[i]}.coco.json`, asJson(await coco(photo, photo.shown))]);
  }
  show(...back);
  return zip(files);
}

function tellUnder(spot, pinned) {
  if (!spot) return void ($("under").textContent = "");
  const name = spot.index ? current.on.result.record.labels[spot.index - 1] : "background";
  $("under").textContent = `${name}, score ${spot.score.toFixed(2)}${pinned ? " (pinned; click it again to let go)" : ""}`;
}

function tell(text) {
  $("progress").textContent = text;
  $("progress").hidden = !text;
  $("see").setAttribute("aria-busy", String(Boolean(text)));
}

function complain(text, field) {
  $("alert").textContent = text;
  $("alert").hidden = !text;
  field?.focus();
}
