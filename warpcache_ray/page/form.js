// The form for a new video: what the model can make, what the request says, which field is wrong.

import { element, number, plannedCalls } from "./words.js";

const TEXTS = ["prompt", "negative_prompt"];
const NUMBERS = ["width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale", "seed"];
const SIZES = ["width", "height", "num_frames", "num_inference_steps", "guidance_scale"];
const form = document.getElementById("form");

// Shows the model's defaults and limits, and the service's qualities and examples.
export function describe(models, showcase) {
  const { defaults, limits } = models;
  const multiples = { width: models.size_multiple, height: models.size_multiple, num_frames: models.frame_multiple };
  for (const name of NUMBERS.slice(0, -1)) {
    const field = form.elements[name];
    field.placeholder = defaults[name] ?? "the model's";
    if (limits[name]) field.max = limits[name];
    if (multiples[name]) field.step = multiples[name];
    if (name === "num_frames") field.min = 1;
    else if (multiples[name]) field.min = multiples[name];
  }
  document.getElementById("image-field").hidden = models.takes_image === "none";
  form.elements.image.required = models.takes_image === "required";
  offer(showcase.prompts);
}

function offer(prompts) {
  const group = document.getElementById("examples");
  group.hidden = prompts.length === 0;
  group.replaceChildren(...prompts.map((prompt) => {
    const button = element("button", { type: "button", textContent: prompt, title: prompt });
    button.addEventListener("click", () => {
      form.elements.prompt.value = prompt;
      form.elements.prompt.focus();
    });
    return button;
  }));
}

// Shows what a request would be given for each quality; `usual` steps are the service's.
export function offerQualities(offered, usual) {
  const steps = stepsOr(usual);
  const names = Object.keys(offered);
  const shown = [...form.querySelectorAll("[name=quality]")].map((input) => input.value);
  if (names.join() !== shown.join()) listQualities(names);
  const { policy, policy_origin: origin } = offered[quality()];
  const calls = plannedCalls(policy, steps);
  const said = calls && steps ? `${number(calls)} of ${steps} calls` : "as many calls as it needs";
  const version = origin.version === null ? "" : `, version ${origin.version}`;
  document.getElementById("quality-hint").textContent =
    policy.name === "never" ? "uncached: every step is computed" : `${policy.name}: ${said} (${origin.source.replaceAll("_", " ")}${version})`;
}

const stepsOr = (usual) => form.elements.num_inference_steps.valueAsNumber || usual;

// What was measured at so many steps, at the model's size, holds for the request.
export const asMeasured = (steps, usual) =>
  stepsOr(usual) === steps && ["width", "height", "num_frames"].every((name) => form.elements[name].value === "");

function listQualities(names) {
  const chosen = quality();
  document.getElementById("qualities").replaceChildren(...names.map((name) => {
    const input = element("input", { type: "radio", name: "quality", value: name, checked: name === chosen });
    return element("label", {}, input, element("span", {}, name));
  }));
}

// What of the request decides which policy it is given.
export function sizes() {
  const given = SIZES.filter((name) => form.elements[name].value !== "" && form.elements[name].checkValidity());
  return new URLSearchParams(given.map((name) => [name, form.elements[name].value]));
}

export const quality = () => form.querySelector("[name=quality]:checked")?.value ?? "default";

// The request that the form describes: what is left empty is left out.
export async function request() {
  const fields = {};
  for (const name of TEXTS) if (form.elements[name].value) fields[name] = form.elements[name].value;
  for (const name of NUMBERS) if (form.elements[name].value !== "") fields[name] = form.elements[name].valueAsNumber;
  if (quality() !== "default") fields.quality = quality();
  const [file] = form.elements.image.files;
  if (file) fields.image = await dataUrl(file);
  return fields;
}

const dataUrl = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });

// What the browser itself finds wrong, shown at its field; true if that is nothing.
export function check() {
  mark(null);
  if (!form.elements.prompt.value.trim()) form.elements.prompt.setCustomValidity("Describe the video first.");
  else form.elements.prompt.setCustomValidity("");
  const wrong = [...form.elements].find((field) => field.willValidate && !field.checkValidity());
  if (!wrong) return true;
  mark(wrong.name);
  wrong.reportValidity();
  return false;
}

// Marks the field that an error names, and goes there; null: none is wrong.
export function mark(name) {
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  const field = name && form.elements[name];
  if (!(field instanceof HTMLElement)) return;
  field.closest("details")?.setAttribute("open", "");
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

// Fills in what a job was asked for.
export function fill(asked) {
  for (const name of [...TEXTS, ...NUMBERS]) form.elements[name].value = asked[name] ?? "";
  form.querySelector("details").open = true;
  form.elements.prompt.focus();
}
