// The settings form: kept as it is typed, the same in every tab. The key alone lives as long as the tab: a shared machine must not
// keep it.

import { lasting, ofTab } from "./storage.js";

const form = document.getElementById("settings");
const toggle = document.getElementById("toggle-settings");
const storageOf = (name) => (name === "api_key" ? ofTab : lasting);

// onKey(): another API key was entered.
export function bindSettings({ onKey }) {
  for (const field of form.elements) {
    field.value = storageOf(field.name).get(field.name) ?? "";
    field.oninput = () => storageOf(field.name).set(field.name, field.value);
  }
  form.elements.api_key.onchange = onKey;
  form.onsubmit = (event) => event.preventDefault();
  toggle.onclick = () => showSettings(form.hidden);
  addEventListener("storage", ({ key, newValue }) => {
    const field = form.elements[key];
    if (field && field !== document.activeElement) field.value = newValue ?? "";
  });
}

function showSettings(isShown) {
  form.hidden = !isShown;
  toggle.setAttribute("aria-expanded", String(isShown));
}

export function askForKey() {
  showSettings(true);
  form.elements.api_key.focus();
}

export const apiKey = () => form.elements.api_key.value;

export function parameters() {
  const chosen = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (form.elements[name].value !== "") chosen[name] = Number(form.elements[name].value);
  }
  const system = form.elements.system.value.trim();
  return system ? { system, ...chosen } : chosen;
}
