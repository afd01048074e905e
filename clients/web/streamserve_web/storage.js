// The browser's two storages: one that all tabs share and that lasts, one of this tab that a reload leaves alone. Either may be
// full, or closed to this page by the reader's settings: writing tells whether it was kept, reading then finds nothing.

class Storage {
  // open(): the storage, which throws where it is closed.
  constructor(open) {
    this.open = open;
  }

  attempt(act, otherwise) {
    try {
      return act(this.open());
    } catch {
      return otherwise;
    }
  }

  get(key) {
    return this.attempt((storage) => storage.getItem(key), null);
  }

  set(key, text) {
    return this.attempt((storage) => (storage.setItem(key, text), true), false);
  }

  remove(key) {
    this.attempt((storage) => storage.removeItem(key));
  }

  keys(prefix) {
    return this.attempt((storage) => Object.keys(storage).filter((key) => key.startsWith(prefix)), []);
  }
}

export const lasting = new Storage(() => localStorage);
export const ofTab = new Storage(() => sessionStorage);

// What JSON.parse makes of a stored text; null when it is none of ours.
export function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
