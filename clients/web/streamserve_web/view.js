// Draws chats and messages. A model's output becomes HTML only through markdown-it with raw HTML off and then DOMPurify;
// the page's Content-Security-Policy allows no inline script in any case.

import { titleOf } from "./chats.js";
import { figuresOf } from "./figures.js";
import { hasText, isUnderWay, turnUnderWay } from "./turns.js";
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
  // Every block is written in its own direction, with all that is in it.
  parser.core.ruler.push("direction", ({ tokens }) => {
    for (const token of tokens) if (token.nesting === 1 && token.level === 0) token.attrSet("dir", "auto");
  });
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

export function drawChats(chats, { state, onSelect, onRemove }) {
  $("chats").replaceChildren(...chats.list.map((chat) => {
    const row = element("div", { className: chat === chats.current ? "chat current" : "chat" });
    const title = element("button", { text: titleOf(chat) ?? word("newChat"), onclick: () => onSelect(chat.id) });
    title.dir = "auto";
    if (turnUnderWay(chat) && state === "connected") title.classList.add("streaming");
    const remove = element("button", { className: "remove", text: "×", onclick: () => onRemove(chat.id) });
    remove.title = remove.ariaLabel = word("remove");
    row.append(title, remove);
    return row;
  }));
}

// The two articles of every turn, made once: a reader's selection and what is unfolded stay as they are while others change.
let articles = new WeakMap();
let drawn = null;

export function forgetDrawn() {
  articles = new WeakMap();
}

export function drawMessages(chat, { state, onRegenerate }) {
  // A new question and another chat are shown from the end; a reader who has scrolled up stays there when an answer ends.
  const followsEnd = chat !== drawn || (chat.turns.at(-1) && !hasText(chat.turns.at(-1).answer)) || isAtEnd();
  drawn = chat;
  const wanted = chat.turns.flatMap((turn) => articlesOf(turn, onRegenerate));
  const present = [...$("messages").children];
  if (wanted.length !== present.length || wanted.some((article, index) => article !== present[index])) {
    $("messages").replaceChildren(...wanted);
  }
  for (const turn of chat.turns) fillAnswer(turn, state);
  if (followsEnd) scrollToEnd();
}

function articlesOf(turn, onRegenerate) {
  if (!articles.has(turn)) articles.set(turn, [makeQuestion(turn), makeAnswer(turn, onRegenerate)]);
  return articles.get(turn);
}

function makeQuestion({ question }) {
  const article = element("article", { className: "user" });
  const content = element("div", { className: "content", text: question });
  content.dir = "auto";
  article.append(content);
  return article;
}

function makeAnswer(turn, onRegenerate) {
  const article = element("article", { className: "assistant" });
  const buttons = element("div");
  buttons.append(
    element("button", { className: "copy", text: word("copy"), onclick: () => navigator.clipboard.writeText(turn.answer.content) }),
    element("button", { className: "regenerate", text: word("regenerate"), onclick: onRegenerate }),
  );
  const below = element("div", { className: "below" });
  below.append(element("p", { className: "ending" }), buttons);
  article.append(element("div", { className: "reasoning" }), element("div", { className: "content" }), below);
  return article;
}

function fillAnswer(turn, state) {
  const { answer } = turn;
  const [question, article] = articles.get(turn);
  const [reasoning, content, below] = article.children;
  const isWaiting = isUnderWay(turn) && state !== "connected";
  if (article.drawnText !== answer.content) content.innerHTML = toHtml(answer.content);
  article.drawnText = answer.content;
  fillReasoning(reasoning, answer.reasoning);
  article.classList.toggle("open", isUnderWay(turn));
  article.classList.toggle("live", isUnderWay(turn) && !isWaiting);
  article.classList.toggle("failed", isWaiting || ["failed", "tooLarge", "lost"].includes(answer.ending));
  question.classList.toggle("unanswered", !isUnderWay(turn) && !hasText(answer));
  below.firstChild.textContent = isWaiting ? word(state) : progressOf(answer) || endOf(answer);
  below.querySelector(".copy").hidden = !answer.content || !navigator.clipboard; // offered on https and localhost only
}

function progressOf({ progress }) {
  if (!progress) return "";
  if (progress.state === "prefill") return `${word("reading")} ${Math.round((100 * progress.processed) / progress.total)} %`;
  const wait = progress.wait_s === null ? "" : ` · ~${Math.ceil(progress.wait_s)} s`;
  return `${word("queued")} ${progress.position}${wait}`;
}

function endOf({ ending, error, figures }) {
  return [ending !== "complete" && ending && word(ending), error, figures].filter(Boolean).join(" · ");
}

function fillReasoning(box, text) {
  if (!text) {
    box.replaceChildren();
    return;
  }
  if (!box.firstChild) {
    const details = element("details");
    details.append(element("summary", { text: word("thinking") }), element("div"));
    details.lastChild.dir = "auto";
    box.append(details);
  }
  if (box.firstChild.lastChild.textContent !== text) box.firstChild.lastChild.textContent = text;
}

// Redraw an answer that is streaming; called at most once a frame.
export function drawAnswer(turn, state) {
  if (!articles.has(turn)) return;
  const followsEnd = isAtEnd();
  fillAnswer(turn, state);
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

export function drawComposer(chats, state) {
  const turn = turnUnderWay(chats.current);
  $("answer-now").hidden = state !== "connected" || !turn?.answer.reasoning || Boolean(turn.answer.content);
  $("send").hidden = Boolean(turn);
  $("stop").hidden = !turn;
  $("figures").textContent = figuresOf(turn?.answer.timing) || word("keys");
  $("notice").textContent = chats.isFull ? word("full") : "";
}
