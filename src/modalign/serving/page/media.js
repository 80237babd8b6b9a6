// Files that are dropped, chosen, pasted or recorded become parts of a message, with a preview.

// What the model takes comes from the server, `media` of /v1/models: {name, words, endings, json} of each modality;
// json is what a file that holds a value begins with ("array" or "object"), null where media are files.

const inFiles = (media) => media.filter((kind) => !kind.json);
const inJson = (media) => media.filter((kind) => kind.json);

/** What can be attached, in words: "an image or a sound"; empty where the model takes text alone. */
export function inWords(media) {
  const words = inFiles(media).map((kind) => kind.words);
  const values = inJson(media).map((kind) => kind.name);
  if (values.length) words.push(`a JSON file (${values.join(", ")})`);
  return words.length > 1 ? `${words.slice(0, -1).join(", ")} or ${words.at(-1)}` : words.join("");
}

/** For the file chooser. */
export function accepted(media) {
  const kinds = inFiles(media).flatMap((kind) => [`${kind.name}/*`, ...kind.endings]);
  return [...kinds, ...(inJson(media).length ? [".json"] : [])].join(",");
}

/**
 * A file as {name, kind, url, part}: url is of its preview (to be revoked), part is for the request.
 * Throws an Error with words for the user where the model takes no such thing.
 */
export async function readFile(file, media) {
  const takes = inWords(media) || "text only";
  const ending = `.${file.name.split(".").pop().toLowerCase()}`;
  const told = file.type.split("/")[0];
  if (ending === ".json" || file.type === "application/json") return value(file, await file.text(), media, takes);
  const kind = inFiles(media).find((each) => each.name === told || each.endings.includes(ending))?.name;
  if (!kind) throw new Error(`${file.name}: this model takes ${takes}, not ${told || "this kind of file"}.`);
  if (!file.size) throw new Error(`${file.name} is empty.`);
  // Systems name media types differently (audio/x-m4a, or none): the server reads the bytes.
  const data = `data:application/octet-stream;base64,${await base64(file)}`;
  const part = { type: `${kind}_url`, [`${kind}_url`]: { url: data } };
  return { name: file.name, kind, url: URL.createObjectURL(file), part };
}

function value(file, text, media, takes) {
  let found;
  try {
    found = JSON.parse(text);
  } catch (error) {
    throw new Error(`${file.name}: no valid JSON (${error.message}).`);
  }
  const shape = Array.isArray(found) ? "array" : found === null ? null : typeof found;
  const fitting = inJson(media).filter((kind) => kind.json === shape).map((kind) => kind.name);
  if (!fitting.length) throw new Error(`${file.name}: this model takes ${takes}, and the file holds none of them.`);
  if (fitting.length > 1) {
    throw new Error(`${file.name}: this model takes ${fitting.join(" and ")}, and a list may be either: send it by the API.`);
  }
  return { name: file.name, kind: fitting[0], url: null, part: { type: fitting[0], [fitting[0]]: found } };
}

function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${blob.name ?? "The file"} cannot be read.`));
    reader.readAsDataURL(blob);
  });
}

/** An element that shows or plays a medium. */
export function preview(medium) {
  const element = document.createElement({ image: "img", audio: "audio", video: "video" }[medium.kind] ?? "span");
  element.className = "preview";
  if (medium.kind === "image") {
    element.alt = medium.name;
  } else if (medium.url) {
    element.controls = true;
    element.setAttribute("aria-label", medium.name);
  } else {
    element.textContent = medium.kind;
  }
  if (medium.url) element.src = medium.url;
  return element;
}

export const canRecord = () => Boolean(navigator.mediaDevices?.getUserMedia && window.MediaRecorder);

let recordings = 0;

/** Start the microphone; returns a function that stops it and gives a WAV file. */
export async function startRecording() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const recorder = new MediaRecorder(stream);
  const pieces = [];
  recorder.ondataavailable = (event) => pieces.push(event.data);
  const ended = new Promise((resolve) => { recorder.onstop = resolve; });
  const begun = new Promise((resolve) => { recorder.onstart = resolve; });
  recorder.start();
  await begun;
  return async () => {
    recorder.stop();
    await ended;
    stream.getTracks().forEach((track) => track.stop());
    const context = new AudioContext();
    try {
      const sound = await context.decodeAudioData(await new Blob(pieces).arrayBuffer());
      return new File([wav(sound)], `recording-${++recordings}.wav`, { type: "audio/wav" });
    } finally {
      await context.close();
    }
  };
}

/** Channels averaged, 16 bits, as a RIFF WAVE file (Microsoft and IBM, 1991). */
export function wav(sound) {
  const view = new DataView(new ArrayBuffer(44 + 2 * sound.length));
  const ascii = (at, text) => [...text].forEach((sign, place) => view.setUint8(at + place, sign.charCodeAt(0)));
  ascii(0, "RIFF");
  view.setUint32(4, 36 + 2 * sound.length, true);
  ascii(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, sound.sampleRate, true);
  view.setUint32(28, 2 * sound.sampleRate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  ascii(36, "data");
  view.setUint32(40, 2 * sound.length, true);
  const channels = Array.from({ length: sound.numberOfChannels }, (_, number) => sound.getChannelData(number));
  for (let place = 0; place < sound.length; place++) {
    const mean = channels.reduce((sum, channel) => sum + channel[place], 0) / channels.length;
    view.setInt16(44 + 2 * place, Math.round(32767 * Math.max(-1, Math.min(1, mean))), true);
  }
  return view;
}
