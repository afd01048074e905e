// Ties the chats, the answers under way, the socket and the page together.

import { Answers } from "./answers.js";
import { Chats } from "./chats.js";
import { apiKey, askForKey, bindSettings, parameters } from "./settings.js";
import { StreamSocket } from "./socket.js";
import { lasting } from "./storage.js";
import { askAgain, hasText, isOver, newTurn, turnUnderWay } from "./turns.js";
import { drawAnswer, drawChats, drawComposer, drawConnection, drawMessages, forgetDrawn } from "./view.js";
import { switchLanguage, translatePage } from "./words.js";

const $ = (id) => document.getElementById(id);
let state = "connecting";
let model = null;
let shown = null; // the chat whose draft is in the composer

// Streams.

const scheme = location.protocol === "https:" ? "wss:" : "ws:";
const socket = new StreamSocket(`${scheme}//${location.host}${location.pathname.replace(/[^/]*$/, "")}v1/ws`, {
  apiKey,
  onState: (next) => {
    state = next;
    drawAll();
    if (state === "connected") findModel(); // of a server that was restarted, another one perhaps
  },
});

const chats = new Chats({
  onMerged: () => {
    answers.followAll();
    if (chats.current === shown) drawAll();
    else showCurrent(); // the one that stood here has gone
  },
});

const answers = new Answers(socket, chats, {
  parameters: () => ({ model, ...parameters() }),
  onProgress: redrawSoon,
  onEnd: (chat, turn) => {
    giveBack(chat, turn);
    drawAll();
  },
});

async function findModel() {
  const headers = apiKey() ? { Authorization: `Bearer ${apiKey()}` } : {};
  const answer = await fetch("v1/models", { headers }).catch(() => null);
  if (!answer?.ok) return;
  model = (await answer.json()).data[0]?.id ?? null;
  $("model").textContent = model;
}

// Without a key nothing is taken: what stands in the composer stays there.
function mayAsk() {
  if (state === "refused") askForKey();
  return state !== "refused" && !turnUnderWay(chats.current);
}

function send() {
  const chat = chats.current;
  const text = $("prompt").value.trim();
  if (!text || !mayAsk()) return;
  const turn = newTurn(text);
  chat.turns.push(turn);
  chats.save(chat);
  setPrompt("");
  answers.ask(chat, turn);
  drawAll();
}

function regenerate() {
  const chat = chats.current;
  const turn = chat.turns.at(-1);
  if (!turn || !mayAsk()) return;
  if ($("prompt").value === turn.question) setPrompt(""); // it was given back
  askAgain(turn);
  chats.save(chat);
  answers.ask(chat, turn);
  drawAll();
}

// A question that brought nothing goes back to where it was typed, to be changed or sent again.
function giveBack(chat, { question, answer }) {
  if (hasText(answer) || isOver(answer) || chats.draft(chat)) return;
  if (chat === chats.current) setPrompt(question);
  else chats.keepDraft(chat, question);
}

const stop = () => answers.stop(chats.current);

// Drawing. Tokens may come faster than frames: at most one redraw a frame.

let isRedrawDue = false;

function redrawSoon(chat, turn) {
  if (chat !== chats.current || isRedrawDue) return;
  isRedrawDue = true;
  requestAnimationFrame(() => {
    isRedrawDue = false;
    drawAnswer(turn, state);
    drawComposer(chats, state);
  });
}

function drawAll() {
  drawChats(chats, { state, onSelect: selectChat, onRemove: removeChat });
  drawMessages(chats.current, { state, onRegenerate: regenerate });
  drawComposer(chats, state);
  drawConnection(state);
}

function selectChat(id) {
  chats.select(id);
  showCurrent();
}

function removeChat(id) {
  answers.stop(chats.find(id));
  chats.remove(id);
  showCurrent();
}

function openChat() {
  if (chats.current.turns.length > 0) chats.open();
  showCurrent();
}

function showCurrent() {
  shown = chats.current;
  $("prompt").value = chats.draft(shown);
  growPrompt();
  drawAll();
  $("prompt").focus();
}

function setPrompt(text) {
  $("prompt").value = text;
  keepPrompt();
}

function keepPrompt() {
  chats.keepDraft(chats.current, $("prompt").value);
  growPrompt();
}

function growPrompt() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${Math.min($("prompt").scrollHeight, 200)}px`;
}

function applyTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

// Keys and buttons.

$("composer").onsubmit = (event) => {
  event.preventDefault();
  send();
};
$("prompt").oninput = keepPrompt;
window.onresize = growPrompt;
$("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // an input method's Enter picks a character
  event.preventDefault();
  send();
};
document.onkeydown = (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "k" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    openChat();
  }
};
$("stop").onclick = stop;
$("answer-now").onclick = () => answers.answerNow(chats.current);
$("new-chat").onclick = openChat;
$("language").onclick = () => {
  switchLanguage();
  forgetDrawn();
  drawAll();
};
$("theme").onclick = () => {
  const theme = getComputedStyle(document.documentElement).colorScheme === "dark" ? "light" : "dark";
  lasting.set("theme", theme);
  applyTheme(theme);
};
// A page that was left may be kept frozen, to be shown again: its socket would stay open, and nobody read it.
addEventListener("pagehide", () => socket.disconnect());
addEventListener("pageshow", ({ persisted }) => persisted && socket.connect());
bindSettings({ onKey: () => socket.reconnect() });

const systemTheme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
applyTheme(lasting.get("theme") ?? systemTheme);
translatePage();
if ($("prompt").value) keepPrompt(); // typed while this was loading
showCurrent();
answers.followAll();
socket.connect();
