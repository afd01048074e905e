// One WebSocket for every chat. Streams are told apart by stream_id; after a drop the socket reconnects with growing
// pauses and resumes each unfinished stream after the last event it saw, so that no token is lost or shown twice. The client names
// its requests, so that a stream of which nothing has come yet can be asked for, too.

const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 8000;
const PING_MS = 20000;

export class StreamSocket {
  // onState(state): "connecting" | "connected" | "refused". apiKey(): the key to offer, or "".
  constructor(url, { apiKey, onState }) {
    this.url = url;
    this.apiKey = apiKey;
    this.onState = onState;
    this.streams = new Map();
    this.pauseMs = FIRST_PAUSE_MS;
    this.connect();
  }

  // Start a chat stream. listener: { chunk(data), done(status), failed(error) }; exactly one of the last two is called, once.
  create(streamId, body, listener) {
    const requestId = randomId();
    this.streams.set(streamId, { listener, requestId, responseId: null, next: 0, isSent: false, isCancelled: false, body });
    this.sendCreate(streamId);
  }

  // While the line is down the wish is kept, and said once it is back.
  cancel(streamId) {
    const stream = this.streams.get(streamId);
    if (!stream) return;
    stream.isCancelled = true;
    this.sendCancel(streamId);
  }

  reconnect() {
    this.pauseMs = FIRST_PAUSE_MS;
    clearTimeout(this.retry);
    clearInterval(this.ping);
    const old = this.socket;
    this.connect();
    old?.close();
  }

  connect() {
    this.onState("connecting");
    const key = this.apiKey();
    const protocols = key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"];
    const socket = new WebSocket(this.url, protocols);
    let wasOpen = false;
    this.socket = socket;
    socket.onopen = () => {
      wasOpen = true;
      this.pauseMs = FIRST_PAUSE_MS;
      this.onState("connected");
      this.resumeStreams();
      this.isQuiet = false;
      this.ping = setInterval(() => this.checkLine(), PING_MS);
    };
    socket.onmessage = ({ data }) => {
      this.isQuiet = false;
      this.receive(JSON.parse(data));
    };
    socket.onclose = ({ code }) => {
      if (this.socket !== socket) return; // replaced by reconnect()
      clearInterval(this.ping);
      this.onState(code === 4401 ? "refused" : "connecting");
      this.retry = setTimeout(() => this.connect(), this.pauseMs * (0.5 + Math.random()));
      if (!wasOpen) this.checkKey();
      this.pauseMs = Math.min(2 * this.pauseMs, LONGEST_PAUSE_MS);
    };
  }

  // A line that died without a word, as one does when a laptop sleeps, shows by a ping that brings nothing back.
  checkLine() {
    if (this.isQuiet) return this.reconnect();
    this.isQuiet = true;
    this.send({ type: "ping" });
  }

  // A browser does not say why an upgrade was refused: ask over HTTP.
  async checkKey() {
    const key = this.apiKey();
    try {
      const answer = await fetch("v1/models", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
      if (answer.status === 401) this.onState("refused");
    } catch {
      // The server is away: the next attempt to connect tells.
    }
  }

  resumeStreams() {
    for (const [streamId, stream] of this.streams) {
      if (!stream.isSent) this.sendCreate(streamId);
      else this.sendResume(streamId, stream);
      if (stream.isCancelled) this.sendCancel(streamId);
    }
  }

  sendCancel(streamId) {
    this.send({ type: "response.cancel", stream_id: streamId });
  }

  sendCreate(streamId) {
    const stream = this.streams.get(streamId);
    const create = { type: "chat.completion.create", stream_id: streamId, request_id: stream.requestId, resumable: true };
    stream.isSent = this.send({ ...create, ...stream.body });
  }

  sendResume(streamId, { requestId, responseId, next }) {
    this.send({ type: "response.resume", response_id: responseId ?? requestId, starting_after: next - 1, stream_id: streamId });
  }

  send(message) {
    if (this.socket.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  receive(event) {
    const stream = this.streams.get(event.stream_id);
    if (!stream) return;
    if (event.sequence_number !== undefined) {
      if (event.sequence_number < stream.next) return; // replayed, seen before
      stream.next = event.sequence_number + 1;
    }
    if (event.type === "chat.completion.chunk") {
      stream.responseId = event.data.id;
      stream.listener.chunk(event.data);
    } else if (event.type === "chat.completion.done") {
      this.streams.delete(event.stream_id);
      stream.listener.done(event.status);
    } else if (event.type === "error" && event.error.code === "resume_gap" && stream.responseId === null && !stream.isCancelled) {
      this.sendCreate(event.stream_id); // the first copy never arrived
    } else if (event.type === "error") {
      this.fail(event.stream_id, event.error);
    }
  }

  fail(streamId, error) {
    const { listener } = this.streams.get(streamId);
    this.streams.delete(streamId);
    listener.failed(error);
  }
}

// crypto.randomUUID is there on secure origins only, and this page is often served without TLS.
function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
