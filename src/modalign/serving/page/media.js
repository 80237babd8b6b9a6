// Files that are dropped, chosen, pasted or recorded become parts of a message, with a preview.

const ENDINGS = {
  image: ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"],
  audio: ["wav", "mp3", "flac", "ogg", "oga", "opus", "m4a", "aac", "aiff", "aif"],
  video: ["mp4", "mov", "mkv", "webm", "avi", "m4v"],
};
const VALUES = ["series", "table", "vectors"]; // stand in the request itself: read from JSON files
const SHOWN = { image: "an image", audio: "a sound", video: "a video" };

/** What can be attached, in words: "an image or a sound"; empty where the model takes text alone. */
export function inWords(modalities) {
  const words = Object.keys(SHOWN).filter((kind) => modalities.includes(kind)).map((kind) => SHOWN[kind]);
  const values = VALUES.filter((kind) => modalities.includes(kind));
  if (values.length) words.push(`a JSON file (${values.join(", ")})`);
  return words.length > 1 ? `${words.slice(0, -1).join(", ")} or ${words.at(-1)}` : words.join("");
}

/** For the file chooser. */
export function accepted(modalities) {
  const kinds = Object.keys(ENDINGS).filter((kind) => modalities.includes(kind));
  const endings = kinds.flatMap((kind) => [`${kind}/*`, ...ENDINGS[kind].map((ending) => `.${ending}`)]);
  return [...endings, ...(VALUES.some((kind) => modalities.includes(kind)) ? [".json"] : [])].join(",");
}

function kindOf(file) {
  const ending = file.name.split(".").pop().toLowerCase();
  const told = file.type.split("/")[0];
  if (told in ENDINGS) return told;
  if (ending === "json" || file.type === "application/json") return "json";
  return Object.keys(ENDINGS).find((kind) => ENDINGS[kind].includes(ending));
}

/**
 * A file as {name, kind, url, part}: url is of its preview (to be revoked), part is for the request.
 * Throws an Error with words for the user where the model takes no such thing.
 */
export async function readFile(file, modalities) {
  const kind = kindOf(file);
  const takes = inWords(modalities) || "text only";
  if (kind === "json") return value(file, await file.text(), modalities, takes);
  if (!kind || !modalities.includes(kind)) {
    throw new Error(`${file.name}: this model takes ${takes}, not ${kind ? SHOWN[kind] : "this kind of file"}.`);
  }
  if (!file.size) throw new Error(`${file.name} is empty.`);
  const data = await base64(file);
  // Systems name media types differently (audio/x-m4a, or none): the server reads the bytes.
  const url = `data:application/octet-stream;base64,${data}`;
  const part = {
    image: { type: "image_url", image_url: { url } },
    audio: { type: "input_audio", input_audio: { data, format: file.name.split(".").pop().toLowerCase() } },
    video: { type: "video_url", video_url: { url } },
  }[kind];
  return { name: file.name, kind, url: URL.createObjectURL(file), part };
}

function value(file, text, modalities, takes) {
  let found;
  try {
    found = JSON.parse(text);
  } catch (error) {
    throw new Error(`${file.name}: no valid JSON (${error.message}).`);
  }
  const fitting = (Array.isArray(found) ? ["series", "vectors"] : ["table"]).filter((kind) => modalities.includes(kind));
  if (found === null || typeof found !== "object" || !fitting.length) {
    throw new Error(`${file.name}: this model takes ${takes}, and the file holds none of them.`);
  }
  if (fitting.length > 1) {
    throw new Error(`${file.name}: this model takes series and vectors, and a list may be either: send it by the API.`);
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
