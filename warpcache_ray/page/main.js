// The page: the job in its address (`#job_…`, with `+job_…` the uncached one beside it), followed to its end.

import { cancel, events, get, key, onUnauthorized, post } from "./api.js";
import * as figures from "./figures.js";
import * as form from "./form.js";
import * as front from "./front.js";
import { health, list } from "./jobs.js";
import { bind, replay, Screen } from "./stage.js";
import * as timeline from "./timeline.js";
import { calls, duration, element, ENDED, plannedCalls, soFar, uncached } from "./words.js";

const LOOK_MS = 4000;
const OFFER_MS = 20000;
const REPEATED = ["prompt", "negative_prompt", "width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale", "seed", "output_format", "lora", "lora_scale"];

const at = (id) => document.getElementById(id);
const [ours, theirs] = [new Screen("ours"), new Screen("theirs")];
const images = new Map();
const service = { models: null, showcase: null, offered: null, sizes: null, askedAt: 0 };
let view = { job: null, reference: null, fidelity: null, rows: null };
let following = new AbortController();

function alarm(error) {
  if (error?.name === "AbortError") return;
  const box = at("alert");
  box.hidden = !error;
  if (!error) return;
  const close = element("button", { type: "button", textContent: "Dismiss" });
  close.addEventListener("click", () => alarm(null));
  box.replaceChildren(element("span", {}, error instanceof TypeError ? "The service is out of reach." : error.message), close);
}

// Runs what a click asked for; what goes wrong is shown.
const tried = (act) => async (event) => {
  event?.preventDefault();
  alarm(null);
  try {
    await act(event);
  } catch (error) {
    alarm(error);
    form.mark(error.param ?? null);
  }
};

// ---- The key

function ask(message) {
  const dialog = at("key-dialog");
  at("key-said").textContent = key.get() ? `${message} Give another one.` : "This service asks for a key. It stays in this tab, and is forgotten when you close it.";
  at("key").value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const given = at("key").value.trim();
      const entered = dialog.returnValue === "given" && given !== "";
      if (entered) key.set(given);
      at("key").value = "";
      at("key-button").hidden = false;
      resolve(entered);
    };
  });
}

let asking = null;
let declined = false;
onUnauthorized((message) => {
  asking ??= ask(message).then((given) => { declined = !given; return given; }).finally(() => { asking = null; });
  return asking;
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  at("key-dialog").close("given");
});
at("key-forget").addEventListener("click", () => {
  key.forget();
  at("key-dialog").close("forgotten");
});
at("key-button").addEventListener("click", async () => {
  declined = !(await ask(""));
  if (!declined) start();
});

// ---- A job, followed

const address = (...ids) => `#${ids.filter(Boolean).join("+")}`;

function open(...ids) {
  if (location.hash === address(...ids)) follow();
  else location.hash = address(...ids);
}

const follow = tried(async () => {
  following.abort();
  following = new AbortController();
  const { signal } = following;
  const [id, other] = location.hash.slice(1).split("+");
  // What is there stays, if that is what was asked for.
  const { job, rows } = view.job?.id === id ? view : { job: null, rows: null };
  view = { job, rows, reference: null, fidelity: null };
  await render();
  if (!id) return;
  await Promise.all([
    toItsEnd(id, signal, (job) => { view.job = job; }).then(() => decided(signal)),
    other && toItsEnd(other, signal, (job) => { view.reference = job; }),
  ]);
  if (signal.aborted) return;
  await conclude(signal);
});

async function toItsEnd(id, signal, take) {
  let job = await get(`jobs/${id}`);
  const tell = async (found) => {
    if (signal.aborted) return;
    job = found;
    take(job);
    await render();
  };
  await tell(job);
  if (ENDED.includes(job.status)) return;
  for await (const [kind, data] of events(id, signal)) {
    if (ENDED.includes(kind)) await tell(data);
    else if (kind === "step") await tell({ ...job, ...data, status: "running", eta_s: job.eta_s });
    else await tell(await get(`jobs/${id}`));
  }
  if (!ENDED.includes(job.status)) await tell(await get(`jobs/${id}`));
}

async function decided(signal) {
  if (view.job?.status !== "succeeded") return;
  const { branches } = await get(`jobs/${view.job.id}/decisions`);
  if (signal.aborted) return;
  view.rows = timeline.rowsOf(branches);
  for (const item of document.querySelectorAll(".of-drift")) item.hidden = !view.rows.some((row) => row.drifts);
  await render();
}

async function conclude(signal) {
  const { job, reference } = view;
  if (job.status === "succeeded" && reference?.status === "succeeded") {
    view.fidelity = await get(`jobs/${job.id}/fidelity?reference=${reference.id}`);
    if (signal.aborted) return;
    bind(ours.video, theirs.video);
  }
  await render();
  await refresh();
}

// ---- What is to be seen

async function render() {
  const { job, reference, fidelity } = view;
  const running = [job, reference].find((each) => each && !ENDED.includes(each.status));
  const done = job?.status === "succeeded";
  at("asked").hidden = !job;
  at("asked").textContent = job?.request.prompt ?? "";
  at("running").hidden = !running;
  if (running) progress(running);
  at("actions").hidden = !job || Boolean(running);
  at("compare").hidden = !done || uncached(job) || reference !== null;
  at("replay").hidden = !(ours.video && theirs.video);
  at("download").hidden = !done;
  at("figures").hidden = !done;
  at("comparison").hidden = fidelity === null;
  at("decisions").hidden = !view.rows?.length;
  at("theirs").hidden = !reference;
  await (job ? ours.show(job) : ours.clear());
  await (reference ? theirs.show(reference) : theirs.clear());
  if (done) {
    at("download").href = ours.url ?? "";
    at("download").download = `${job.id}.${job.request.output_format}`;
    at("tiles").replaceChildren(...figures.tiles(job));
  }
  if (fidelity) at("comparison").replaceChildren(...figures.comparison(job, reference, fidelity));
  drawTimeline();
  drawFront();
  announce(job, reference);
}

function progress(job) {
  const which = job === view.reference ? "Uncached video: " : "";
  const left = job.status === "queued" ? job.eta_s : remaining(job);
  const until = left ? `, about ${duration(left)} left` : "";
  const place = job.queue_position ? `waiting, number ${job.queue_position} in the queue` : "waiting";
  const steps = job.step ? `step ${job.step} of ${job.total_steps}, ${soFar(job)}` : "starting";
  at("progress-label").textContent = `${which}${job.status === "queued" ? place : steps}${until}`;
  at("progress").value = job.progress;
}

function remaining(job) {
  const since = job.started_at && Date.now() / 1000 - job.started_at;
  return job.step > 2 && since > 0 ? (since / job.step) * (job.total_steps - job.step) : job.eta_s;
}

// For screen readers: what changes the picture, not each step.
function announce(job, reference) {
  const name = { queued: "waiting", running: "being made", succeeded: "ready", failed: "failed", cancelled: "cancelled" };
  const why = job?.status === "failed" ? ` ${job.error.message}` : "";
  const said = [job && `Video ${name[job.status]}.${why}`, reference && `Uncached video ${name[reference.status]}.`].filter(Boolean).join(" ");
  if (at("said").textContent !== said) at("said").textContent = said;
}

function drawTimeline() {
  if (!view.rows?.length) return;
  const steps = view.job.total_steps;
  const slider = at("step");
  slider.max = String(steps - 1);
  const chosen = Number(slider.value);
  const width = at("timeline").clientWidth || 320;
  at("timeline").replaceChildren(timeline.draw(view.rows, steps, width, chosen), timeline.table(view.rows));
  at("step-said").replaceChildren(...timeline.told(view.rows, steps, chosen));
}

function drawFront() {
  const measured = service.showcase?.front;
  at("front").hidden = !measured;
  if (!measured) return;
  const alike = service.offered && form.asMeasured(measured.steps, usualSteps());
  const settings = Object.entries(alike ? service.offered : {}).map(([name, { policy }]) => ({ name, policy: policy.name, calls: plannedCalls(policy, measured.steps) }));
  const { job, fidelity } = view;
  const mine = fidelity && { calls: (calls(job) / job.total_steps) * measured.steps, psnr: fidelity.psnr };
  at("front-chart").replaceChildren(...front.draw(measured, settings, form.quality(), mine, at("front-chart").clientWidth || 320));
  at("front-source").textContent = `${measured.model}, ${measured.size}, ${measured.steps} steps: the mean of ${measured.prompts} prompts against their uncached videos. Thin lines: other methods, measured alike.`;
}

// Which policies the settings would be given: asked for when they change, and from time to time, for others may be
// published.
async function offer() {
  const sizes = form.sizes().toString();
  if (sizes !== service.sizes || Date.now() - service.askedAt > OFFER_MS) {
    const offered = await get(`policies/offered?${sizes}`);
    if (sizes !== form.sizes().toString()) return;
    Object.assign(service, { offered, sizes, askedAt: Date.now() });
  }
  form.offerQualities(service.offered, usualSteps());
  drawFront();
}

const usualSteps = () => service.models.defaults.num_inference_steps;

async function refresh() {
  const ready = await health();
  if (ready && !service.models) return start();
  if (!service.models) return;
  await list(view.job?.id, open);
  await offer();
}

// ---- Clicks

at("form").addEventListener("submit", tried(async () => {
  if (!form.check()) return;
  at("generate").disabled = true;
  try {
    const asked = await form.request();
    const job = await post("generate", asked);
    if (asked.image) images.set(job.id, asked.image);
    open(job.id);
    at("stage").scrollIntoView({ block: "nearest" });
    await refresh();
  } finally {
    at("generate").disabled = false;
  }
}));
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
at("form").addEventListener("change", () => offer().catch(alarm));
at("cancel").addEventListener("click", tried(async () => {
  const running = [view.reference, view.job].find((each) => each && !ENDED.includes(each.status));
  if (running) await cancel(running.id);
}));
at("compare").addEventListener("click", tried(async () => {
  const { job } = view;
  const asked = Object.fromEntries(REPEATED.filter((name) => name in job.request).map((name) => [name, job.request[name]]));
  if (job.request.image) asked.image = images.get(job.id);
  if (job.request.image && !asked.image) throw new Error("The image is no longer in this tab; generate the video again to compare it.");
  // Clicked again, it is the same one.
  const twin = await post("generate", { ...asked, quality: "exact" }, { "idempotency-key": `uncached-${job.id}` });
  open(job.id, twin.id);
}));
at("replay").addEventListener("click", () => replay(ours.video, theirs.video));
at("again").addEventListener("click", () => {
  form.fill(view.job.request);
  offer().catch(alarm);
});
at("step").addEventListener("input", drawTimeline);
at("timeline").addEventListener("pointermove", (event) => {
  const box = at("timeline").getBoundingClientRect();
  const step = Math.floor(((event.clientX - box.left) / box.width) * view.job.total_steps);
  if (step !== Number(at("step").value)) {
    at("step").value = String(step);
    drawTimeline();
  }
});
for (const [id, draw] of [["timeline", drawTimeline], ["front-chart", drawFront]]) new ResizeObserver(draw).observe(at(id));
addEventListener("hashchange", follow);

// ---- The beginning

const start = tried(async () => {
  const [models, showcase] = await Promise.all([get("models"), get("showcase")]);
  Object.assign(service, { models, showcase });
  at("model").textContent = `${models.name} · ${models.pipeline}`;
  document.title = `${models.name} · WarpCache-Ray`;
  at("key-button").hidden = !key.get();
  form.describe(models, showcase);
  ours.shape(models.defaults);
  await follow();
  await refresh();
});

async function look() {
  if (!document.hidden && !declined) await refresh().catch(() => {});
  setTimeout(look, LOOK_MS);
}

look();
