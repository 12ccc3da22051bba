// The page of mrc-serve. It uses the public API alone: GET /v1/models and POST /v1/images/edits with stream.

const $ = (id) => document.getElementById(id);
const SCORES = ["following", "preserving", "quality"];

let image = null; // the file to edit
let running = null; // AbortController of the edit that runs
const edits = []; // of this session, the newest last

const headers = () => ($("key").value ? { Authorization: `Bearer ${$("key").value}` } : {});

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

async function failure(response) {
  if (response.status === 401) {
    $("access").hidden = false;
    $("key").focus();
  }
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? `The server answered ${response.status}.`);
}

async function readModel() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw await failure(response);
  const [model] = (await response.json()).data;
  $("model").textContent = model.id;
  $("steps").placeholder = model.defaults.num_inference_steps;
  $("rewards").hidden = !model.rewards;
  const chosen = $("tier").value;
  $("tier").replaceChildren(new Option("default", ""), ...model.tiers.map((name) => new Option(name)));
  $("tier").value = chosen;
}

// ---- choosing an image

function choose(file) {
  if (!file) return;
  if (!/^image\/(png|jpeg|webp)$/.test(file.type)) {
    say(`${file.name || "This"} is no PNG, JPEG or WebP.`, true);
    return;
  }
  image = file;
  URL.revokeObjectURL($("source").src);
  $("source").src = URL.createObjectURL(file);
  $("source").hidden = false;
  say(`${file.name || "The pasted image"} is chosen.`);
}

function listenForImages() {
  const drop = $("drop");
  $("file").addEventListener("change", () => choose($("file").files[0]));
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (file) choose(file);
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") choose(event.dataTransfer.files[0]);
    });
  }
}

// ---- asking for an edit

function request() {
  const form = new FormData();
  form.append("prompt", $("prompt").value);
  form.append("stream", "true");
  form.append("partial_images", "3");
  if (!$("rewards").hidden) form.append("reward_scores", SCORES.map((id) => $(id).value).join(","));
  if ($("seed").value) form.append("seed", $("seed").value);
  if ($("steps").value) form.append("num_inference_steps", $("steps").value);
  if ($("tier").value) form.append("tier", $("tier").value);
  form.append("image", image);
  return form;
}

// The blocks of a stream of server-sent events.
async function* blocks(response) {
  let text = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    text += part.value;
    const whole = text.split("\n\n");
    text = whole.pop();
    yield* whole;
  }
}

async function edit() {
  running = new AbortController();
  $("stop").disabled = false;
  $("edit").disabled = true;
  $("progress").removeAttribute("value");
  $("progress").hidden = false;
  say("Waiting for the model …");
  const source = image;
  const prompt = $("prompt").value;
  try {
    const response = await fetch("v1/images/edits", {
      method: "POST", body: request(), headers: headers(), signal: running.signal,
    });
    if (!response.ok) throw await failure(response);
    let done = null;
    for await (const block of blocks(response)) done = (await take(block, source, prompt)) ?? done;
    if (!done) throw new Error("The server ended the stream before the edit was done.");
    remember(done);
    say(`Done. Seed ${done.seed}.`);
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
    if (edits.length) show(edits.at(-1));
  } finally {
    running = null;
    $("stop").disabled = true;
    $("edit").disabled = false;
    $("progress").hidden = true;
  }
}

// One block of the stream: a comment with the step, a partial image, the edit or an error. Returns the edit.
async function take(block, source, prompt) {
  const step = block.match(/^: step (\d+) of (\d+)/);
  if (step) {
    $("progress").value = step[1] / step[2];
    say(`Step ${step[1]} of ${step[2]}`);
  }
  const data = block.match(/^data: (.*)$/m);
  if (!data) return null;
  const event = JSON.parse(data[1]);
  if (event.error) throw new Error(event.error.message);
  const url = URL.createObjectURL(decoded(event.b64_json));
  if (event.type === "image_edit.partial_image") {
    partial(url);
    return null;
  }
  const { seed, box, size, warnings } = event;
  return { prompt, seed, warnings, after: url, before: await before(source, box, size) };
}

function decoded(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

// The part of the source that the edit shows, at the size of the edit: else the halves would not line up.
async function before(source, [left, top, right, bottom], size) {
  const [width, height] = size.split("x").map(Number);
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const bitmap = await createImageBitmap(source);
  const brush = canvas.getContext("2d");
  brush.imageSmoothingQuality = "high";
  brush.drawImage(bitmap, left, top, right - left, bottom - top, 0, 0, width, height);
  bitmap.close();
  return URL.createObjectURL(await new Promise((resolve) => canvas.toBlob(resolve)));
}

// ---- showing edits

function partial(url) {
  $("before").src = url;
  $("after").src = url;
  $("compare").classList.add("partial");
  $("caption").textContent = "On the way …";
  $("warnings").textContent = "";
  $("download").hidden = true;
  $("compare").hidden = false;
}

function show(done) {
  $("compare").classList.remove("partial");
  $("before").src = done.before;
  $("after").src = done.after;
  $("caption").textContent = `${done.prompt} · seed ${done.seed}`;
  $("warnings").textContent = done.warnings.join("; ");
  $("download").href = done.after;
  $("download").download = `edit-${done.seed}.png`;
  $("download").hidden = false;
  $("compare").hidden = false;
  for (const each of edits) each.button.setAttribute("aria-pressed", String(each === done));
}

function remember(done) {
  const thumbnail = new Image();
  thumbnail.src = done.after;
  thumbnail.alt = `${done.prompt}, seed ${done.seed}`;
  done.button = document.createElement("button");
  done.button.type = "button";
  done.button.append(thumbnail);
  done.button.addEventListener("click", () => {
    show(done);
    $("prompt").value = done.prompt;
    $("seed").value = done.seed;
  });
  const item = document.createElement("li");
  item.append(done.button);
  $("history").prepend(item);
  $("history-title").hidden = false;
  edits.push(done);
  show(done);
}

// ---- start

$("divider").addEventListener("input", () => $("halves").style.setProperty("--cut", `${$("divider").value}%`));
for (const id of SCORES) {
  $(id).addEventListener("input", () => (document.querySelector(`output[for=${id}]`).value = $(id).value));
}
$("stop").addEventListener("click", () => running?.abort());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("key").addEventListener("change", () => readModel().then(() => say("The key is right."), (error) => say(error.message, true)));
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return;
  if (image) edit();
  else say("Choose an image first.", true);
});
listenForImages();
readModel().catch((error) => say(error.message, true));
