// One WebSocket for every chat. A stream goes by its answer's requestId, and the answer says how far it has come: after a drop
// the socket reconnects with growing pauses and resumes each unfinished stream after the last event that is in its answer, so that
// no token is lost or shown twice. A stream of which nothing has come yet can be asked for by that name, too.

const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 8000;
const PING_MS = 20000;
const TOO_LARGE = 1009;

export class StreamSocket {
  // onState(state): "connecting" | "connected" | "refused" (a key is needed) | "away" (no server answers). apiKey(): the key to
  // offer, or "". Nothing is opened before `connect`.
  constructor(url, { apiKey, onState }) {
    this.url = url;
    this.apiKey = apiKey;
    this.onState = onState;
    this.streams = new Map();
    this.unsaidCancels = new Set();
    this.pauseMs = FIRST_PAUSE_MS;
  }

  // Start a chat stream. listener: { chunk(data), done(status), failed(error) }; at most one of the last two is called, once.
  create(answer, body, listener) {
    this.streams.set(answer.requestId, { answer, body, listener, isSent: false });
    this.sendCreate(answer.requestId);
  }

  // Go on with a stream that this page, before it was reloaded, or another tab has started. body: to start it with if the server
  // has never heard of it; null when it must have.
  follow(answer, body, listener) {
    this.streams.set(answer.requestId, { answer, body, listener, isSent: true });
    this.sendResume(answer.requestId);
  }

  // Let go of a stream and have it end, whoever reads it. While the line is down the wish is kept, and said once it is back.
  cancel(requestId) {
    const stream = this.streams.get(requestId);
    this.streams.delete(requestId);
    if (stream && !stream.isSent) return;
    // By its stream it can be cancelled before it has been admitted.
    const name = stream ? { stream_id: requestId } : { response_id: requestId };
    if (!this.send({ type: "response.cancel", ...name })) this.unsaidCancels.add(requestId);
  }

  // Have the model end its reasoning; the answer goes on in the same stream. While the line is down nothing is said.
  answerNow(requestId) {
    this.send({ type: "response.answer", stream_id: requestId });
  }

  reconnect() {
    this.disconnect();
    this.connect();
  }

  // Until the next `connect`; the streams go on there.
  disconnect() {
    this.pauseMs = FIRST_PAUSE_MS;
    clearTimeout(this.retry);
    clearInterval(this.ping);
    const old = this.socket;
    this.socket = null;
    old?.close();
  }

  connect() {
    const key = this.apiKey();
    const protocols = key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"];
    const socket = new WebSocket(this.url, protocols);
    let wasOpen = false;
    this.socket = socket;
    socket.onopen = () => {
      wasOpen = true;
      this.pauseMs = FIRST_PAUSE_MS;
      this.onState("connected");
      this.goOn();
      this.isQuiet = false;
      this.ping = setInterval(() => this.checkLine(), PING_MS);
    };
    socket.onmessage = ({ data }) => {
      this.isQuiet = false;
      this.receive(JSON.parse(data));
    };
    socket.onclose = ({ code }) => {
      if (this.socket !== socket) return; // let go of
      clearInterval(this.ping);
      this.retry = setTimeout(() => this.connect(), this.pauseMs * (0.5 + Math.random()));
      this.pauseMs = Math.min(2 * this.pauseMs, LONGEST_PAUSE_MS);
      if (code === TOO_LARGE) this.failLargest();
      if (code === 4401) this.onState("refused");
      else if (wasOpen) this.onState("connecting");
      else this.findReason();
    };
  }

  // A line that died without a word, as one does when a laptop sleeps, shows by a ping that brings nothing back.
  checkLine() {
    if (this.isQuiet) {
      this.onState("connecting");
      this.reconnect();
      return;
    }
    this.isQuiet = true;
    this.send({ type: "ping" });
  }

  // A browser does not say why an upgrade was refused: ask over HTTP.
  async findReason() {
    const key = this.apiKey();
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const status = await fetch("v1/models", { headers }).then((answer) => answer.status, () => 0);
    if (this.socket?.readyState === WebSocket.OPEN) return; // meanwhile
    if (status === 401) this.onState("refused");
    else this.onState(status === 0 || status >= 500 ? "away" : "connecting");
  }

  goOn() {
    for (const requestId of this.unsaidCancels) this.send({ type: "response.cancel", response_id: requestId });
    this.unsaidCancels.clear();
    for (const [requestId, { isSent }] of this.streams) {
      if (isSent) this.sendResume(requestId);
      else this.sendCreate(requestId);
    }
  }

  sendCreate(requestId) {
    const stream = this.streams.get(requestId);
    const create = { type: "chat.completion.create", stream_id: requestId, request_id: requestId, resumable: true };
    stream.isSent = this.send({ ...create, ...stream.body });
  }

  sendResume(requestId) {
    const { answer } = this.streams.get(requestId);
    this.send({ type: "response.resume", stream_id: requestId, response_id: requestId, starting_after: answer.next - 1 });
  }

  send(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  receive(event) {
    const stream = this.streams.get(event.stream_id);
    if (!stream) return;
    if (event.sequence_number !== undefined) {
      if (event.sequence_number < stream.answer.next) return; // replayed, seen before
      stream.answer.next = event.sequence_number + 1;
    }
    if (event.type === "chat.completion.chunk") {
      stream.listener.chunk(event.data);
    } else if (event.type === "chat.completion.done") {
      this.streams.delete(event.stream_id);
      stream.listener.done(event.status);
    } else if (event.type === "error") {
      this.takeError(event.stream_id, stream, event.error);
    }
  }

  takeError(requestId, stream, error) {
    const hasBegun = stream.answer.next > 0;
    if (error.code === "resume_gap" && !hasBegun && stream.body) this.sendCreate(requestId); // the first copy never arrived
    else if (error.param === "request_id" && !hasBegun) this.resumeSoon(requestId); // it did, or another tab was faster
    else this.fail(requestId, error);
  }

  // Not at once: a request can be resumed once it has been admitted.
  resumeSoon(requestId) {
    setTimeout(() => this.streams.has(requestId) && this.sendResume(requestId), FIRST_PAUSE_MS);
  }

  // The server hangs up on a message that is too large, without a word on which: sent again, it would cost every chat its line.
  failLargest() {
    const unbegun = [...this.streams].filter(([, { answer, body, isSent }]) => isSent && body && answer.next === 0);
    const sizeOf = ([, { body }]) => JSON.stringify(body).length;
    const [largest] = unbegun.sort((a, b) => sizeOf(b) - sizeOf(a));
    if (largest) this.fail(largest[0], { code: "too_large" });
  }

  fail(requestId, error) {
    const { listener } = this.streams.get(requestId);
    this.streams.delete(requestId);
    listener.failed(error);
  }
}
