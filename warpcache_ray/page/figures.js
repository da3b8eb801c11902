// What the cache did in numbers: tiles for one job, a table for two.

import { calls, denoising, duration, element, number, uncached } from "./words.js";

export function tiles(job) {
  const made = calls(job);
  const share = job.cache.share_of_blocks;
  const took = denoising(job);
  const attempts = job.attempts.length;
  return [
    tile("Calls", `${number(made)} of ${job.total_steps}`, made < job.total_steps ? `${number(job.total_steps / made)} times fewer` : "every step computed"),
    tile("Blocks computed", share === undefined ? "100 %" : `${Math.round(share * 100)} %`, "of the transformer's"),
    took === null ? null : tile("Denoising", duration(took), `${duration(job.finished_at - job.created_at)} with waiting and decoding`),
    tile("Seed", String(job.request.seed), attempts > 1 ? `${attempts} attempts, resumed at step ${job.result.resumed_at}` : job.policy.name),
  ].filter(Boolean);
}

const tile = (name, value, more) =>
  element("div", {}, element("dt", {}, name), element("dd", {}, value, element("small", {}, more)));

// Two jobs beside each other; `fidelity` is how near the first one's video is to the second one's.
export function comparison(job, reference, fidelity) {
  const [a, b] = [denoising(job), denoising(reference)];
  const rows = [
    ["Calls", number(calls(job)), number(calls(reference))],
    ["Denoising", a === null ? "" : duration(a), b === null ? "" : duration(b)],
    ["PSNR against uncached", fidelity.identical ? "identical" : `${fidelity.psnr.toFixed(1)} dB`, ""],
    ["SSIM against uncached", fidelity.ssim.toFixed(4), ""],
  ];
  const heads = ["", uncached(job) ? "this video" : job.policy.name, "uncached"].map((head) => element("th", { scope: "col" }, head));
  const body = rows.map(([name, ...cells]) =>
    element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell))));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...body));
  return [table, element("p", { className: "hint" }, explained(fidelity, job.request.output_format === "png"))];
}

function explained(fidelity, lossless) {
  if (fidelity.identical) return "Both have the same latents, bit for bit.";
  const some = fidelity.frames < fidelity.num_frames ? `${fidelity.frames} of ${fidelity.num_frames} frames` : `all ${fidelity.frames} frames`;
  const said = `Measured on ${some} of the two files as you see them.`;
  return lossless ? said : `${said} Both are compressed, and compression differs too: beyond about 40 dB the numbers say little.`;
}
