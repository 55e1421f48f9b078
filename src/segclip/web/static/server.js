// What the page asks of the server; see docs/web.md. Errors are told in words.
import { fromBase64, readPng } from "./png.js";

const TRIES = 30; // while the server is busy
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

export async function getConfig() {
  return (await fetch("config.json")).json();
}

// Sends a photo, for the server to encode; gives its hash and size. `preview`: also a JPEG that any browser shows.
export function sendPhoto(photo, query, preview, tell) {
  const address = new URLSearchParams({ model: query.model, protocol: query.protocol });
  if (preview) address.set("preview", "true");
  return retry(tell, () => new Promise((done, fail) => {
    const request = new XMLHttpRequest(); // unlike fetch it tells how much was sent
    request.open("POST", `photos?${address}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => {
      const share = event.loaded / (event.total || 1);
      tell(share < 1 ? `Sending ${photo.name}: ${Math.round(100 * share)} %` : `Looking at ${photo.name} …`);
    };
    request.onload = () => {
      const answer = parse(request.responseText);
      if (request.status === 200) done(answer);
      else fail(problem(request.status, answer, request.getResponseHeader("Retry-After")));
    };
    request.onerror = () => fail(gone());
    tell(`Sending ${photo.name} …`);
    request.send(photo.file);
  }));
}

// Segments a photo that was sent: its record, and the label and score (0-255) of each pixel.
export async function askLabels(sha256, query, tell) {
  const answer = await post(sha256, query, { scores: true }, tell);
  const { mask_png: mask, scores_png: scores, ...record } = answer;
  const maskFile = fromBase64(mask);
  const [labels, surety] = await Promise.all([readPng(maskFile), readPng(fromBase64(scores))]);
  return { record, maskFile, width: labels.width, height: labels.height, labels: labels.data, scores: surety.data };
}

export async function askCoco(sha256, query, tell) {
  return (await post(sha256, query, { coco: true }, tell)).coco;
}

function post(sha256, query, more, tell) {
  return retry(tell, async () => {
    const body = JSON.stringify({ photo_sha256: sha256, ...query, ...more });
    let response;
    try {
      response = await fetch("segment", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    } catch {
      throw gone();
    }
    const answer = parse(await response.text());
    if (!response.ok) throw problem(response.status, answer, response.headers.get("Retry-After"));
    return answer;
  });
}

async function retry(tell, work) {
  for (let tries = 1; ; tries++) {
    try {
      return await work();
    } catch (error) {
      if (error.status !== 503 || tries === TRIES) throw error;
      tell(`Many people are waiting; this asks again in ${error.seconds} seconds.`);
      await wait(error.seconds);
    }
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

function problem(status, answer, seconds) {
  const error = new Error(sentence(answer.error || `The server answered with the code ${status}`));
  error.status = status;
  error.seconds = Number(seconds) || 10;
  return error;
}

function gone() {
  return new Error("The server does not answer. Is segclip web still running? Your photos and labels stay here.");
}

function sentence(text) {
  const [first] = text.split(" ");
  const start = first.includes(".") ? text : text.charAt(0).toUpperCase() + text.slice(1); // a file's name stays
  return /[.!?]$/.test(start) ? start : `${start}.`;
}
