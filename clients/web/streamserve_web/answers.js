// Answers under way: asks for them, follows those that this page before a reload or another tab has asked for, ends them. What has
// come is in the chats and soon in storage, together with its place in the stream, so that whoever opens the page goes on from there.

import { figuresOf, tokensArrived } from "./figures.js";
import { endAnswer, hasText, isUnderWay, messagesUntil, turnUnderWay } from "./turns.js";

const ASK_AGAIN_MS = 60000; // a question that never reached the server is asked by whoever opens the page this soon
const HEAD_START_MS = 1000; // the tab that has a question asks it; if that tab is gone, another does
const FAILURES = { resume_gap: "lost", too_large: "tooLarge" };

export class Answers {
  // parameters(): of a request, without its messages. onProgress(chat, turn): text has come. onEnd(chat, turn): so has the ending.
  constructor(socket, chats, { parameters, onProgress, onEnd }) {
    this.socket = socket;
    this.chats = chats;
    this.parameters = parameters;
    this.onProgress = onProgress;
    this.onEnd = onEnd;
  }

  ask(chat, turn) {
    this.socket.create(turn.answer, this.body(chat, turn), this.listener(chat, turn));
  }

  // Stop is now, whatever the line does: what the server still has to say of this answer is not wanted.
  stop(chat) {
    const turn = turnUnderWay(chat);
    if (!turn) return;
    this.socket.cancel(turn.answer.requestId);
    this.end(chat, turn, "stopped");
  }

  answerNow(chat) {
    const turn = turnUnderWay(chat);
    if (turn) this.socket.answerNow(turn.answer.requestId);
  }

  // Follow what is under way in any chat, and nothing else.
  followAll() {
    const underWay = new Map();
    for (const chat of this.chats.list) {
      for (const turn of chat.turns.filter(isUnderWay)) underWay.set(turn.answer.requestId, [chat, turn]);
    }
    for (const requestId of this.socket.streams.keys()) if (!underWay.has(requestId)) this.socket.cancel(requestId);
    for (const [requestId, [chat, turn]] of underWay) if (!this.socket.streams.has(requestId)) this.follow(chat, turn);
  }

  follow(chat, turn) {
    const age = Date.now() - turn.answer.askedAt;
    if (turn.answer.next === 0 && age < HEAD_START_MS) {
      setTimeout(() => this.followAll(), HEAD_START_MS - age);
      return;
    }
    const body = age < ASK_AGAIN_MS ? this.body(chat, turn) : null;
    this.socket.follow(turn.answer, body, this.listener(chat, turn));
  }

  body(chat, turn) {
    const { system, ...parameters } = this.parameters();
    const messages = messagesUntil(chat, turn);
    if (system) messages.unshift({ role: "system", content: system });
    const options = { include_usage: true, continuous_usage_stats: true, include_progress: true };
    return { messages, stream_options: options, ...parameters };
  }

  listener(chat, turn) {
    const { answer } = turn;
    return {
      chunk: (data) => {
        const isFirst = !hasText(answer);
        takeChunk(answer, data);
        if (isFirst && !data.progress) this.chats.saveNow(chat);
        else this.chats.saveSoon(chat);
        this.onProgress(chat, turn);
      },
      done: (status) => this.end(chat, turn, endingOf(answer, status)),
      failed: ({ code, message }) => this.end(chat, turn, FAILURES[code] ?? "failed", FAILURES[code] ? null : message),
    };
  }

  end(chat, turn, ending, error = null) {
    endAnswer(turn.answer, ending, error, figuresOf(turn.answer.timing));
    this.chats.saveNow(chat);
    this.onEnd(chat, turn);
  }
}

function endingOf(answer, status) {
  if (status === "cancelled") return "stopped";
  return answer.finish === "length" ? "cutOff" : "complete";
}

function takeChunk(answer, data) {
  const choice = data.choices[0];
  answer.progress = data.progress ?? null;
  if (!choice) return;
  answer.content += choice.delta.content ?? "";
  answer.reasoning += choice.delta.reasoning_content ?? "";
  if (choice.finish_reason) answer.finish = choice.finish_reason;
  else if (data.usage) tokensArrived(answer.timing, data.usage.completion_tokens);
}
