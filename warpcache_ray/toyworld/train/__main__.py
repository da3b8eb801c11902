"""Trains the toy world's models: `python -m warpcache_ray.toyworld.train --stage vae|text|transformer|folder`.

VAE and transformer learn against the same linear code, so they can run at the same time, one core each; the text
encoders come before the transformer and take two minutes. Each stage is resumable: it continues from its last
checkpoint, and its learning rate falls to zero at `--max-minutes`. `--arch hunyuan` trains the HunyuanVideo model,
whose transformer learns from the guided predictions of the Wan one; `--arch wan-i2v` makes an image-to-video model of
the Wan one (it has no stages but `transformer` and `folder`). Under `python -m torch.distributed.run
--nproc-per-node 2 -m` in place of `python -m`, a stage has two processes, each with batches of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist

from warpcache_ray.toyworld.train import hunyuan, i2v, wan
from warpcache_ray.toyworld.train.loop import Options

STAGES = {"wan": wan.STAGES, "hunyuan": hunyuan.STAGES, "wan-i2v": i2v.STAGES}
BATCH = {"vae": 2, "text": 64, "transformer": 16}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=STAGES, default="wan")
    parser.add_argument("--stage", choices=(*wan.STAGES, "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path("toyworld-training"))
    parser.add_argument("--max-minutes", type=float, default=60.0, help="per stage")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, help=f"default {BATCH}")
    parser.add_argument("--clips", type=int, default=24_000, help="videos to learn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start-from", type=Path, help="model folder whose weights to go on from")
    given = parser.parse_args(arguments)
    stages = STAGES[given.arch]
    if given.stage not in (*stages, "all"):
        parser.error(f"--stage: {given.arch} has {', '.join(stages)}, not {given.stage!r}")
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        dist.init_process_group("gloo" if given.device == "cpu" else "nccl")
    for name in stages if given.stage == "all" else (given.stage,):
        batch = given.batch or BATCH.get(name, 1)
        options = Options(
            given.out,
            given.max_minutes,
            given.device,
            batch,
            given.clips,
            given.seed,
            given.start_from,
        )
        stages[name](options)


if __name__ == "__main__":
    main()
