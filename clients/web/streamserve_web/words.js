// The page's words in English and Chinese. Elements ask for theirs with data-text, data-title,
// data-placeholder or data-greet (shown while they are empty).

import { lasting } from "./storage.js";

const WORDS = {
  en: {
    newChat: "New chat", send: "Send", stop: "Stop", answerNow: "Answer now", regenerate: "Regenerate", copy: "Copy", remove: "Delete chat",
    settings: "Settings", system: "System prompt", temperature: "Temperature", topP: "Top p", maxTokens: "Max tokens",
    seed: "Seed", apiKey: "API key", placeholder: "Ask anything", standard: "default", random: "random",
    greeting: "What would you like to know?", keys: "Enter sends · Shift+Enter breaks the line · Esc stops",
    connected: "connected", connecting: "connecting…", refused: "API key needed", thinking: "Thinking",
    queued: "in line, place", reading: "reading", away: "waiting for the server…", stopped: "stopped", cutOff: "cut off at max tokens", failed: "failed",
    tooLarge: "failed · too long for this server", lost: "the server no longer has the rest of this answer",
    full: "This browser keeps no more: what is written now is gone once the tab is closed. Delete old chats to make room.",
    switchLanguage: "中文", switchTheme: "Light or dark",
  },
  zh: {
    newChat: "新对话", send: "发送", stop: "停止", answerNow: "立即回答", regenerate: "重新生成", copy: "复制", remove: "删除对话",
    settings: "设置", system: "系统提示词", temperature: "温度", topP: "Top p", maxTokens: "最大 token 数",
    seed: "随机种子", apiKey: "API 密钥", placeholder: "输入问题", standard: "默认", random: "随机",
    greeting: "想了解些什么？", keys: "Enter 发送 · Shift+Enter 换行 · Esc 停止",
    connected: "已连接", connecting: "正在连接…", refused: "需要 API 密钥", thinking: "思考过程",
    queued: "排队中，位置", reading: "正在读取", away: "正在等待服务器…", stopped: "已停止", cutOff: "达到最大 token 数", failed: "出错",
    tooLarge: "出错 · 内容超出此服务器的长度限制", lost: "服务器已不再保留这条回答的后续内容",
    full: "浏览器存储空间不足：关闭标签页后，新写的内容将会丢失。请删除旧对话以腾出空间。",
    switchLanguage: "English", switchTheme: "明暗主题",
  },
};

let language = lasting.get("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export const word = (key) => WORDS[language][key];

export function translatePage() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = word(element.dataset.text);
  for (const element of document.querySelectorAll("[data-title]")) element.title = word(element.dataset.title);
  for (const element of document.querySelectorAll("[data-placeholder]")) element.placeholder = word(element.dataset.placeholder);
  for (const element of document.querySelectorAll("[data-greet]")) element.dataset.greeting = word(element.dataset.greet);
  document.getElementById("language").textContent = word("switchLanguage");
}

export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  lasting.set("language", language);
  translatePage();
}
