// Time to first token and tokens per second of one answer, measured where the reader sits.

export class Figures {
  constructor() {
    this.sentAt = performance.now();
    this.firstAt = null;
    this.lastAt = null;
    this.tokens = 0;
  }

  // completionTokens: the server's own count, which also holds tokens that completed no character yet.
  arrived(completionTokens) {
    const now = performance.now();
    this.firstAt ??= now;
    this.lastAt = now;
    this.tokens = completionTokens;
  }

  toString() {
    if (this.firstAt === null) return "";
    const first = `TTFT ${Math.round(this.firstAt - this.sentAt)} ms`;
    const seconds = (this.lastAt - this.firstAt) / 1000;
    const rate = this.tokens > 1 && seconds > 0 ? ` · ${((this.tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    return `${first}${rate} · ${this.tokens} tokens`;
  }
}
