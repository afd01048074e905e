// The chats and their messages, kept in localStorage. Knows neither the socket nor the page.
//
// message: { role, content, reasoning?, ending?, error?, figures? }; ending is "stopped" | "cutOff" | "failed" | undefined.

const STORE = "chats";

// crypto.randomUUID exists only on https and localhost; the page is also opened over a plain local network.
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export class Chats {
  constructor() {
    this.list = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    for (const chat of this.list) chat.streamId = null; // a stream does not outlive its page
    if (this.list.length === 0) this.open();
    this.current = this.list[0];
  }

  open() {
    const chat = { id: newId(), messages: [], streamId: null };
    this.list.unshift(chat);
    this.current = chat;
    return chat;
  }

  select(id) {
    this.current = this.list.find((chat) => chat.id === id) ?? this.current;
  }

  remove(id) {
    this.list = this.list.filter((chat) => chat.id !== id);
    if (this.list.length === 0) this.open();
    if (this.current.id === id) this.current = this.list[0];
    this.save();
  }

  // The latest fifty, or as many of them as the browser has room for.
  save() {
    for (let kept = this.list.slice(0, 50); kept.length > 0; kept = kept.slice(0, kept.length >> 1)) {
      try {
        localStorage.setItem(STORE, JSON.stringify(kept));
        return;
      } catch {
        // Full: keep fewer.
      }
    }
  }
}

export const titleOf = (chat) => chat.messages.find((message) => message.role === "user")?.content.slice(0, 40);
