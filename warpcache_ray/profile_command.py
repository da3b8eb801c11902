"""`warpcache profile`: a policy for a model, found on its own runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from warpcache_ray.errors import InvalidRequest, WarpCacheError
from warpcache_ray.policy_document import PolicyDocument, Target
from warpcache_ray.policy_slots import Served
from warpcache_ray.policy_spec import check_policy_file, parse_policy, save_policy
from warpcache_ray.publication import Publication
from warpcache_ray.store.policies import ALL
from warpcache_ray.terminal import DEMO_MODEL, complain, console, load_engine, sampled

DEFAULT_QUALITY = 0.99


def profile(
    model: Annotated[str, typer.Option(help="Pipeline folder or hub id")] = DEMO_MODEL,
    out: Annotated[Path, typer.Option(help="Policy file: .json, .yaml or .yml")] = Path(
        "policy.json"
    ),
    report: Annotated[
        Path | None, typer.Option(help="HTML report; default: beside the policy file")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="One a line; default: a set of ours")] = None,
    count: Annotated[int, typer.Option(help="Prompts to search on, 2 to 9")] = 8,
    quality: Annotated[
        float | None,
        typer.Option(
            help=f"SSIM against uncached to keep; {DEFAULT_QUALITY} if no target is given"
        ),
    ] = None,
    target_psnr: Annotated[float | None, typer.Option(help="Or dB against uncached")] = None,
    max_calls: Annotated[int | None, typer.Option(help="Or steps to compute, at most")] = None,
    share: Annotated[float, typer.Option(help="Of the requests, that are to keep it")] = 0.95,
    delta: Annotated[float, typer.Option(help="Chance of a false certificate")] = 0.05,
    certify: Annotated[int, typer.Option(min=0, help="Fresh prompts to prove it on")] = 0,
    steps: Annotated[int, typer.Option(min=1)] = 50,
    height: Annotated[int | None, typer.Option(min=16)] = None,
    width: Annotated[int | None, typer.Option(min=16)] = None,
    num_frames: Annotated[int | None, typer.Option(min=1)] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0)] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option()] = "float32",
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
    work: Annotated[Path, typer.Option(help="Where runs are kept, to go on from")] = Path(
        "~/.cache/warpcache-profile"
    ),
    store: Annotated[
        str | None,
        typer.Option(help="Publish it there: redis://, rediss:// or unix:// URL"),
    ] = None,
    app: Annotated[
        str | None,
        typer.Option(envvar="WARPCACHE_APP", help="Application; default: the store's only one"),
    ] = None,
    serves: Annotated[Served, typer.Option("--for", help="Quality that it serves")] = "default",
    canary: Annotated[int, typer.Option(help="Percent of the requests to publish it for")] = ALL,
) -> None:
    """Find the policy of fewest calls that keeps a quality, within 12 generations; with --certify, prove it."""
    try:
        check_policy_file(out)
        target = _target(quality, target_psnr, max_calls)
        captions = _captions(model, prompts)
        sizes = sampled(model, height, width, num_frames, guidance_scale)

        from warpcache_ray import tuning
        from warpcache_ray.engine.fingerprints import policy_key
        from warpcache_ray.guarantee import Promise
        from warpcache_ray.tuning.report import write_report
        from warpcache_ray.tuning.sensitivity import write_sensitivity

        wish = tuning.Wish(target, Promise(share, delta), count, certify)
        wish.requests(captions)
        publication = None if store is None else Publication(store, app, serves, canary)
        engine = load_engine(model, dtype, device, threads)
        # Calibration watches the pipeline itself.
        engine.installation.remove()
        arguments = {**sizes, "num_inference_steps": steps}
        if publication is not None:
            publication = publication.began(policy_key(engine.pipeline, arguments))
        document, found = tuning.profile_model(
            engine.pipeline, captions, arguments, wish, work.expanduser()
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        save_policy(document, out)
        shown = report or out.with_suffix(".html")
        write_report(document, found, shown)
        write_sensitivity(found, shown.with_suffix(".sensitivity.json"))
        console.print(f"{out}: {_account(document, steps)}", markup=False)
        console.print(f"report: {shown}", markup=False)
        if publication is not None:
            console.print(f"published: {publication.publish(document)}", markup=False)
    except WarpCacheError as error:
        raise complain(error) from error
    except ValueError as error:
        # The pipeline's own checks, before its first step.
        raise complain(InvalidRequest(str(error))) from error


def _target(quality: float | None, target_psnr: float | None, max_calls: int | None) -> Target:
    parse_policy("auto", max_calls=max_calls, target_psnr=target_psnr)
    if quality is not None and (target_psnr is not None or max_calls is not None):
        raise InvalidRequest(
            f"quality: {quality!r} is not allowed; it must be left out where target_psnr or max_calls is given",
            "quality",
        )
    if max_calls is not None:
        return Target("calls", max_calls)
    if target_psnr is not None:
        return Target("psnr", target_psnr)
    return Target("ssim", DEFAULT_QUALITY if quality is None else quality)


def _captions(model: str, prompts: Path | None) -> list[str]:
    own = "toyworld" if model.startswith("toyworld/") else "generic"
    path = prompts or Path(__file__).parent / "tuning" / "prompts" / f"{own}.txt"
    try:
        found = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        message = f"prompts = {str(path)!r}: can't be read: {error}"
        raise InvalidRequest(message, "prompts") from error
    if not found:
        raise InvalidRequest(f"prompts = {str(path)!r}: must hold one prompt a line", "prompts")
    return found


def _account(document: PolicyDocument, steps: int) -> str:
    expected, certificate = document.expected, document.certificate
    said = f"{expected['calls']} of {steps} calls for {document.target}; "
    if certificate is None:
        kept = expected["share_kept"]
        told = "" if kept is None else f"expected to be kept by {kept:.1%} of the requests; "
        return (
            f"{said}{told}{expected['share']:.0%} of them at {expected['psnr']:.1f} dB or SSIM {expected['ssim']:.4f} "
            f"or more (estimates from {document.provenance['generations']:.1f} generations; not certified)"
        )
    verdict = "certified" if certificate.certified else "NOT certified"
    return (
        f"{said}{verdict}: {certificate.misses} of {certificate.requests} fresh requests missed "
        f"({certificate.allowed_misses} allowed), so {certificate.share_kept:.1%} or more of all keep it, at "
        f"{1 - certificate.delta:.0%} confidence"
    )
