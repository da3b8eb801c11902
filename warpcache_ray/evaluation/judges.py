"""Judges that are plain image models, read from local folders in transformers' form; none is downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from warpcache_ray.errors import InvalidConfig
from warpcache_ray.quality.temporal import steadiness

Video = NDArray[np.uint8]
Judge = Callable[[Video], float]

SIDE = 224
AT_ONCE = 16
LAION = "sa_0_4_vit_l_14_linear.pth"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def judges_in(folder: Path | None) -> dict[str, Judge]:
    """What can be measured, by the name of its dimension: what needs no judge, and what those in the folder can tell.

    Raises:
        InvalidConfig: a judge that is there can't be loaded.
    """
    found: dict[str, Judge] = {"temporal_flickering": steadiness}
    for name, (dimension, load) in _LOADERS.items():
        place = folder / name if folder is not None else None
        if place is None or not place.is_dir():
            continue
        try:
            found[dimension] = load(place)
        except (OSError, ValueError, LookupError, RuntimeError) as error:
            said = f"judges = {str(place)!r} can't be loaded: {error}"
            raise InvalidConfig(said, "judges") from error
    return found


def identity_of(folder: Path | None) -> str:
    """Tells a folder's judges from others, by the names and sizes of their files."""
    files = sorted(folder.rglob("*")) if folder is not None else []
    told = [(file.name, file.stat().st_size) for file in files if file.is_file()]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:12]


def consistency(features: Tensor) -> float:
    """VBench's of a video's frames (T, C): mean over all but the first of the mean cosine with the frame before and
    with the first one, negative ones counted as 0 (arXiv 2311.17982, section 3.1). 1 for a single frame."""
    if len(features) < 2:
        return 1.0
    unit = F.normalize(features.float(), dim=-1)
    before = (unit[1:] * unit[:-1]).sum(-1).clamp(min=0)
    first = (unit[1:] @ unit[0]).clamp(min=0)
    return float(((before + first) / 2).mean())


def _dino(folder: Path) -> Judge:
    from transformers import ViTModel

    model = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()

    def embed(frames: Tensor) -> Tensor:
        # Whole frames, as VBench gives them: the shorter side has 224 pixels, the positions are interpolated.
        out = model(_normal(_shorter_to(frames, SIDE), _IMAGENET), interpolate_pos_encoding=True)
        first: Tensor = out.last_hidden_state[:, 0]
        return first

    return lambda video: consistency(_features(video, embed))


def _clip(folder: Path) -> Callable[[Video], Tensor]:
    from transformers import CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(folder).eval()

    def embed(frames: Tensor) -> Tensor:
        square = _centre(_shorter_to(frames, SIDE, "bicubic"), SIDE)
        embedded: Tensor = model(_normal(square, _CLIP)).image_embeds
        return embedded

    return lambda video: _features(video, embed)


def _background(folder: Path) -> Judge:
    embed = _clip(folder)
    return lambda video: consistency(embed(video))


def _aesthetic(folder: Path) -> Judge:
    """LAION's predictor of a rating from 0 to 10 on CLIP's normalised features, divided by 10 (VBench)."""
    embed = _clip(folder)
    head: Mapping[str, Tensor] = torch.load(folder / LAION, weights_only=True)

    def judge(video: Video) -> float:
        unit = F.normalize(embed(video).float(), dim=-1)
        return float(F.linear(unit, head["weight"], head["bias"]).mean() / 10)

    return judge


_LOADERS: dict[str, tuple[str, Callable[[Path], Judge]]] = {
    "dino": ("subject_consistency", _dino),
    "clip-b32": ("background_consistency", _background),
    "clip-l14": ("aesthetic_quality", _aesthetic),
}


@torch.no_grad()
def _features(video: Video, embed: Callable[[Tensor], Tensor]) -> Tensor:
    frames = torch.from_numpy(video).permute(0, 3, 1, 2).float() / 255
    return torch.cat([embed(part) for part in torch.split(frames, AT_ONCE)])


def _shorter_to(frames: Tensor, side: int, mode: str = "bilinear") -> Tensor:
    rows, columns = frames.shape[2:]
    short = min(rows, columns)
    size = (rows * side // short, columns * side // short)
    resized: Tensor = F.interpolate(frames, size, mode=mode, antialias=True).clamp(0, 1)
    return resized


def _centre(frames: Tensor, side: int) -> Tensor:
    top, left = ((n - side) // 2 for n in frames.shape[2:])
    return frames[:, :, top : top + side, left : left + side]


def _normal(frames: Tensor, statistics: Any) -> Tensor:
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in statistics)
    return (frames - mean) / std
