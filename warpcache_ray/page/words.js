// Numbers and records in words.

export const ENDED = ["succeeded", "failed", "cancelled"];

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${Math.round(minutes / 60)} h`;
}

export function ago(unix) {
  const seconds = Math.max(0, Date.now() / 1000 - unix);
  return seconds < 10 ? "just now" : `${duration(seconds)} ago`;
}

export const number = (value) => String(Math.round(value * 10) / 10);

// How many full calls a job's steps came to.
export const calls = (job) => (job.cache.share_of_calls ?? 1) * (job.total_steps ?? 0);

// The same of the steps that are made so far, and how many the cache answered.
export const soFar = (job) => {
  const made = (job.cache.share_of_calls ?? 1) * job.step;
  return `${number(made)} calls computed, ${number(job.step - made)} skipped`;
};

// How many of the steps a policy computes, where that is known before.
export function plannedCalls(policy, steps) {
  if (policy.name === "never") return steps;
  return policy.name === "auto" && policy.max_calls ? Math.min(policy.max_calls, steps) : null;
}

export const denoising = (job) => job.result.timings?.denoise ?? null;

export const uncached = (job) => job.policy.name === "never";

// A decision's kind as one of the three that there are.
export const action = (kind) => (kind === "recompute" || kind === "reuse" ? kind : "warp");

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
