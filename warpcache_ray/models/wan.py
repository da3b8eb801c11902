"""Wan 2.1 and 2.2, and the models made of their blocks: one list over video tokens; text enters by cross-attention."""

from __future__ import annotations

from warpcache_ray.models.adapter import BlockList, ModelAdapter

_LISTS = (BlockList("blocks"),)

ADAPTER = ModelAdapter("WanTransformer3DModel", _LISTS)
VACE = ModelAdapter("WanVACETransformer3DModel", _LISTS)
"""Its hints are computed at every call that isn't skipped as a whole."""
CHRONOEDIT = ModelAdapter("ChronoEditTransformer3DModel", _LISTS)
SKYREELS = ModelAdapter("SkyReelsV2Transformer3DModel", _LISTS)
