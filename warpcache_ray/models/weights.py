"""From weights as users have them (folders, hub ids, single files, float8, DFloat11, LoRAs) to a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, TorchAoConfig
from safetensors import SafetensorError
from torch import Tensor, nn

from warpcache_ray.errors import InvalidConfig
from warpcache_ray.extras import need
from warpcache_ray.models.loras import load_loras

TRANSFORMERS = ("transformer", "transformer_2")
FP8 = "fp8"


@dataclass(frozen=True, slots=True)
class Weights:
    """A pipeline's folder or hub id, and where its transformers' weights are, if not there.

    `dtype` is torch's name of one, or fp8: linear weights of transformers are float8 (e4m3, torchao), computed with in
    bfloat16, as is all else. `files` names a transformer's single safetensors file, its configuration being the
    folder's; `dfloat11` folders or hub ids of its losslessly compressed weights; `loras` the files of adapters, each of
    which a request may ask for. With `group_offload` each layer's weights are on the device only while it computes.
    """

    path: str | Path
    revision: str | None = None
    dtype: str = "float32"
    files: Mapping[str, str] = field(default_factory=dict)
    dfloat11: Mapping[str, str] = field(default_factory=dict)
    loras: Mapping[str, str] = field(default_factory=dict)
    group_offload: bool = False

    def load(self, device: str, class_of: Callable[[str], Any] | None = None) -> Any:
        """The pipeline on a device. `class_of` gives the class to make in place of a transformer's in diffusers.

        Raises:
            InvalidConfig: a file is missing or unfit, or a package that its form needs.
        """
        pipeline_class, kinds = self._classes()
        for field_, given in (("files", self.files), ("dfloat11", self.dfloat11)):
            _check_names(field_, given, kinds)
        made = {
            name: self._transformer(name, class_of(kind) if class_of else _class(kind))
            for name, kind in kinds.items()
            if class_of or self.dtype == FP8 or name in self.files
        }
        # Not through DiffusionPipeline: of some classes that one drops what it is given, without a word.
        pipeline = self._checked("path", self.path, pipeline_class.from_pretrained, **made)
        for name, place in self.dfloat11.items():
            _compress(name, place, getattr(pipeline, name))
        load_loras(pipeline, self.loras)
        if not self.group_offload:
            return pipeline.to(device)
        # By leaves, without a stream: what foresees the next layer can't know which ones the cache skips.
        pipeline.enable_group_offload(torch.device(device), offload_type="leaf_level")
        return pipeline

    @property
    def torch_dtype(self) -> torch.dtype:
        """What is computed in."""
        dtype: torch.dtype = getattr(torch, "bfloat16" if self.dtype == FP8 else self.dtype)
        return dtype

    def _classes(self) -> tuple[Any, dict[str, str]]:
        """The pipeline's class, and the names of its transformers' classes."""
        try:
            index = DiffusionPipeline.load_config(str(self.path), revision=self.revision)
        except (OSError, ValueError) as error:
            raise InvalidConfig(
                f"model.path = {str(self.path)!r}: {error}", "model.path"
            ) from error
        kinds = {n: index[n][1] for n in TRANSFORMERS if index.get(n, (None, None))[1]}
        return _class(index["_class_name"]), kinds

    def _transformer(self, name: str, kind: Any) -> Any:
        form = {"quantization_config": _float8()} if self.dtype == FP8 else {}
        file = self.files.get(name)
        if file is None:
            return self._checked("path", self.path, kind.from_pretrained, subfolder=name, **form)
        where = f"files.{name}"
        if not hasattr(kind, "from_single_file"):
            message = (
                f"model.{where} = {file!r}: diffusers reads no {kind.__name__} from a single file"
            )
            raise InvalidConfig(message, f"model.{where}")
        place = {"config": str(self.path), "subfolder": name, "config_revision": self.revision}
        return self._checked(where, file, kind.from_single_file, **place, **form)

    def _checked(self, where: str, place: str | Path, load: Any, **how: Any) -> Any:
        """What `load` makes of a place.

        Raises:
            InvalidConfig: it can't.
        """
        revision = self.revision if where == "path" else None
        try:
            return load(str(place), dtype=self.torch_dtype, revision=revision, **how)
        except (OSError, ValueError, SafetensorError) as error:
            said = f"model.{where} = {str(place)!r} can't be loaded: {error}"
            raise InvalidConfig(said, f"model.{where}") from error


def _class(name: str) -> Any:
    found = getattr(diffusers, name, None)
    if found is None:
        said = f"model.path: diffusers {diffusers.__version__} has no {name}"
        raise InvalidConfig(said, "model.path")
    return found


def _check_names(where: str, given: Mapping[str, str], kinds: Mapping[str, str]) -> None:
    stray = next((name for name in given if name not in kinds), None)
    if stray is not None:
        said = (
            f"model.{where} = {dict(given)}: the model has no {stray!r}, only: {', '.join(kinds)}"
        )
        raise InvalidConfig(said, f"model.{where}")


def weight_bytes(pipeline: Any) -> int:
    """What the weights of all of a pipeline's models take, wherever they are."""
    models = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    weights = {id(w): w for model in models for w in (*model.parameters(), *model.buffers())}
    return sum(_stored(weight) for weight in weights.values())


def _stored(weight: Tensor) -> int:
    # A quantized weight tells the size that it stands for, its parts what they take.
    if hasattr(weight, "__tensor_flatten__"):
        parts, _ = weight.__tensor_flatten__()
        return sum(_stored(getattr(weight, part)) for part in parts)
    return weight.nbytes


def _float8() -> Any:
    need("torchao", "model.dtype")
    from torchao.quantization import Float8WeightOnlyConfig

    return TorchAoConfig(Float8WeightOnlyConfig())


def _compress(name: str, place: str, transformer: nn.Module) -> None:
    """Puts DFloat11's form of its bfloat16 weights in a transformer (arXiv 2504.11651): the same values, decompressed
    on the GPU as each block computes."""
    where = f"model.dfloat11.{name}"
    need("dfloat11", where)
    try:
        from dfloat11 import DFloat11Model

        DFloat11Model.from_pretrained(place, device="cpu", bfloat16_model=transformer)
    except (ImportError, OSError, ValueError) as error:
        raise InvalidConfig(f"{where} = {place!r} can't be loaded: {error}", where) from error
