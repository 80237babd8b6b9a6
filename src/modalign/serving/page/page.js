// The page: what is attached and asked, who answers, and what happens when something goes wrong.

import { accepted, canRecord, inWords, preview, readFile, startRecording } from "./media.js";
import { chunks, servedModel, ServerError } from "./server.js";
import { Exchange, figuresOf, make, Speaker } from "./view.js";

const ALTERNATIVES = 3; // most likely tokens shown at every place
const at = (id) => document.getElementById(id);
const question = at("question");
const speaker = new Speaker(at("spoken"));

let key = ""; // never stored
let model = null;
let attached = []; // media of the next question
let turns = []; // the conversation so far, as messages for the server
let shown = []; // media of questions asked, for their previews' addresses
let running = null; // AbortController of the answer that is coming
let recording = null; // stops the microphone
let reading = null; // files that are being attached: a promise of whether all could be

// --- which model ------------------------------------------------------------------------------

async function connect() {
  try {
    model = await servedModel(key);
  } catch (error) {
    model = null;
    failed(error);
    draw();
    return;
  }
  at("key-form").hidden = true;
  tell("");
  const kinds = model.modalities.map((kind) => make("li", { textContent: kind }));
  at("model").replaceChildren(make("strong", { textContent: model.id }), make("ul", { className: "kinds", ariaLabel: "Takes" }, ...kinds),
    make("span", { className: "hint", textContent: `${model.max_model_len.toLocaleString("en")} tokens at most` }));
  document.title = `${model.id} · modalign`;
  const takes = inWords(model.media);
  at("invitation").textContent = takes ? `Drop ${takes} here, paste or attach it, and ask about it.` : "This model takes text. Ask it something.";
  at("drop-words").textContent = `Drop ${takes}`;
  at("files").accept = accepted(model.media);
  if (!at("max-tokens").value) at("max-tokens").value = Math.max(1, Math.min(512, Math.floor(model.max_model_len / 2)));
  draw();
  question.focus();
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  at("key").value = "";
  connect();
});

// --- what is shown ----------------------------------------------------------------------------

/** Show what can be done now. */
function draw() {
  const media = model !== null && inWords(model.media) !== "";
  at("attach").hidden = !media;
  at("record").hidden = !model?.modalities.includes("audio") || !canRecord();
  at("record").textContent = recording ? "Stop recording" : "Record";
  at("record").classList.toggle("live", recording !== null);
  at("ask").hidden = running !== null;
  at("ask").disabled = model === null;
  at("stop").hidden = running === null;
  at("clear").disabled = !at("conversation").querySelector("article");
  at("empty").hidden = model === null || !at("clear").disabled;
  at("attached").replaceChildren(...attached.map((medium) => {
    const remove = make("button", { type: "button", className: "quiet", ariaLabel: `Remove ${medium.name}`, textContent: "Remove" });
    remove.addEventListener("click", () => {
      attached = attached.filter((other) => other !== medium);
      release([medium]);
      draw();
      question.focus();
    });
    return make("li", {}, preview(medium), make("span", { className: "name", textContent: medium.name }), remove);
  }));
}

function tell(words) {
  at("problem").textContent = words;
  at("problem").hidden = !words;
}

function failed(error) {
  const unasked = error.status === 401 && !key; // nothing went wrong yet
  tell(unasked ? "" : error.message);
  if (error.status === 401) {
    at("key-form").hidden = false;
    at("key").focus();
  } else if (!(error instanceof ServerError)) {
    console.error(error);
  }
}

/** Give previews' memory back where nothing shows them any more. */
function release(media) {
  const free = media.filter((medium) => medium.url && !attached.includes(medium) && !shown.includes(medium));
  free.forEach((medium) => URL.revokeObjectURL(medium.url));
}

// --- media ------------------------------------------------------------------------------------

/** Attach files, behind those that are still being read; true where all could be. */
function attach(files) {
  const mine = (reading ?? Promise.resolve(true)).then((well) => attachAll(files).then((all) => well && all));
  reading = mine;
  mine.finally(() => {
    if (reading === mine) reading = null;
  });
  return mine;
}

async function attachAll(files) {
  tell("");
  const problems = [];
  for (const file of files) {
    try {
      const medium = await readFile(file, model?.media ?? []);
      attached.push(medium);
    } catch (error) {
      problems.push(error.message);
    }
  }
  draw();
  tell(problems.join(" "));
  question.focus();
  return !problems.length;
}

at("attach").addEventListener("click", () => at("files").click());
at("files").addEventListener("change", async (event) => {
  await attach([...event.target.files]);
  event.target.value = ""; // the same file can be chosen again
});
at("record").addEventListener("click", record);

/** Begin to record, or end it and attach what was recorded. */
async function record() {
  try {
    if (recording) {
      const stop = recording;
      recording = null;
      await attach([await stop()]);
    } else {
      recording = await startRecording();
    }
  } catch (error) {
    tell(`The microphone gave nothing: ${error.message}`);
  }
  draw();
}

document.addEventListener("paste", (event) => {
  if (model && event.clipboardData.files.length) {
    event.preventDefault();
    attach([...event.clipboardData.files]);
  }
});

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault(); // also so that a file dropped beside the place does not replace the page
  at("drop").hidden = !model || !inWords(model.media);
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) at("drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  at("drop").hidden = true;
  if (model) attach([...event.dataTransfer.files]);
});

// --- asking -----------------------------------------------------------------------------------

function request(turn) {
  const system = at("system").value.trim();
  const number = (id) => (at(id).value === "" ? null : Number(at(id).value));
  return {
    model: model.id,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns, turn],
    temperature: number("temperature"),
    max_tokens: number("max-tokens"),
    seed: number("seed"),
    logprobs: true,
    top_logprobs: ALTERNATIVES,
  };
}

function optionsAreRight() {
  const wrong = [...at("options").querySelectorAll("input")].find((input) => !input.checkValidity());
  if (wrong) {
    at("options").open = true;
    wrong.reportValidity();
  }
  return !wrong;
}

async function ask() {
  if (recording) await record();
  if (reading && !(await reading)) return; // the problem is shown, the question stays
  const text = question.value.trim();
  if (running || !model || !optionsAreRight()) return;
  if (!text && !attached.length) {
    question.focus();
    return;
  }
  const media = attached;
  const parts = [...media.map((medium) => medium.part), ...(text ? [{ type: "text", text }] : [])];
  const turn = { role: "user", content: media.length ? parts : text };
  const exchange = new Exchange(text, media);
  running = new AbortController();
  const { signal } = running;
  attached = [];
  question.value = "";
  tell("");
  at("conversation").append(exchange.element);
  draw();
  question.focus();
  toTheEnd();
  speaker.begin();
  const outcome = await answered(exchange, request(turn), signal);
  if (running?.signal === signal) running = null;
  const below = atTheEnd();
  if (!exchange.element.isConnected) { // cleared meanwhile
    release(media);
  } else if (outcome.reason === "failed" || (outcome.reason === "stopped" && !exchange.text)) {
    giveBack(exchange, text, media, outcome);
  } else {
    turns.push(turn, { role: "assistant", content: exchange.text });
    shown.push(...media);
    exchange.finish(outcome.figures, "");
    speaker.end(outcome.reason === "stopped" ? "Stopped" : "End of the answer");
  }
  draw();
  if (below) toTheEnd();
}

/** Show an answer as it comes; {reason, figures, error}. Nothing is thrown. */
async function answered(exchange, body, signal) {
  const times = { begin: performance.now(), first: NaN, last: NaN, end: NaN };
  let usage = null;
  let reason = null;
  let error = null;
  try {
    for await (const bundle of chunks(body, key, signal)) {
      const choices = bundle.flatMap((chunk) => chunk.choices);
      const text = choices.map((choice) => choice.delta.content ?? "").join("");
      const tokens = choices.flatMap((choice) => choice.logprobs?.content ?? []);
      if (text || tokens.length) {
        times.last = performance.now();
        times.first ||= times.last;
        const below = atTheEnd();
        exchange.add(text, tokens);
        speaker.add(text);
        if (below) toTheEnd();
      }
      reason = choices.find((choice) => choice.finish_reason)?.finish_reason ?? reason;
      usage = bundle.find((chunk) => chunk.usage)?.usage ?? usage;
    }
  } catch (thrown) {
    reason = thrown.name === "AbortError" ? "stopped" : "failed";
    error = thrown;
  }
  times.end = performance.now();
  return { reason, error, figures: figuresOf(usage, reason, times, exchange.tokens.length) };
}

/** What was asked goes back to where it was written, before anything that was written since. */
function giveBack(exchange, text, media, { reason, error, figures }) {
  question.value = [text, question.value].filter(Boolean).join("\n");
  if (exchange.text) {
    exchange.element.classList.add("broken");
    exchange.finish(figures, "Not part of the conversation: the answer broke off.");
    shown.push(...media);
  } else {
    exchange.element.remove();
  }
  attached = [...media, ...attached];
  speaker.end(reason === "stopped" ? "Stopped" : "");
  if (reason === "failed") failed(error);
}

// The composer sticks to the window's end: the page is at its end when nothing is left below.
const atTheEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 60;
const toTheEnd = () => scrollTo({ top: document.documentElement.scrollHeight });

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
at("stop").addEventListener("click", () => {
  running?.abort();
  question.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});
at("clear").addEventListener("click", () => {
  running?.abort();
  running = null;
  const before = shown;
  turns = [];
  shown = [];
  release(before);
  at("conversation").querySelectorAll("article").forEach((article) => article.remove());
  at("spoken").replaceChildren();
  tell("");
  draw();
  question.focus();
});

at("options").open = matchMedia("(min-width: 60rem)").matches;
connect();
