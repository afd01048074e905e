// Draws chats and messages. A model's output becomes HTML only through markdown-it with raw HTML off and then DOMPurify;
// the page's Content-Security-Policy allows no inline script in any case.

import { titleOf } from "./chats.js";
import { word } from "./words.js";

const $ = (id) => document.getElementById(id);
const markdown = () => (markdown.parser ??= window.markdownit({ html: false, linkify: true, breaks: true }));

function toHtml(text) {
  return window.DOMPurify.sanitize(markdown().render(text), { FORBID_TAGS: ["img", "style", "form"], FORBID_ATTR: ["style"] });
}

function element(tag, { className = "", text = "", onclick = null } = {}) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  if (onclick) made.onclick = onclick;
  return made;
}

export function drawChats(chats, { onSelect, onRemove }) {
  $("chats").replaceChildren(...chats.list.map((chat) => {
    const row = element("div", { className: chat === chats.current ? "chat current" : "chat" });
    const title = element("button", { text: titleOf(chat) ?? word("newChat"), onclick: () => onSelect(chat.id) });
    if (chat.streamId) title.classList.add("streaming");
    const remove = element("button", { className: "remove", text: "×", onclick: () => onRemove(chat.id) });
    remove.title = word("remove");
    row.append(title, remove);
    return row;
  }));
}

export function drawMessages(chat, { onRegenerate }) {
  $("messages").replaceChildren(...chat.messages.map((message, index) => {
    const isLast = index === chat.messages.length - 1;
    return drawMessage(message, isLast && !chat.streamId && message.role === "assistant" ? onRegenerate : null);
  }));
  scrollToEnd(true);
}

function drawMessage(message, onRegenerate) {
  const article = element("article", { className: message.role });
  article.append(element("div", { className: "reasoning" }), element("div", { className: "content" }), element("p", { className: "ending" }));
  fillMessage(article, message);
  if (message.role === "assistant") {
    const actions = element("div", { className: "actions" });
    // Browsers offer the clipboard on https and localhost only.
    if (navigator.clipboard) actions.append(element("button", { text: word("copy"), onclick: () => navigator.clipboard.writeText(message.content) }));
    if (onRegenerate) actions.append(element("button", { className: "regenerate", text: word("regenerate"), onclick: onRegenerate }));
    article.append(actions);
  }
  return article;
}

function fillMessage(article, message) {
  const [reasoning, content, ending] = article.children;
  if (message.role === "user") content.textContent = message.content;
  else content.innerHTML = toHtml(message.content);
  if (message.reasoning) fillReasoning(reasoning, message.reasoning);
  ending.textContent = [message.ending && word(message.ending), message.error, message.figures].filter(Boolean).join(" · ");
}

function fillReasoning(box, text) {
  if (!box.firstChild) {
    const details = element("details");
    details.append(element("summary", { text: word("thinking") }), element("div"));
    box.append(details);
  }
  box.firstChild.lastChild.textContent = text;
}

// Redraw the answer that is streaming; called at most once a frame.
export function drawLastMessage(chat) {
  const article = $("messages").lastElementChild;
  if (article) fillMessage(article, chat.messages.at(-1));
  scrollToEnd(false);
}

// A reader who has scrolled up stays where they are.
function scrollToEnd(always) {
  const box = $("messages");
  if (always || box.scrollHeight - box.scrollTop - box.clientHeight < 120) box.scrollTop = box.scrollHeight;
}

export function drawConnection(state) {
  $("connection").textContent = word(state);
  $("connection").className = state;
}

export function drawComposer(chat, figures) {
  $("send").hidden = Boolean(chat.streamId);
  $("stop").hidden = !chat.streamId;
  $("figures").textContent = figures ?? "";
}
