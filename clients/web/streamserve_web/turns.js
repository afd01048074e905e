// Turns of a chat: a question and its answer. Knows neither storage, socket nor page.
//
// turn: { id, askedAt, question, answer }
// answer: { requestId, askedAt, next, content, reasoning, ending, error, finish, figures, timing, progress, before }
//   next    how many events of its stream are in it: where the stream is resumed
//   ending  null while the answer is under way, then "complete" | "cutOff" | "stopped" | "failed" | "tooLarge" | "lost"
//   timing  what figures.js measures meanwhile; figures is its text once the answer has ended
//   progress  before its first token: its place in the queue, or how much of its prompt has been read
//   before  while a question is asked again: the text of the answer before, which comes back if nothing else does

import { newTiming } from "./figures.js";

// crypto.randomUUID exists only on https and localhost; the page is also opened over a plain local network.
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function newTurn(question) {
  const answer = newAnswer(Date.now());
  return { id: newId(), askedAt: answer.askedAt, question, answer };
}

function newAnswer(askedAt) {
  return {
    requestId: newId(), askedAt, next: 0, content: "", reasoning: "", ending: null, error: null, finish: null, figures: "",
    timing: newTiming(), progress: null, before: null,
  };
}

export function askAgain(turn) {
  const { askedAt, content, reasoning } = turn.answer;
  const before = hasText(turn.answer) ? { content, reasoning } : null;
  turn.answer = { ...newAnswer(Math.max(Date.now(), askedAt + 1)), before };
}

export const isUnderWay = (turn) => turn.answer.ending === null;
export const turnUnderWay = (chat) => chat.turns.find(isUnderWay);
export const isOver = ({ ending }) => ending === "complete" || ending === "cutOff";
export const hasText = ({ content, reasoning }) => Boolean(content || reasoning);

// Without a text of its own an answer gets the one before back.
export function endAnswer(answer, ending, error, figures) {
  if (!hasText(answer)) Object.assign(answer, answer.before);
  Object.assign(answer, { ending, error, figures, timing: null, progress: null, before: null });
}

// What a model is sent: a turn that brought nothing is left out whole, since most templates want question and answer in turns, and
// what was refused once would be refused again.
export function messagesUntil(chat, last) {
  const earlier = chat.turns.slice(0, chat.turns.indexOf(last)).filter((turn) => hasText(turn.answer));
  const pairs = earlier.flatMap(({ question, answer }) => [
    { role: "user", content: question },
    { role: "assistant", content: answer.content },
  ]);
  return [...pairs, { role: "user", content: last.question }];
}

// Take over what another tab knows better; whether anything was. No turn is ever dropped. Answers change in place, because
// a stream may be filling them.
export function mergeTurns(own, theirs) {
  let isChanged = false;
  for (const turn of theirs) {
    const mine = own.find(({ id }) => id === turn.id);
    if (mine && !isAhead(turn.answer, mine.answer)) continue;
    if (!mine) own.push(turn);
    else if (mine.answer.requestId === turn.answer.requestId) Object.assign(mine.answer, turn.answer);
    else mine.answer = turn.answer;
    isChanged = true;
  }
  if (isChanged) own.sort((a, b) => a.askedAt - b.askedAt);
  return isChanged;
}

// Whether `own` has something that `theirs` do not.
export function hasMore(own, theirs) {
  return own.some((turn) => {
    const other = theirs.find(({ id }) => id === turn.id);
    return !other || isAhead(turn.answer, other.answer);
  });
}

// The later request, then the one that has come further. One tab's "lost" does not end what another still receives.
function isAhead(a, b) {
  if (a.askedAt !== b.askedAt) return a.askedAt > b.askedAt;
  if (a.next !== b.next) return a.next > b.next;
  return b.ending === null && a.ending !== null && a.ending !== "lost";
}
