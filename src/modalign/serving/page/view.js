// How a conversation looks: a question with its media, the answer as it comes, its tokens and times.

import { preview } from "./media.js";

/** An element with properties, children and texts. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** One question and its answer. */
export class Exchange {
  constructor(question, media) {
    this.text = "";
    this.tokens = [];
    this.answer = make("p", { className: "answer" });
    this.below = make("div", { className: "below" });
    const asked = make("div", { className: "question" }, make("h2", { className: "who", textContent: "Question" }));
    if (media.length) asked.append(make("div", { className: "media" }, ...media.map(preview)));
    if (question) asked.append(make("p", { textContent: question }));
    this.element = make("article", { className: "exchange running" }, asked,
      make("div", { className: "reply" }, make("h2", { className: "who", textContent: "Answer" }), this.answer, this.below));
  }

  /** Show what came together: text, and tokens with their log-probabilities. */
  add(text, tokens) {
    this.text += text;
    this.tokens.push(...tokens);
    if (text) this.answer.append(text);
  }

  /** @param {[string, string][]} figures label and value @param {string} note what else is to be said */
  finish(figures, note) {
    this.element.classList.remove("running");
    this.below.append(make("dl", { className: "figures" }, ...figures.map(([label, value]) =>
      make("div", {}, make("dt", { textContent: label }), make("dd", { textContent: value })))));
    if (note) this.below.append(make("p", { className: "hint", textContent: note }));
    if (this.tokens.length) this.below.append(probabilities(this.tokens));
    if (!this.text) this.answer.append(make("span", { className: "hint", textContent: "(nothing)" }));
  }
}

const LEVELS = [[0.9, "over 90 %"], [0.5, "50 to 90 %"], [0.1, "10 to 50 %"], [0, "under 10 %"]];
const level = (probability) => LEVELS.findIndex(([least]) => probability >= least);

function percent(probability) {
  const value = 100 * probability;
  if (value > 0 && value < 0.01) return "< 0.01 %";
  return `${value.toFixed(value < 1 || (value > 99 && value < 100) ? 2 : 1)} %`;
}

/** What a token looks like in a table: blanks and pieces of characters made visible. */
function visible(token) {
  if (!token.bytes.length || token.token.includes("\ufffd")) {
    return token.bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("") || "(empty)";
  }
  return token.token.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}

/** Tokens whose bytes make whole characters together: {text, probability of the least likely}. */
function readable(tokens) {
  const decoder = new TextDecoder();
  const pieces = [];
  let least = Infinity;
  tokens.forEach((token, place) => {
    least = Math.min(least, token.logprob);
    const text = decoder.decode(new Uint8Array(token.bytes), { stream: place < tokens.length - 1 });
    if (text) {
      pieces.push({ text, probability: Math.exp(least) });
      least = Infinity;
    }
  });
  return pieces;
}

/** Drawn when opened: the answer coloured token by token, and a table that says the same in words. */
function probabilities(tokens) {
  const details = make("details", { className: "probabilities" }, make("summary", { textContent: "Token probabilities" }));
  details.addEventListener("toggle", () => details.append(coloured(tokens), legend(), table(tokens)), { once: true });
  return details;
}

function coloured(tokens) {
  const paragraph = make("p", { className: "coloured", ariaHidden: "true" });
  for (const { text, probability } of readable(tokens)) {
    paragraph.append(make("span", { className: `token level-${level(probability)}`, title: percent(probability), textContent: text }));
  }
  return paragraph;
}

function legend() {
  return make("p", { className: "legend", ariaHidden: "true" },
    ...LEVELS.map(([, words], number) => make("span", { className: `token level-${number}`, textContent: words })));
}

function table(tokens) {
  const head = make("tr", {}, ...["Token", "Probability", "Most likely"].map((words) => make("th", { scope: "col", textContent: words })));
  const rows = tokens.map((token) => make("tr", {},
    make("td", {}, make("code", { textContent: visible(token) })),
    make("td", { textContent: percent(Math.exp(token.logprob)) }),
    make("td", {}, ...token.top_logprobs.flatMap((other) =>
      [make("code", { textContent: visible(other) }), ` ${percent(Math.exp(other.logprob))}  `]))));
  return make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Probability of every token" },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

const ENDS = { stop: "ended by itself", length: "cut at the most tokens", tool_calls: "a tool call" };

/**
 * Label and value of what an answer took.
 * @param {object|null} usage as the server gives it; null where the answer was stopped
 * @param {{begin: number, first: number, last: number, end: number}} times in milliseconds; first is NaN without a token
 */
export function figuresOf(usage, reason, times, made) {
  const count = usage?.completion_tokens ?? made;
  const figures = [];
  if (usage) {
    const { cached_tokens: cached, ...kinds } = usage.prompt_tokens_details;
    const parts = Object.entries(kinds).filter(([, number]) => number)
      .map(([kind, number]) => `${number} ${kind.replace(/_tokens$/, "")}`);
    figures.push(["Prompt", `${usage.prompt_tokens} tokens (${parts.join(", ")})`], ["From cache", `${cached} tokens`]);
  }
  const ended = ENDS[reason] ?? reason;
  figures.push(["Answer", `${count} ${count === 1 ? "token" : "tokens"}, ${ended}`]);
  if (times.first) figures.push(["First token", seconds(times.first - times.begin)]);
  const spent = (times.last - times.first) / 1000;
  if (count > 1 && spent > 0) figures.push(["Speed", `${((count - 1) / spent).toPrecision(3)} tokens/s`]);
  figures.push(["Total", seconds(times.end - times.begin)]);
  return figures;
}

const seconds = (milliseconds) => (milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(2)} s`);

/** Tells screen readers the answer sentence by sentence, not token by token. */
export class Speaker {
  constructor(region, pause = 2000) {
    this.region = region;
    this.pause = pause;
  }

  begin() {
    this.region.replaceChildren();
    this.waiting = "";
    this.last = performance.now();
    this.say("Answering");
  }

  add(text) {
    this.waiting += text;
    const end = Math.max(...[". ", "! ", "? ", "\n", "。"].map((sign) => this.waiting.lastIndexOf(sign)));
    if (end < 0 || performance.now() - this.last < this.pause) return;
    this.say(this.waiting.slice(0, end + 1));
    this.waiting = this.waiting.slice(end + 1);
    this.last = performance.now();
  }

  end(words) {
    if (this.waiting.trim()) this.say(this.waiting);
    this.waiting = "";
    if (words) this.say(words);
  }

  say(text) {
    this.region.append(make("p", { textContent: text }));
  }
}
