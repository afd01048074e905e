// Time to first token and tokens per second of one answer, measured where the reader sits: plain numbers, in milliseconds since
// 1970, which are stored with the answer and so outlive a reload.

export const newTiming = () => ({ sentAt: Date.now(), firstAt: null, lastAt: null, tokens: 0 });

// completionTokens: the server's own count, which also holds tokens that completed no character yet.
export function tokensArrived(timing, completionTokens) {
  timing.lastAt = Date.now();
  timing.firstAt ??= timing.lastAt;
  timing.tokens = completionTokens;
}

export function figuresOf(timing) {
  if (!timing?.firstAt) return "";
  const first = `TTFT ${timing.firstAt - timing.sentAt} ms`;
  const seconds = (timing.lastAt - timing.firstAt) / 1000;
  const rate = timing.tokens > 1 && seconds > 0 ? ` · ${((timing.tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
  return `${first}${rate} · ${timing.tokens} tokens`;
}
