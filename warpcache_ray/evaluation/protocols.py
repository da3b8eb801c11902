"""Published protocols: which dimensions they have, what each takes, and how scores come of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Dimension:
    """What is measured of a video. `needs` says what that takes beyond the video; raw values are shown as they are,
    and count as (raw - `floor`) / (`ceiling` - `floor`), `weight` times."""

    name: str
    needs: str
    floor: float = 0.0
    ceiling: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Protocol:
    """`groups` are weighted means of dimensions, the total a weighted mean of groups, by `weights`. Files are called
    after the prompt's `key`, with `joint` and the number (or seed) of the sample, of which there are `samples`."""

    name: str
    source: str
    groups: Mapping[str, tuple[Dimension, ...]]
    weights: Mapping[str, float]
    key: str
    joint: str
    samples: int

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """All of them by name."""
        return {d.name: d for group in self.groups.values() for d in group}

    def scores(self, raw: Mapping[str, float]) -> dict[str, float | None]:
        """Each group's score and the total; None where a dimension of it wasn't measured."""
        found = {name: _mean(group, raw) for name, group in self.groups.items()}
        known = {name: score for name, score in found.items() if score is not None}
        whole = len(known) == len(found)
        total = sum(self.weights[n] * score for n, score in known.items()) if whole else None
        return {**found, "total": total and total / sum(self.weights.values())}


def _mean(group: tuple[Dimension, ...], raw: Mapping[str, float]) -> float | None:
    if any(d.name not in raw for d in group):
        return None
    counted = (d.weight * (raw[d.name] - d.floor) / (d.ceiling - d.floor) for d in group)
    return sum(counted) / sum(d.weight for d in group)


DINO = "dino: a transformers folder of facebook/dino-vitb16"
CLIP_B = "clip-b32: a transformers folder of openai/clip-vit-base-patch32"
CLIP_L = (
    "clip-l14: a transformers folder of openai/clip-vit-large-patch14, "
    "and in it sa_0_4_vit_l_14_linear.pth of LAION's aesthetic predictor"
)
_AMT = "the AMT-S frame interpolator (amt-s.pth)"
_MUSIQ = "the MUSIQ image quality model (musiq_spaq)"
_RAFT = "the RAFT optical flow (raft-things.pth)"
_GRIT = "the GRiT object detector (grit_b_densecap_objectdet.pth)"
_VICLIP = "the ViCLIP video-text model (ViClip-InternVid-10M-FLT.pth)"
_VLM = "a vision language model that answers the protocol's questions (Qwen2.5-VL-72B-Instruct)"

VBENCH = Protocol(
    "vbench",
    "VBench (CVPR 2024, arXiv 2311.17982); ranges and weights: scripts/constant.py of Vchitect/VBench at 7975661",
    {
        "quality": (
            Dimension("subject_consistency", DINO, 0.1462),
            Dimension("background_consistency", CLIP_B, 0.2615),
            Dimension("temporal_flickering", "", 0.6293),
            Dimension("motion_smoothness", _AMT, 0.706, 0.9975),
            Dimension("aesthetic_quality", CLIP_L),
            Dimension("imaging_quality", _MUSIQ),
            Dimension("dynamic_degree", _RAFT, weight=0.5),
        ),
        "semantic": (
            Dimension("object_class", _GRIT),
            Dimension("multiple_objects", _GRIT),
            Dimension("human_action", "the UMT action classifier (l16_ptk710_ftk710_ftk400)"),
            Dimension("color", _GRIT),
            Dimension("spatial_relationship", _GRIT),
            Dimension("scene", "the Tag2Text tagger (tag2text_swin_14m.pth)", 0.0, 0.8222),
            Dimension("appearance_style", "CLIP ViT-B/32 with its text encoder", 0.0009, 0.2855),
            Dimension("temporal_style", _VICLIP, 0.0, 0.364),
            Dimension("overall_consistency", _VICLIP, 0.0, 0.364),
        ),
    },
    {"quality": 4.0, "semantic": 1.0},
    key="prompt_en",
    joint="-",
    samples=5,
)

PAI_BENCH = Protocol(
    "pai-bench",
    "PAI-Bench-G (arXiv 2512.01989); predict/ of SHI-Labs/physical-ai-bench at 387544d",
    {
        "quality": (
            Dimension("subject_consistency", DINO),
            Dimension("background_consistency", CLIP_B),
            Dimension("motion_smoothness", _AMT),
            Dimension("aesthetic_quality", CLIP_L),
            Dimension("imaging_quality", _MUSIQ),
            Dimension("overall_consistency", _VICLIP),
            Dimension("i2v_subject", "DINO ViT-B/16 and the condition images"),
            Dimension("i2v_background", "DreamSim and the condition images"),
        ),
        "domain": (Dimension("domain_score", _VLM),),
    },
    {"quality": 1.0, "domain": 1.0},
    key="video_id",
    joint="__",
    samples=1,
)

PROTOCOLS = {protocol.name: protocol for protocol in (VBENCH, PAI_BENCH)}


def told_scores(content: Any) -> dict[str, float]:
    """Raw values in what the protocols' own programs write: VBench's `*_eval_results.json` ({dimension: [value, …]}),
    PAI-Bench's of the same form and its `vqa_summary.json`.

    Raises:
        ValueError: it is neither.
    """
    try:
        if "overall_accuracy" in content:
            return {"domain_score": float(content["overall_accuracy"])}
        return {name: float(values[0]) for name, values in content.items()}
    except (AttributeError, TypeError, LookupError, ValueError) as error:
        raise ValueError("neither {dimension: [value, …]} nor a vqa_summary") from error
