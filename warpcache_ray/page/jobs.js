// The list of recent jobs, and how long the queue is.

import { get } from "./api.js";
import { ago, element } from "./words.js";

const SHOWN = 12;

export async function list(current, open) {
  const { jobs } = await get(`jobs?limit=${SHOWN}`);
  document.getElementById("no-jobs").hidden = jobs.length > 0;
  const items = document.getElementById("jobs");
  const focused = items.querySelector("button:focus")?.dataset.id;
  items.replaceChildren(...jobs.map((job) => element("li", {}, entry(job, job.id === current, open))));
  if (focused) items.querySelector(`[data-id="${focused}"]`)?.focus();
}

function entry(job, current, open) {
  const button = element("button", { type: "button" },
    element("span", { className: `status ${job.status}` }, job.status === "running" ? `${Math.round(job.progress * 100)} %` : job.status),
    element("span", { className: "prompt" }, job.request.prompt),
    element("span", { className: "when" }, `${job.policy.name === "never" ? "uncached" : job.policy.name} · ${ago(job.created_at)}`));
  button.dataset.id = job.id;
  button.setAttribute("aria-current", String(current));
  button.addEventListener("click", () => open(job.id));
  return button;
}

// Whether the service can make videos, and for whom else it does.
export async function health() {
  const answer = await fetch("health").catch(() => null);
  const found = answer && (await answer.json());
  const ready = Boolean(answer?.ok);
  const light = document.getElementById("health");
  light.classList.toggle("ok", ready);
  set(light, ready ? `${found.replicas} ${found.replicas === 1 ? "replica" : "replicas"} ready` : found ? "starting" : "out of reach");
  const jobs = found?.jobs;
  set(document.getElementById("queue"), jobs ? `${jobs.running} running, ${jobs.queued} waiting` : "");
  return ready;
}

// Only changes are to be read out.
function set(place, text) {
  if (place.textContent !== text) place.textContent = text;
}
