// Ties the chats, the socket and the page together.

import { Chats, newId } from "./chats.js";
import { Figures } from "./figures.js";
import { StreamSocket } from "./socket.js";
import { drawChats, drawComposer, drawConnection, drawLastMessage, drawMessages } from "./view.js";
import { switchLanguage, translatePage } from "./words.js";

const $ = (id) => document.getElementById(id);
const chats = new Chats();
const liveFigures = new Map();
let state = "connecting";
let model = null;

// Settings.

const settings = $("settings");
// The key lives as long as the tab: a shared machine must not keep it.
const storeOf = (name) => (name === "api_key" ? sessionStorage : localStorage);

for (const field of settings.elements) {
  field.value = storeOf(field.name).getItem(field.name) ?? "";
  field.onchange = () => {
    storeOf(field.name).setItem(field.name, field.value);
    if (field.name === "api_key") {
      socket.reconnect();
      findModel();
    }
  };
}

function parameters() {
  const chosen = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (settings.elements[name].value !== "") chosen[name] = Number(settings.elements[name].value);
  }
  return chosen;
}

// Streams.

const scheme = location.protocol === "https:" ? "wss:" : "ws:";
const socket = new StreamSocket(`${scheme}//${location.host}${location.pathname.replace(/[^/]*$/, "")}v1/ws`, {
  apiKey: () => settings.elements.api_key.value,
  onState: (next) => {
    state = next;
    drawConnection(state);
    if (state === "connected" && model === null) findModel();
  },
});

async function findModel() {
  const key = settings.elements.api_key.value;
  const answer = await fetch("v1/models", { headers: key ? { Authorization: `Bearer ${key}` } : {} }).catch(() => null);
  if (!answer?.ok) return;
  model = (await answer.json()).data[0].id;
  $("model").textContent = model;
}

function requestBody(chat) {
  const system = settings.elements.system.value.trim();
  const messages = chat.messages.slice(0, -1).map(({ role, content }) => ({ role, content }));
  if (system) messages.unshift({ role: "system", content: system });
  return { model, messages, stream_options: { include_usage: true, continuous_usage_stats: true }, ...parameters() };
}

function answer(chat) {
  const message = { role: "assistant", content: "" };
  const figures = new Figures();
  chat.messages.push(message);
  chat.streamId = newId();
  liveFigures.set(chat.id, figures);
  const finish = (changes) => {
    Object.assign(message, changes, { figures: String(figures) });
    chat.streamId = null;
    liveFigures.delete(chat.id);
    chats.save();
    drawAll();
  };
  socket.create(chat.streamId, requestBody(chat), {
    chunk(data) {
      takeChunk(message, data, figures);
      redrawSoon(chat);
    },
    done: (status) => finish(status === "cancelled" ? { ending: "stopped" } : {}),
    failed: (error) => finish(error.code === "resume_gap" ? { ending: "lost" } : { ending: "failed", error: error.message }),
  });
  drawAll();
}

function takeChunk(message, data, figures) {
  const choice = data.choices[0];
  if (choice?.delta.content) message.content += choice.delta.content;
  if (choice?.delta.reasoning_content) message.reasoning = (message.reasoning ?? "") + choice.delta.reasoning_content;
  if (choice?.finish_reason === "length") message.ending = "cutOff";
  if (choice && !choice.finish_reason && data.usage) figures.arrived(data.usage.completion_tokens);
}

function send() {
  const chat = chats.current;
  const text = $("prompt").value.trim();
  if (!text || chat.streamId) return;
  $("prompt").value = "";
  growPrompt();
  chat.messages.push({ role: "user", content: text });
  answer(chat);
}

function regenerate() {
  const chat = chats.current;
  if (chat.streamId || chat.messages.at(-1)?.role !== "assistant") return;
  chat.messages.pop();
  answer(chat);
}

const stop = () => chats.current.streamId && socket.cancel(chats.current.streamId);

// Drawing. Tokens may come faster than frames: at most one redraw a frame.

let isRedrawDue = false;

function redrawSoon(chat) {
  if (chat !== chats.current || isRedrawDue) return;
  isRedrawDue = true;
  requestAnimationFrame(() => {
    isRedrawDue = false;
    drawLastMessage(chats.current);
    drawComposer(chats.current, liveFigures.get(chats.current.id)?.toString());
  });
}

function drawAll() {
  drawChats(chats, { onSelect: selectChat, onRemove: removeChat });
  drawMessages(chats.current, { onRegenerate: regenerate });
  drawComposer(chats.current, liveFigures.get(chats.current.id)?.toString());
  drawConnection(state);
}

function selectChat(id) {
  chats.select(id);
  drawAll();
  $("prompt").focus();
}

function removeChat(id) {
  const chat = chats.list.find((candidate) => candidate.id === id);
  if (chat.streamId) socket.cancel(chat.streamId);
  chats.remove(id);
  drawAll();
}

function openChat() {
  if (chats.current.messages.length > 0) chats.open();
  drawAll();
  $("prompt").focus();
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
$("prompt").oninput = growPrompt;
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
settings.onsubmit = (event) => event.preventDefault();
$("stop").onclick = stop;
$("new-chat").onclick = openChat;
$("language").onclick = () => {
  switchLanguage();
  drawAll();
};
$("theme").onclick = () => {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark";
  localStorage.setItem("theme", isDark ? "light" : "dark");
  applyTheme(localStorage.getItem("theme"));
};
$("toggle-settings").onclick = () => {
  settings.hidden = !settings.hidden;
  $("toggle-settings").setAttribute("aria-expanded", String(!settings.hidden));
};

const systemTheme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
applyTheme(localStorage.getItem("theme") ?? systemTheme);
translatePage();
drawAll();
