/* The page for programmers, from the service's own OpenAPI document. */

const element = (tag, properties = {}, ...children) => { const made = Object.assign(document.createElement(tag), properties); made.append(...children); return made; };
const prose = (tag, text) => element(tag, {}, ...text.split(/`([^`]+)`/).map((part, i) => i % 2 ? element("code", { textContent: part }) : part));
const base = location.href.replace(/\/docs.*$/, "");
document.getElementById("example").textContent = `curl -sD- ${base}/v1/accompaniments -F vocal=@vocal.wav -F seed=7 -F candidates=2 -o band.wav`;
function limits(schema) {
  const said = [];
  if (schema.enum) said.push(schema.enum.join(" | ")); else if (schema.format || schema.type) said.push(schema.format || schema.type);
  if (schema.minimum !== undefined || schema.maximum !== undefined) said.push(`${schema.minimum ?? ""} to ${schema.maximum ?? ""}`);
  if (schema.default !== undefined) said.push(`default ${schema.default}`);
  return said.join(", ");
}
/** It is in the way of Tab, so that the keyboard can move what does not fit beside. */
function table(name, heads, rows) {
  const made = element("table", {}, element("tr", {}, ...heads.map(head => element("th", { textContent: head }))));
  rows.forEach(row => made.append(element("tr", {}, ...row.map((cell, i) => i ? prose("td", cell) : element("td", {}, element("code", { textContent: cell }))))));
  return element("div", { className: "wide", tabIndex: 0, role: "group", ariaLabel: name }, made);
}
async function show() {
  const main = document.getElementById("main");
  let api;
  try { api = await (await fetch("openapi.json")).json(); } catch (error) { main.append(element("section", { textContent: `openapi.json cannot be read: ${error.message}` })); return; }
  const resolve = schema => schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;
  for (const [path, methods] of Object.entries(api.paths)) for (const [method, operation] of Object.entries(methods)) {
    const section = element("section", {}, element("h2", {}, element("b", { textContent: method.toUpperCase() }), ` ${path}`));
    (operation.description || "").split("\n\n").forEach(text => section.append(prose("p", text)));
    const form = resolve(operation.requestBody?.content["multipart/form-data"]?.schema);
    if (form) section.append(element("h3", { textContent: "Fields (multipart/form-data)" }), table("Fields", ["field", "values", "meaning"],
      Object.entries(form.properties).map(([name, schema]) => [name + (form.required?.includes(name) ? " *" : ""), limits(schema), schema.description || ""])));
    section.append(element("h3", { textContent: "Answers" }), table("Answers", ["status", "meaning", "content and headers"], Object.entries(operation.responses).map(([status, answer]) => [
      status, answer.description || "", [...Object.keys(answer.content || {}), ...Object.entries(answer.headers || {}).map(([name, header]) => `${name}: ${header.description}`)].join(" · ")])));
    main.append(section);
  }
}
show();
