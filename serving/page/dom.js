/* Small words for the page's elements. */

export const $ = id => document.getElementById(id);

export const clock = seconds => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** Text in an element that is hidden while it has none. */
export function say(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

export const pressed = (button, on) => button.setAttribute("aria-pressed", String(on));

/** Told once to a screen reader, without a place on the page. */
export const announce = text => { $("live").textContent = text; };

export function use(button, icon) { button.querySelector("use").setAttribute("href", `#i-${icon}`); }

export function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

let fading = 0;
/** A line at the foot of the page, with at most one thing to do about it, for eight seconds. */
export function notice(text, action = "", act = () => {}) {
  clearTimeout(fading);
  const line = Object.assign(document.createElement("span"), { textContent: text });
  $("notice").replaceChildren(line);
  const clear = () => $("notice").replaceChildren();
  if (action) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: action });
    button.onclick = () => { clear(); act(); };
    $("notice").append(button);
  }
  fading = setTimeout(clear, 8000);
}
