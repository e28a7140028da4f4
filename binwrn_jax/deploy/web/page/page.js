// The page: takes pictures, asks the worker, shows the answer.

const MODEL = "model.safetensors";
const SHOWN = 5; // classes
const $ = (id) => document.getElementById(id);
const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let asked = 0;
let network; // what the worker says of the model
let source = null; // of the picture on the stage, to be asked again when it is inverted
let camera = null;

// --- the worker ---------------------------------------------------------------------------------------------

worker.onmessage = ({ data }) => {
  if (data.received !== undefined) return showProgress(data.received, data.total);
  const { resolve, reject } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.error === undefined) resolve(data.result);
  else reject(new Error(data.error));
};
worker.onerror = (event) => fail(`The program does not start: ${event.message ?? "the browser is too old"}`);

function ask(task, content = {}, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++asked, { resolve, reject });
    worker.postMessage({ id: asked, task, ...content }, transfer);
  });
}

// --- what is shown ------------------------------------------------------------------------------------------

const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0995 ? 2 : 1)} %`;
const megabytes = (bytes) => (bytes < 1e6 ? `${(bytes / 1000).toFixed(bytes < 1e4 ? 1 : 0)} kB` : `${(bytes / 1e6).toFixed(2)} MB`);
const duration = (ms) => (ms < 10 ? ms.toFixed(1) : ms.toFixed(0)) + " ms";

function showProgress(received, total) {
  $("loading").hidden = false;
  if (total) $("progress").value = received / total;
  $("received").textContent = megabytes(received) + (total ? ` of ${megabytes(total)}` : "");
}

function showAnswer({ classes, milliseconds, input }, quiet = false) {
  const [best] = classes;
  $("error").textContent = "";
  $("best-name").textContent = best.name;
  $("best-share").textContent = percent(best.probability);
  const list = $("classes");
  const shown = classes.slice(0, SHOWN);
  while (list.children.length < shown.length) {
    const row = document.createElement("li");
    row.append(document.createElement("span"), document.createElement("span"));
    list.append(row);
  }
  shown.forEach(({ name, probability }, i) => {
    const row = list.children[i];
    row.firstChild.textContent = name;
    row.lastChild.textContent = percent(probability);
    row.style.setProperty("--share", probability.toFixed(4));
  });
  const time = document.createElement("b");
  time.textContent = duration(milliseconds);
  $("time").replaceChildren(time, ` for ${network.multiplyAdds.toLocaleString("en")} additions and subtractions`);
  showInput(input);
  if (!quiet) $("spoken").textContent = `${best.name}, ${percent(best.probability)}. ${duration(milliseconds)}.`;
}

/** The pixels that the network has taken. */
function showInput(pixels) {
  const [height, width, channels] = network.shape;
  if (channels !== 1 && channels !== 3) return;
  const canvas = $("seen");
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++)
    for (let c = 0; c < 4; c++) image.data[4 * i + c] = c === 3 ? 255 : pixels[i * channels + (channels === 3 ? c : 0)];
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
  $("seen-size").textContent = `${width} × ${height}`;
  $("view").hidden = false;
}

function fail(message) {
  $("error").textContent = message;
  $("best-name").textContent = "–";
  $("best-share").textContent = $("time").textContent = "";
  $("classes").replaceChildren();
}

/** What is on the stage: empty, draw, picture or camera. */
function setMode(mode) {
  if (mode !== "camera") stopCamera();
  $("frame").dataset.mode = mode;
  $("pad").hidden = $("pad-help").hidden = $("clear").hidden = mode !== "draw";
  $("picture").hidden = mode !== "picture";
  $("video").hidden = mode !== "camera";
  $("draw").hidden = !canDraw() || mode === "draw";
  $("hint").textContent = mode === "draw" ? `Draw a ${network.description.dataset === "fashion_mnist" ? "piece of clothing" : "digit"} here` : "";
  $("invert-row").hidden = network.shape[2] !== 1 || mode === "draw";
  $("view").hidden = true;
}

function showPicture(url, small) {
  setMode("picture");
  const picture = $("picture");
  if (picture.src.startsWith("blob:")) URL.revokeObjectURL(picture.src);
  picture.src = url;
  picture.classList.toggle("small", small);
}

// --- pictures -----------------------------------------------------------------------------------------------

async function takePicture(blob) {
  const url = URL.createObjectURL(blob);
  showPicture(url, false);
  $("picture").onload = ({ target }) => target.classList.toggle("small", target.naturalWidth < 200);
  source = { task: "picture", content: { blob } };
  await askAgain();
}

async function askAgain() {
  if (!source) return;
  const mine = source;
  try {
    const answer = await ask(mine.task, { ...mine.content, invert: $("invert").checked && network.shape[2] === 1 });
    if (mine === source) showAnswer(answer);
  } catch (error) {
    if (mine !== source) return;
    $("picture").hidden = true;
    fail(error.message);
  }
}

function takeFirst(files) {
  const found = [...(files ?? [])].find((file) => file.type.startsWith("image/")) ?? files?.[0];
  if (found) takePicture(found);
  return found;
}

$("file").addEventListener("change", ({ target }) => {
  takeFirst(target.files);
  target.value = "";
});
addEventListener("paste", (event) => {
  if (network && takeFirst(event.clipboardData?.files)) event.preventDefault();
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (network && !takeFirst(event.dataTransfer.files)) fail("That was no file: drop a picture from a folder.");
});
$("invert").addEventListener("change", askAgain);

function showExamples() {
  const count = Number(document.body.dataset.examples);
  const box = $("examples");
  for (let index = 0; index < count; index++) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Picture ${index + 1} of the test set`);
    button.style.backgroundSize = `${100 * count}% 100%`;
    button.style.backgroundPosition = `${count > 1 ? (100 * index) / (count - 1) : 0}% 0`;
    button.addEventListener("click", () => takeExample(index));
    box.append(button);
  }
  box.hidden = !count;
}

async function takeExample(index) {
  const [height, width] = network.shape;
  const mine = (source = { task: "example", content: { url: new URL("examples.png", location).href, index } });
  const answer = await ask(mine.task, mine.content);
  if (mine !== source) return;
  const canvas = $("seen");
  showPicture("", true);
  showAnswer(answer);
  $("picture").src = canvas.toDataURL();
  $("picture").alt = `Picture ${index + 1} of the test set, ${width} by ${height} pixels`;
}

// --- the camera ---------------------------------------------------------------------------------------------

async function startCamera() {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    source = null;
    setMode("camera");
    camera = stream;
    $("camera").setAttribute("aria-pressed", "true");
    $("video").srcObject = stream;
    await $("video").play();
    for (let last = 0; camera === stream; ) {
      const bitmap = await createImageBitmap($("video"));
      const answer = await ask("frame", { bitmap, invert: $("invert").checked && network.shape[2] === 1 }, [bitmap]);
      if (camera !== stream) return;
      const speak = performance.now() - last > 3000; // a screen reader is to come to an end
      if (speak) last = performance.now();
      showAnswer(answer, !speak);
      await new Promise((resolve) => setTimeout(resolve, 80));
    }
  } catch (error) {
    stopCamera();
    fail(error.name === "NotAllowedError" ? "The camera was not allowed." : `There is no camera (${error.message}).`);
  }
}

function stopCamera() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  $("camera").setAttribute("aria-pressed", "false");
}

$("camera").addEventListener("click", () => (camera ? stopCamera() : startCamera()));

// --- drawing ------------------------------------------------------------------------------------------------

const pad = $("pad");
const ink = pad.getContext("2d", { willReadFrequently: true });
let pen = { x: 140, y: 140, down: false, keyboard: false };
let ink_there = false;
let busy = false;
let again = false;
let paper; // the drawing without the mark of the pen

const canDraw = () => network.shape[2] === 1 && Math.max(network.shape[0], network.shape[1]) <= 32;

function clearPad() {
  paper.fillStyle = "#000";
  paper.fillRect(0, 0, 280, 280);
  ink_there = false;
  source = null;
  pen.down = false;
  showPad();
  $("hint").hidden = false;
  $("view").hidden = true;
}

function showPad() {
  ink.drawImage(paper.canvas, 0, 0);
  if (!pen.keyboard) return;
  ink.beginPath();
  ink.arc(pen.x, pen.y, pen.down ? 9 : 13, 0, 7);
  ink.lineWidth = 3;
  ink.strokeStyle = ink.fillStyle = "#ff7a55";
  if (pen.down) ink.fill();
  else ink.stroke();
}

function drawTo(x, y) {
  paper.strokeStyle = "#fff";
  paper.lineCap = paper.lineJoin = "round";
  paper.lineWidth = network.shape[0] < 16 ? 30 : 24;
  paper.beginPath();
  paper.moveTo(pen.x, pen.y);
  paper.lineTo(x, y);
  paper.stroke();
  ink_there = true;
  $("hint").hidden = true;
}

function movePen(x, y) {
  [x, y] = [Math.min(Math.max(x, 0), 280), Math.min(Math.max(y, 0), 280)];
  if (pen.down) drawTo(x, y);
  [pen.x, pen.y] = [x, y];
  showPad();
  if (pen.down) askDrawing(true);
}

/** One question at a time; the latest drawing is asked last. */
async function askDrawing(quiet) {
  if (!ink_there) return;
  if (busy) return void (again = true);
  busy = true;
  do {
    again = false;
    const rgba = paper.getImageData(0, 0, 280, 280).data;
    const data = new Uint8Array(280 * 280).map((_, i) => rgba[4 * i]);
    const answer = await ask("drawing", { data, width: 280, height: 280 });
    if (ink_there && $("frame").dataset.mode === "draw") showAnswer(answer, quiet && pen.down);
  } while (again);
  busy = false;
}

const place = (event) => {
  const box = pad.getBoundingClientRect();
  return [((event.clientX - box.left) * 280) / box.width, ((event.clientY - box.top) * 280) / box.height];
};
pad.addEventListener("pointerdown", (event) => {
  pad.setPointerCapture(event.pointerId);
  pen.keyboard = false;
  [pen.x, pen.y] = place(event);
  pen.down = true;
  movePen(pen.x, pen.y);
});
pad.addEventListener("pointermove", (event) => {
  if (!pen.down || pen.keyboard) return;
  for (const part of event.getCoalescedEvents?.() ?? []) movePen(...place(part));
  movePen(...place(event));
});
for (const name of ["pointerup", "pointercancel"])
  pad.addEventListener(name, () => {
    pen.down = false;
    askDrawing(false);
  });
pad.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [-14, 0], ArrowRight: [14, 0], ArrowUp: [0, -14], ArrowDown: [0, 14] }[event.key];
  if (step || event.key === " ") {
    pen.keyboard = true;
    if (step) movePen(pen.x + step[0], pen.y + step[1]);
    else {
      pen.down = !pen.down;
      movePen(pen.x, pen.y);
      $("spoken").textContent = pen.down ? "Pen down" : "Pen up";
      if (!pen.down) askDrawing(false);
    }
  } else if (["Delete", "Backspace", "Escape"].includes(event.key)) clearPad();
  else return;
  event.preventDefault();
});
pad.addEventListener("blur", () => {
  pen.keyboard = pen.down = false;
  showPad();
});
$("clear").addEventListener("click", () => {
  clearPad();
  pad.focus();
});
$("draw").addEventListener("click", () => {
  setMode("draw");
  clearPad();
  pad.focus();
});

// --- the beginning ------------------------------------------------------------------------------------------

/** The first bits of the file, as a pattern. */
async function showBits() {
  const canvas = $("bits");
  const cell = 9;
  const [columns, rows] = [Math.ceil(canvas.clientWidth / cell), Math.ceil(canvas.clientHeight / cell)];
  const bytes = new Uint8Array(await (await fetch(MODEL, { cache: "force-cache" })).arrayBuffer());
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(canvas).color;
  for (let i = 0; i < columns * rows; i++)
    if ((bytes[bytes.length - 1 - (i >> 3)] >> (i & 7)) & 1) context.fillRect(i % columns, Math.floor(i / columns), 1, 1);
}

async function showFacts() {
  const { weights, bytes, description, multiplyAdds } = network;
  const here = performance.getEntriesByType("resource").map(({ name, decodedBodySize }) => [name, decodedBodySize]);
  const [page] = performance.getEntriesByType("navigation");
  const files = new Map([...here, ...(await ask("loaded")), [location.href, page?.decodedBodySize ?? 0]]);
  const total = [...files.values()].reduce((a, b) => a + b, 0);
  const error = description.test?.error ?? description.test?.top1_error;
  const facts = [
    ["weights, +1 or −1", weights.count.toLocaleString("en")],
    ["bits per weight", ((8 * weights.bytes) / weights.count).toFixed(3)],
    ["in the network’s file", megabytes(bytes.model)],
    ["loaded in all", megabytes(total)],
    ["operations a picture", `${(multiplyAdds / 1e6).toLocaleString("en", { maximumSignificantDigits: 3 })} million`],
    ["trained on", description.dataset],
    ["test error", typeof error === "number" ? `${error.toFixed(2)} %` : null],
    ["licence of the weights", description.license],
  ];
  $("facts").replaceChildren(
    ...facts.filter(([, value]) => value).map(([name, value]) => {
      const row = document.createElement("div");
      const [term, text] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      text.textContent = value;
      row.append(term, text);
      return row;
    }),
  );
}

function showLead() {
  const { weights, bytes, classNames } = network;
  const bold = (text) => Object.assign(document.createElement("b"), { textContent: text });
  $("lead").className = "";
  $("lead").replaceChildren(
    "A network of ", bold(weights.count.toLocaleString("en")), " weights in ", bold(megabytes(bytes.model)),
    ` tells ${classNames.length} classes apart, here in your browser. Nothing is uploaded.`,
  );
}

async function start() {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  [context.canvas.width, context.canvas.height] = [280, 280];
  paper = context;
  try {
    network = await ask("load", { url: new URL(MODEL, location).href });
  } catch (error) {
    $("lead").className = "";
    $("lead").textContent = "The network could not be loaded.";
    return fail(error.message);
  } finally {
    $("loading").hidden = true;
  }
  showLead();
  showExamples();
  $("camera").hidden = !navigator.mediaDevices?.getUserMedia;
  if (canDraw()) {
    setMode("draw");
    clearPad();
  } else {
    setMode("empty");
    $("hint").textContent = "Drop a picture here";
    if (Number(document.body.dataset.examples)) await takeExample(0);
  }
  await Promise.all([showFacts(), showBits().catch(() => {})]);
  document.body.dataset.ready = "yes";
}

start();
