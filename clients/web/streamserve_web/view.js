// Draws chats and messages. A model's output becomes HTML only through markdown-it with raw HTML off and then DOMPurify;
// the page's Content-Security-Policy allows no inline script in any case.

import { titleOf } from "./chats.js";
import { word } from "./words.js";

const $ = (id) => document.getElementById(id);
const markdown = () => (markdown.parser ??= makeMarkdown());

function makeMarkdown() {
  const parser = window.markdownit({ html: false, linkify: true, breaks: true });
  parser.renderer.rules.link_open = (tokens, index, options, _, renderer) => {
    tokens[index].attrSet("target", "_blank");
    tokens[index].attrSet("rel", "noopener noreferrer");
    return renderer.renderToken(tokens, index, options);
  };
  return parser;
}

function toHtml(text) {
  const rules = { FORBID_TAGS: ["img", "style", "form"], FORBID_ATTR: ["style"], ADD_ATTR: ["target"] };
  return window.DOMPurify.sanitize(markdown().render(text), rules);
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

let drawn = null;

export function drawMessages(chat, { onRegenerate }) {
  // A new question and another chat are shown from the end; a reader who has scrolled up stays there when an answer ends.
  const followsEnd = chat !== drawn || chat.messages.at(-1)?.content === "" || isAtEnd();
  drawn = chat;
  $("messages").replaceChildren(...chat.messages.map((message, index) => {
    const isLast = index === chat.messages.length - 1 && message.role === "assistant";
    const article = drawMessage(message, isLast && !chat.streamId ? onRegenerate : null);
    article.classList.toggle("live", isLast && Boolean(chat.streamId));
    return article;
  }));
  if (followsEnd) scrollToEnd();
}

function drawMessage(message, onRegenerate) {
  const article = element("article", { className: message.role });
  const below = element("div", { className: "below" });
  below.append(element("p", { className: "ending" }));
  // Browsers offer the clipboard on https and localhost only.
  if (navigator.clipboard) below.append(element("button", { text: word("copy"), onclick: () => navigator.clipboard.writeText(message.content) }));
  if (onRegenerate) below.append(element("button", { className: "regenerate", text: word("regenerate"), onclick: onRegenerate }));
  article.append(element("div", { className: "reasoning" }), element("div", { className: "content" }), below);
  fillMessage(article, message);
  return article;
}

function fillMessage(article, message) {
  const [reasoning, content, below] = article.children;
  if (message.role === "user") content.textContent = message.content;
  else content.innerHTML = toHtml(message.content);
  if (message.reasoning) fillReasoning(reasoning, message.reasoning);
  article.classList.toggle("failed", message.ending === "failed" || message.ending === "lost");
  const ending = [message.ending && word(message.ending), message.error, message.figures].filter(Boolean).join(" · ");
  below.firstChild.textContent = ending;
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
  const followsEnd = isAtEnd();
  if (article) fillMessage(article, chat.messages.at(-1));
  if (followsEnd) scrollToEnd();
}

function isAtEnd() {
  const box = $("messages");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 80;
}

function scrollToEnd() {
  $("messages").scrollTop = $("messages").scrollHeight;
}

export function drawConnection(state) {
  $("connection").textContent = word(state);
  $("connection").className = state;
}

export function drawComposer(chat, figures) {
  $("send").hidden = Boolean(chat.streamId);
  $("stop").hidden = !chat.streamId;
  $("figures").textContent = figures || word("keys");
}
