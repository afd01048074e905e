// The chats and what stands half-typed in each, in storage as they change. Every chat has an entry of its own, and what another tab
// has put there is merged in before it is written: tabs never erase each other's. Knows neither the socket nor the page.
//
// chat: { id, openedAt, turns }, as turns.js has them

import { lasting, ofTab, parse } from "./storage.js";
import { hasMore, mergeTurns, newId } from "./turns.js";

const PLACE = location.pathname.replace(/[^/]*$/, ""); // several servers may share an origin
const CHAT = `chat ${PLACE} `;
const DRAFT = `draft ${PLACE} `;
const CURRENT = `current ${PLACE}`;
const SAVE_MS = 500;

export class Chats {
  // onMerged(): something of another tab's came in, or a chat has gone there.
  constructor({ onMerged }) {
    this.onMerged = onMerged;
    this.list = [];
    this.unkept = new Set(); // chats that will be gone with the tab
    this.due = new Set();
    this.removed = new Map(); // when, by id
    adoptOldChats();
    this.refresh();
    const current = this.find(ofTab.get(CURRENT)) ?? this.list[0];
    if (current) this.select(current.id);
    else this.open();
    addEventListener("storage", ({ key }) => {
      if (key?.startsWith(CHAT) && this.refreshEntry(key)) onMerged();
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.saveDue();
      else if (this.refresh()) onMerged(); // a frozen tab hears of nothing
    });
  }

  get isFull() {
    return this.unkept.size > 0;
  }

  find(id) {
    return this.list.find((chat) => chat.id === id);
  }

  open() {
    const chat = { id: newId(), openedAt: Date.now(), turns: [] };
    this.list.unshift(chat);
    this.select(chat.id);
  }

  select(id) {
    this.current = this.find(id) ?? this.current;
    ofTab.set(CURRENT, this.current.id);
  }

  remove(id) {
    for (const storage of stores) {
      storage.remove(CHAT + id);
      storage.remove(DRAFT + id);
    }
    this.removed.set(id, Date.now());
    this.forget(id);
    for (const chat of this.unkept) this.save(chat); // there may be room now
  }

  forget(id) {
    this.unkept.delete(this.find(id));
    this.list = this.list.filter((chat) => chat.id !== id);
    if (this.list.length === 0) this.open();
    if (this.current.id === id) this.select(this.list[0].id);
  }

  save(chat) {
    if (chat.turns.length === 0 && !this.draft(chat)) return;
    const isMerged = this.merge(lasting.get(CHAT + chat.id));
    this.due.delete(chat);
    if (keep(CHAT + chat.id, JSON.stringify(chat))) this.unkept.delete(chat);
    else this.unkept.add(chat);
    if (isMerged) this.onMerged();
  }

  // Save an answer that comes in, soon. A chat that another tab has deleted meanwhile stays deleted.
  saveSoon(chat) {
    if (this.due.size === 0) setTimeout(() => this.saveDue(), SAVE_MS);
    this.due.add(chat);
  }

  saveNow(chat) {
    this.due.add(chat);
    this.saveDue();
  }

  saveDue() {
    for (const chat of this.due) if (stored(CHAT + chat.id).length > 0) this.save(chat);
    this.due.clear();
  }

  // A draft is this tab's first: another one may be typing in the same chat.
  draft(chat) {
    return ofTab.get(DRAFT + chat.id) ?? lasting.get(DRAFT + chat.id) ?? "";
  }

  keepDraft(chat, text) {
    ofTab.set(DRAFT + chat.id, text);
    if (text) lasting.set(DRAFT + chat.id, text);
    else lasting.remove(DRAFT + chat.id);
    if (chat.turns.length > 0) return;
    if (text) this.save(chat);
    else stores.forEach((storage) => storage.remove(CHAT + chat.id));
  }

  // Read what is stored; whether anything has changed.
  refresh() {
    const keys = new Set([...stores.flatMap((storage) => storage.keys(CHAT)), ...this.list.map(({ id }) => CHAT + id)]);
    return [...keys].map((key) => this.refreshEntry(key)).includes(true);
  }

  refreshEntry(key) {
    const texts = stored(key);
    if (texts.length > 0) return texts.map((text) => this.merge(text)).includes(true);
    const chat = this.find(key.slice(CHAT.length));
    if (!chat || this.isInUse(chat)) return false;
    this.forget(chat.id);
    return true;
  }

  // Whether this tab has more of a chat than was ever stored.
  isInUse(chat) {
    return this.draft(chat) || this.unkept.has(chat) || (chat === this.current && chat.turns.length === 0);
  }

  // Tabs may see each other's writing late, and so write over it: what is missing there is written again, what was deleted here is
  // deleted again, unless somebody has asked something in it since.
  merge(text) {
    const theirs = parse(text);
    if (!isChat(theirs)) return false;
    const chat = this.find(theirs.id);
    if (chat) {
      const isChanged = mergeTurns(chat.turns, theirs.turns);
      if (hasMore(chat.turns, theirs.turns)) this.saveSoon(chat);
      return isChanged;
    }
    const removedAt = this.removed.get(theirs.id);
    if (removedAt && theirs.turns.every(({ answer }) => answer.askedAt <= removedAt)) {
      this.remove(theirs.id);
      return false;
    }
    this.list.push(theirs);
    this.list.sort((a, b) => b.openedAt - a.openedAt);
    return true;
  }
}

export const titleOf = (chat) => chat.turns[0]?.question.slice(0, 40);

const isChat = (stored) => Array.isArray(stored?.turns) && stored.turns.every((turn) => turn?.answer);
const stores = [lasting, ofTab];
const stored = (key) => stores.map((storage) => storage.get(key)).filter(Boolean);

// Where the lasting storage is full, the tab's own still outlives a reload.
function keep(key, text) {
  if (lasting.get(key) === text) return true;
  const isKept = lasting.set(key, text);
  if (isKept) ofTab.remove(key);
  else ofTab.set(key, text);
  return isKept;
}

// An earlier page kept all chats in one entry, as lists of messages.
function adoptOldChats() {
  const old = parse(lasting.get("chats"));
  if (!Array.isArray(old)) return;
  lasting.remove("chats");
  old.forEach(({ id, messages }, index) => {
    const turns = [];
    for (const { role, content, ...rest } of messages ?? []) {
      if (role === "user") turns.push({ id: `${id}-${turns.length}`, askedAt: turns.length, question: content });
      else if (turns.length > 0) turns.at(-1).answer = { requestId: "", askedAt: 0, next: 0, content, ending: "complete", ...rest };
    }
    const chat = { id, openedAt: old.length - index, turns: turns.filter(({ answer }) => answer) };
    if (chat.turns.length > 0) keep(CHAT + id, JSON.stringify(chat));
  });
}
