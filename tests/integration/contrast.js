/* Elements with text of their own whose colour is below 4.5 to 1 (WCAG 1.4.3) on the nearest background that is painted. */
(() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = text => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = text;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const linear = x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = rgba(getComputedStyle(element).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const speaks = element => element.offsetParent && !element.disabled && !element.closest(".unseen")
    && [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
  return [...document.querySelectorAll("body *")].filter(speaks).map(element => {
    const [more, less] = [light(rgba(getComputedStyle(element).color)), light(behind(element))].sort((one, other) => other - one);
    return [`${element.tagName} ${element.id || element.className}`, (more + 0.05) / (less + 0.05)];
  }).filter(([, ratio]) => ratio < 4.5);
})()
