// The screens: a job's video, and beside it the uncached one.

import { videoUrl } from "./api.js";
import { calls, denoising, duration, element, ENDED, number, uncached } from "./words.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Screen {
  constructor(id) {
    this.figure = document.getElementById(id);
    this.frame = this.figure.querySelector(".frame");
    this.caption = this.figure.querySelector("figcaption");
    this.url = null;
    this.blank = [...this.frame.children];
  }

  get video() {
    return this.frame.querySelector("video");
  }

  // Text in place of a video.
  say(text) {
    this.release();
    this.shown = null;
    this.frame.replaceChildren(element("p", {}, text));
    this.caption.textContent = "";
  }

  shape({ width, height }) {
    if (!(width && height)) return;
    this.frame.style.setProperty("--ratio", `${width} / ${height}`);
    this.frame.style.setProperty("--wide", String(width / height));
  }

  // A job as it stands.
  async show(job) {
    this.figure.classList.remove("empty");
    this.shape(job.request);
    if (job.status === "succeeded") await this.play(job);
    else this.say(standing(job));
  }

  async play(job) {
    if (this.shown === job.id) return;
    this.release();
    this.shown = job.id;
    this.shape(job.result);
    this.url = await videoUrl(job);
    const label = `${uncached(job) ? "Uncached video" : "Video"}: ${job.request.prompt}`;
    this.frame.replaceChildren(moving(this.url, label, job.request.output_format));
    this.caption.replaceChildren(...facts(job));
  }

  release() {
    if (this.url?.startsWith("blob:")) URL.revokeObjectURL(this.url);
    this.url = null;
  }

  // As it was at first.
  clear() {
    this.release();
    this.shown = null;
    this.frame.replaceChildren(...this.blank);
    this.caption.textContent = "";
    this.figure.classList.add("empty");
  }
}

function moving(src, label, format) {
  if (format === "gif" || format === "png") return element("img", { src, alt: label });
  const video = element("video", { src, controls: true, loop: true, muted: true, playsInline: true, autoplay: !still.matches });
  video.setAttribute("aria-label", label);
  return video;
}

function standing(job) {
  if (job.error) return job.status === "cancelled" ? "Cancelled." : `${job.error.message} (${job.error.code})`;
  if (job.status === "running") return job.step ? "Denoising…" : "Starting…";
  return ENDED.includes(job.status) ? job.status : "Waiting for its turn…";
}

function facts(job) {
  const took = denoising(job);
  const name = uncached(job) ? "Uncached" : job.policy.name;
  const rest = `${number(calls(job))} of ${job.total_steps} calls${took === null ? "" : `, ${duration(took)}`}`;
  return [element("b", {}, name), ` · ${rest}`];
}

// One control for both: what the first video does, the second does too.
export function bind(first, second) {
  if (!(first && second)) return;
  second.controls = false;
  const follow = () => {
    second.currentTime = first.currentTime;
  };
  first.onplay = () => { follow(); second.play().catch(() => {}); };
  first.onpause = () => second.pause();
  first.onseeking = follow;
}

export function replay(first, second) {
  for (const video of [first, second]) video.currentTime = 0;
  for (const video of [first, second]) video.play().catch(() => {});
}
