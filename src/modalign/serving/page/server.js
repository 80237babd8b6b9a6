// What the page says to the server: which model is there, and a conversation to be answered in pieces.

export class ServerError extends Error {
  /** @param {string} message in the server's words @param {number} status of HTTP; 0 where none came */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function reached(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(lost(options?.body), 0);
  }
  if (!response.ok) throw new ServerError(await words(response), response.status);
  return response;
}

/** Why no answer came: a server that refuses a large body may hang up before the browser hears why. */
function lost(body) {
  const megabytes = (body?.length ?? 0) / 2 ** 20;
  if (megabytes > 1) {
    return `The connection broke while ${megabytes.toFixed(0)} MB were sent: the media may be larger than `
      + "the server takes (--max-body-mb), or it is no longer running.";
  }
  return "The server cannot be reached. Is it still running?";
}

async function words(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `The server answered ${response.status}: ${text.slice(0, 500) || response.statusText}`;
  }
}

/** The model: {id, modalities, media, max_model_len}. */
export async function servedModel(key) {
  const response = await reached("v1/models", { headers: headers(key) });
  return (await response.json()).data[0];
}

/** The chunks of a streamed answer, in bundles: all that arrived together. */
export async function* chunks(request, key, signal) {
  const response = await reached("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const events of serverSentEvents(response.body, signal)) {
    const done = events.indexOf("[DONE]");
    const bundle = (done < 0 ? events : events.slice(0, done)).map((event) => JSON.parse(event));
    const failed = bundle.find((chunk) => chunk.error);
    yield bundle.filter((chunk) => !chunk.error);
    if (failed) throw new ServerError(failed.error.message, 500);
    if (done >= 0) return;
  }
  throw new ServerError("The connection ended before the answer did.", 0);
}

/** The data of server-sent events, in bundles as they are read (WHATWG HTML, section 9.2). */
async function* serverSentEvents(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let open = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (open + value).split("\n\n");
      open = blocks.pop();
      yield blocks.filter((block) => block.startsWith("data: ")).map((block) => block.slice(6));
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof SyntaxError) throw error;
    signal.throwIfAborted();
    throw new ServerError("The connection broke before the answer was complete.", 0);
  } finally {
    reader.cancel().catch(() => {});
  }
}
