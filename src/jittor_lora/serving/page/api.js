import { remember, remembered } from "./dom.js";
import { events } from "./events.js";

// kind: "network", "key", "busy", "stopping", "request", "server" or "broken" (a stream that ended early).
export class ApiError extends Error {
  constructor(kind, message, { status = 0, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { kind, status, retryAfter });
  }
}

const KINDS = { 401: "key", 429: "busy", 503: "stopping" };

function kindOf(status) {
  return KINDS[status] || (status >= 500 ? "server" : "request");
}

async function refusal(response) {
  let message = "";
  const text = await response.text().catch(() => "");
  try {
    const { error, detail } = JSON.parse(text);
    message = (error && error.message) || (typeof detail === "string" ? detail : "");
  } catch {
    message = text.slice(0, 500);
  }
  const seconds = Number.parseInt(response.headers.get("retry-after"), 10);
  return new ApiError(kindOf(response.status), message || `HTTP ${response.status}`,
    { status: response.status, retryAfter: Number.isNaN(seconds) ? null : seconds });
}

// Paths are relative to the page ("v1/models"), which may lie below a proxy's prefix. Every method raises ApiError, or
// an AbortError once `signal` is aborted.
export class Api {
  constructor(onOutcome) {
    this.onOutcome = onOutcome; // called with null after an answer, with the ApiError after a failure
    this.key = remembered("sessionStorage", "key");
  }

  useKey(key) {
    this.key = key;
    remember("sessionStorage", "key", key);
  }

  async request(path, { method = "GET", body, signal } = {}) {
    // A header holds nothing else.
    if (this.key && /[^\x21-\x7e]/.test(this.key)) throw this.failed(new ApiError("key", "", { status: 401 }));
    const headers = {};
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(new URL(path, document.baseURI), {
        method, headers, signal, cache: "no-store", body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw this.failed(new ApiError("network", ""));
    }
    if (!response.ok) throw this.failed(await refusal(response));
    this.onOutcome(null);
    return response;
  }

  failed(error) {
    this.onOutcome(error);
    return error;
  }

  async get(path, options) {
    return (await this.request(path, options)).json();
  }

  // JSON where the answer is JSON, else its text (load and unload of adapters).
  async post(path, body, options) {
    const response = await this.request(path, { ...options, method: "POST", body });
    const json = (response.headers.get("content-type") || "").startsWith("application/json");
    return json ? response.json() : response.text();
  }

  // The chunks of a stream, without its final [DONE].
  async *stream(path, body, options) {
    const response = await this.request(path, { ...options, method: "POST", body: { ...body, stream: true } });
    try {
      for await (const data of events(response.body)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError("server", chunk.error.message || "");
        yield chunk;
      }
    } catch (error) {
      if (error.name === "AbortError" || error instanceof ApiError) throw error;
      throw this.failed(new ApiError("broken", ""));
    }
    throw this.failed(new ApiError("broken", ""));
  }
}
