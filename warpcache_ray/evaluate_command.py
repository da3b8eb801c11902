"""`warpcache evaluate`: a published protocol, or cached videos beside uncached ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import track

from warpcache_ray.errors import InvalidRequest, WarpCacheError
from warpcache_ray.terminal import DEMO_MODEL, complain, console, load_engine, policy_of, sampled

if TYPE_CHECKING:
    from warpcache_ray.evaluation.kept import Kept
    from warpcache_ray.evaluation.making import Maker
    from warpcache_ray.evaluation.report import Report

ProtocolName = Literal["pairs", "vbench", "pai-bench"]


@dataclass(frozen=True, slots=True)
class _Request:
    protocol: str
    out: Path
    videos: Path | None
    references: Path | None
    prompts: Path | None
    judges: Path | None
    scores: tuple[Path, ...]
    samples: int | None
    count: int | None

    @property
    def work(self) -> Path:
        return self.out.with_name(f"{self.out.stem}-work")


def evaluate(
    protocol: Annotated[ProtocolName, typer.Option(help="What to measure")] = "pairs",
    out: Annotated[Path, typer.Option(help="Report, without its ending")] = Path("evaluation"),
    videos: Annotated[Path | None, typer.Option(help="Folder of the videos to judge")] = None,
    references: Annotated[
        Path | None, typer.Option(help="Folder of their references, called the same (pairs)")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="The protocol's JSON, or text with one prompt a line")
    ] = None,
    judges: Annotated[
        Path | None, typer.Option(help="Folder with dino, clip-b32 and clip-l14, if there are any")
    ] = None,
    scores: Annotated[
        list[Path] | None, typer.Option(help="Results of the protocol's own program; repeatable")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Videos a prompt; default: the protocol's")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="The first prompts only")] = None,
    model: Annotated[
        str | None, typer.Option(help="Make the videos that aren't there: folder or hub id")
    ] = None,
    policy: Annotated[str, typer.Option(help="Name, file or YAML, as `generate` takes")] = "auto",
    height: Annotated[int | None, typer.Option(min=16)] = None,
    width: Annotated[int | None, typer.Option(min=16)] = None,
    num_frames: Annotated[int | None, typer.Option(min=1)] = None,
    num_inference_steps: Annotated[int, typer.Option(min=1)] = 50,
    guidance_scale: Annotated[float | None, typer.Option(min=0)] = None,
    fps: Annotated[int, typer.Option(min=1, max=120)] = 8,
    dtype: Annotated[Literal["float32", "bfloat16", "float16", "fp8"], typer.Option()] = "float32",
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
) -> None:
    """Measure what needs no judge, what local judges tell, and say what is missing of a protocol; resumable."""
    request = _Request(
        *(protocol, out, videos, references, prompts, judges, tuple(scores or ()), samples, count)
    )
    try:
        _check(request, model)
        maker = None
        if model is not None:
            arguments = sampled(model, height, width, num_frames, guidance_scale)
            arguments["num_inference_steps"] = num_inference_steps
            maker = _maker(load_engine(model, dtype, device, threads), arguments, policy, fps)
        report = _pairs(request, maker) if protocol == "pairs" else _suite(request, maker)
        table = report.write(out)
    except WarpCacheError as error:
        raise complain(error) from error
    console.print(table, markup=False, highlight=False, soft_wrap=True)


def _check(request: _Request, model: str | None) -> None:
    """Refuses what can't be evaluated, before a model is loaded."""
    pairs = request.protocol == "pairs"
    for name in ("judges", "scores", "samples") if pairs else ("references",):
        value = getattr(request, name)
        if value:
            shown = value if isinstance(value, int) else str(value)
            said = f"{name} = {shown}: {request.protocol} takes none; leave it out"
            raise InvalidRequest(said, name)
    if not pairs:
        if request.videos is None:
            raise InvalidRequest(f"videos is missing: {request.protocol} judges a folder", "videos")
        if model is not None and request.prompts is None:
            raise InvalidRequest("prompts is missing: what the videos are to show", "prompts")
        return
    if model is None and (request.videos is None or request.references is None):
        said = f"pairs need videos and references, or model and prompts (model = {DEMO_MODEL!r}: the demo)"
        raise InvalidRequest(said, "videos")
    if model is not None and (request.videos or request.references):
        raise InvalidRequest(
            "model makes both videos of a pair; leave videos and references out", "model"
        )
    if model is not None and request.prompts is None:
        raise InvalidRequest("prompts is missing: what the videos are to show", "prompts")


def _maker(engine: Any, arguments: dict[str, Any], policy: str, fps: int) -> Maker:
    from warpcache_ray.evaluation.making import Maker

    return Maker(engine, arguments, policy_of(policy), fps)


def _pairs(request: _Request, maker: Maker | None) -> Report:
    from warpcache_ray.evaluation import pairs
    from warpcache_ray.evaluation.kept import Kept, file_digest
    from warpcache_ray.evaluation.report import Report

    kept = Kept(request.work)
    settings: dict[str, Any]
    if maker is not None:
        assert request.prompts is not None
        made = _made_pairs(request, maker, kept)
        settings = maker.settings | {"prompts": file_digest(request.prompts)[:12]}
    else:
        assert request.videos is not None
        assert request.references is not None
        files = pairs.pairs_in(request.videos, request.references)[: request.count]
        made = {n: pairs.compare_files(v, r, kept) for n, v, r in _followed(files, "videos")}
        settings = {"videos": str(request.videos), "references": str(request.references)}
    values: dict[str, Any] = dict(pairs.summary(list(made.values())))
    if maker is not None:
        spent, plain = (
            sum(m[n] for m in made.values()) for n in ("denoise_s", "uncached_denoise_s")
        )
        values["times as fast (denoising)"] = plain / spent
        values["share of blocks"] = sum(m["share_of_blocks"] for m in made.values()) / len(made)
    return Report("pairs", "videos beside their references", settings, values, {}, {}, made)


def _made_pairs(request: _Request, maker: Maker, kept: Kept) -> dict[str, dict[str, Any]]:
    from warpcache_ray.evaluation.protocols import VBENCH
    from warpcache_ray.evaluation.suite import samples_of

    assert request.prompts is not None
    samples = samples_of(VBENCH, request.prompts, 1)[: request.count]
    folder = request.out.with_name(f"{request.out.stem}-videos")
    return {
        f"{place:03d}": maker.pair(f"{place:03d}", sample.prompt, place, folder, kept)
        for place, sample in enumerate(_followed(samples, "prompts"))
    }


def _suite(request: _Request, maker: Maker | None) -> Report:
    from warpcache_ray.evaluation import suite
    from warpcache_ray.evaluation.judges import identity_of, judges_in
    from warpcache_ray.evaluation.kept import Kept, file_digest
    from warpcache_ray.evaluation.protocols import PROTOCOLS
    from warpcache_ray.evaluation.report import Report, missing_of

    assert request.videos is not None
    protocol, absent = PROTOCOLS[request.protocol], list[str]()
    judges = {n: j for n, j in judges_in(request.judges).items() if n in protocol.dimensions}
    told = suite.told_in(request.scores, protocol)
    settings: dict[str, Any] = {
        "measured here": ", ".join(sorted(judges)),
        **(maker.settings if maker else {}),
    }
    if request.prompts is None:
        found = suite.without_prompts(protocol, request.videos)[: request.count]
    else:
        samples = suite.samples_of(protocol, request.prompts, request.samples)
        samples = samples[: request.count and request.count * (request.samples or protocol.samples)]
        for sample in _followed(samples if maker else (), "videos made"):
            assert maker is not None
            maker.write(sample, request.videos)
        found = suite.present(samples, request.videos)
        absent = sorted({s.name for s in samples} - {s.name for s, _ in found})
        settings["prompts"] = file_digest(request.prompts)[:12]
    kept, about = Kept(request.work), identity_of(request.judges)
    rows = {s.name: suite.judged(s, f, judges, about, kept) for s, f in _followed(found, "videos")}
    values = suite.means(list(rows.values())) | told
    missing = missing_of(protocol, values, absent)
    return Report(
        protocol.name, protocol.source, settings, values, protocol.scores(values), missing, rows
    )


def _followed(things: Iterable[Any], what: str) -> Iterable[Any]:
    return track(list(things), description=what, console=console)
