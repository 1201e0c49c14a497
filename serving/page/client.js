/* The service, as `GET /docs` describes it. Addresses are relative, so that the page also works below a path. */

const POLL_MS = 500;
const MOST_MISSING = 10;
const KEY = "backline-key";

/** The API key, for as long as this tab lives. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: value => value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY),
  headers: () => key.get() ? { Authorization: `Bearer ${key.get()}` } : {},
};

/** An answer that is not 200, in the words of the service (RFC 9457). `status` 0: there was no answer. */
export class Refusal extends Error {
  constructor({ status, title, detail, retryAfter_s = null }) {
    super(detail ? `${title}: ${detail}` : title);
    Object.assign(this, { status, title, detail, retryAfter_s });
  }
}

export async function ready() {
  try { return (await fetch("readyz")).ok; } catch { return false; }
}

/** The models to choose from; a Refusal of 401 when a key is wanted. */
export async function models() {
  const answer = await fetch("v1/models", { headers: key.headers() });
  if (!answer.ok) throw refusal(answer.status, await answer.text(), answer.headers.get("Retry-After"));
  return (await answer.json()).models;
}

/** A band for `vocal` (`{blob, name}`): the stems as a ZIP, and what the headers tell.
    `told` hears `{state: "sending", share}`, then what `/v1/progress` answers, or `{state: "unknown"}`. */
export function accompany({ vocal, fields, told, signal }) {
  const body = new FormData(), id = uuid();
  body.append("vocal", vocal.blob, vocal.name);
  body.append("output", "stems");
  for (const [name, value] of Object.entries(fields)) if (value !== "" && value !== null) body.append(name, value);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch cannot tell how much of a body has been sent
    let polling = null;
    request.open("POST", "v1/accompaniments");
    request.responseType = "blob";
    request.setRequestHeader("X-Request-Id", id);
    for (const [name, value] of Object.entries(key.headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => told({ state: "sending", share: total ? loaded / total : 0 });
    request.upload.onload = () => { polling = poll(id, told); };
    signal.addEventListener("abort", () => request.abort());
    request.onloadend = async () => {
      polling?.stop();
      if (signal.aborted) return reject(signal.reason);
      const header = name => request.getResponseHeader(name);
      if (request.status === 200) {
        const numbers = name => JSON.parse(header(name) || "null");
        return resolve({ zip: request.response, seed: header("X-Backline-Seed"), model: decodeURIComponent(header("X-Backline-Model")), fit: numbers("X-Backline-Fit"), fits: numbers("X-Backline-Candidate-Fits") });
      }
      if (request.status === 0) return reject(new Refusal({ status: 0, title: "The service did not answer. Is it running?" }));
      reject(refusal(request.status, await request.response.text(), header("Retry-After")));
    };
    request.send(body);
  });
}

function refusal(status, text, retryAfter) {
  let problem = {};
  try { problem = JSON.parse(text); } catch { /* a proxy's own page: the status says enough */ }
  return new Refusal({ status, title: problem.title || `The service answered ${status}`, detail: problem.detail, retryAfter_s: retryAfter === null ? null : Number(retryAfter) });
}

function poll(id, told) {
  let missing = 0, stopped = false, known = false;
  const ask = async () => {
    try {
      const answer = await fetch(`v1/progress/${id}`, { headers: key.headers() });
      if (stopped) return;
      if (answer.ok) {
        [missing, known] = [0, true];
        told(await answer.json());
      } else {
        missing++; // of several ingresses only one knows it: what is known stays
        if (!known) told({ state: "unknown" });
      }
    } catch { missing++; }
    // A service that keeps no progress is not asked for ever.
    if (!stopped && missing < MOST_MISSING) setTimeout(ask, POLL_MS);
  };
  told({ state: "unknown" });
  setTimeout(ask, POLL_MS);
  return { stop() { stopped = true; } };
}

/* crypto.randomUUID exists only where the page is served securely. */
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = bytes[6] & 0x0f | 0x40;
  bytes[8] = bytes[8] & 0x3f | 0x80;
  return [...bytes].map((byte, i) => ([4, 6, 8, 10].includes(i) ? "-" : "") + byte.toString(16).padStart(2, "0")).join("");
}
