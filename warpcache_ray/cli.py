"""The command line: `warpcache serve | generate | demo | profile | policy | evaluate | bench | key | doctor`."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from warpcache_ray import evaluate_command, key_command, policy_command, profile_command
from warpcache_ray.config import ModelConfig, ServiceConfig, load_application
from warpcache_ray.errors import InvalidRequest, WarpCacheError
from warpcache_ray.media import MEDIA_TYPES
from warpcache_ray.policy_spec import parse_policy
from warpcache_ray.terminal import DEMO_MODEL, complain, console, load_engine, policy_of, sampled

if TYPE_CHECKING:
    from PIL.Image import Image

    from warpcache_ray.core.policy import Policy
    from warpcache_ray.engine.engine import Engine
    from warpcache_ray.engine.events import Control, Generation, Result, StepEvent

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Video diffusion, made cheaper.")
app.add_typer(key_command.app, name="key")
app.add_typer(policy_command.app, name="policy")
app.command()(profile_command.profile)
app.command()(evaluate_command.evaluate)

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}"),
)


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="A file such as configs/toyworld.yaml")],
) -> None:
    """Check a configuration, then serve it with Ray Serve (`serve run`) until interrupted."""
    from warpcache_ray.serving.preflight import check_layout, check_model

    try:
        checked = load_application(config)
        check_model(checked)
        check_layout(checked)
    except WarpCacheError as error:
        raise complain(error) from error
    os.execvp(sys.executable, [sys.executable, "-m", "ray.serve.scripts", "run", str(config)])


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows")],
    out: Annotated[Path, typer.Option(help=f"Ends in one of: {', '.join(MEDIA_TYPES)}")] = Path(
        "video.mp4"
    ),
    model: Annotated[str, typer.Option(help="Pipeline folder or hub id")] = DEMO_MODEL,
    policy: Annotated[
        str, typer.Option(help="Name, file, or YAML such as '{name: interval, every: 3}'")
    ] = "worldcache",
    negative_prompt: Annotated[str | None, typer.Option()] = None,
    image: Annotated[Path | None, typer.Option(help="First frame: PNG, JPEG or WebP")] = None,
    height: Annotated[int | None, typer.Option(min=16)] = None,
    width: Annotated[int | None, typer.Option(min=16)] = None,
    num_frames: Annotated[int | None, typer.Option(min=1)] = None,
    num_inference_steps: Annotated[int, typer.Option(min=1)] = 50,
    guidance_scale: Annotated[float | None, typer.Option(min=0)] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Drawn at random if left out")] = None,
    fps: Annotated[int, typer.Option(min=1, max=120)] = 8,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option()] = "float32",
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
    compare: Annotated[bool, typer.Option(help="Also run uncached, write both, measure")] = False,
) -> None:
    """Generate a video here, without a server."""
    from warpcache_ray.engine.events import Generation

    sizes = sampled(model, height, width, num_frames, guidance_scale)
    try:
        generation = Generation(
            prompt=prompt,
            seed=secrets.randbelow(2**31) if seed is None else seed,
            num_inference_steps=num_inference_steps,
            negative_prompt=negative_prompt,
            image=None if image is None else _image(image, sizes),
            fps=fps,
            **sizes,
        )
        form = _format(out)
        chosen = policy_of(policy)
        engine = load_engine(model, dtype, device, threads)
        if compare:
            # The first steps of a process are slow; neither of the two runs is to pay for them.
            engine.generate(replace(generation, num_inference_steps=1), parse_policy("never"))
        result = _run(engine, generation, chosen)
        _write(out, result, fps, form)
        console.print(_account(result, generation, out))
        if compare:
            plain = _run(engine, generation, parse_policy("never"))
            beside = out.with_stem(f"{out.stem}-uncached")
            _write(beside, plain, fps, form)
            console.print(_comparison(result, plain, beside))
    except WarpCacheError as error:
        raise complain(error) from error


@app.command()
def demo(
    prompt: Annotated[str, typer.Argument(help="What the video shows")],
    out: Annotated[Path, typer.Option()] = Path("demo.mp4"),
    config: Annotated[Path, typer.Option(help="Configuration to serve")] = Path(
        "configs/toyworld.yaml"
    ),
    url: Annotated[str, typer.Option()] = "http://127.0.0.1:8000",
    seed: Annotated[int | None, typer.Option(min=0)] = None,
) -> None:
    """Start the service, generate one video through it, stop it."""
    from warpcache_ray import demo as steps

    request = {"prompt": prompt, **({} if seed is None else {"seed": seed})}
    try:
        load_application(config)
        with Progress(*_COLUMNS, console=console) as progress:
            task = progress.add_task("starting the service", total=None, note="")
            with steps.service(config, url) as client:

                def on_progress(job: dict[str, Any]) -> None:
                    note = f"{job['cache'].get('share_of_blocks', 1):.0%} of the blocks"
                    done, total = job["step"], job["total_steps"]
                    progress.update(
                        task, description=job["status"], completed=done, total=total, note=note
                    )

                job, video = steps.generate(client, request, on_progress)
        out.write_bytes(video)
    except WarpCacheError as error:
        raise complain(error) from error
    console.print(f"{out}: {len(video)} bytes, seed {job['request']['seed']}", job["cache"])


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="Report, without its ending")],
    model: Annotated[str, typer.Option(help="Pipeline folder or hub id")] = DEMO_MODEL,
    contenders: Annotated[Path | None, typer.Option(help="Default: the file for the model")] = None,
    prompts: Annotated[Path | None, typer.Option(help="One a line; the seed counts from 0")] = None,
    calibration_prompts: Annotated[Path | None, typer.Option(help="None of `prompts`")] = None,
    work: Annotated[Path, typer.Option(help="Where measurements are kept, to go on from")] = Path(
        "~/.cache/warpcache-bench"
    ),
    count: Annotated[int | None, typer.Option(min=1, help="Prompts to measure on")] = None,
    timed: Annotated[int, typer.Option(min=0, help="Prompts to measure speed on")] = 8,
    only: Annotated[str, typer.Option(help="Methods, comma-separated")] = "",
    redo: Annotated[str, typer.Option(help="Methods to measure again, comma-separated")] = "",
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each")] = 1,
    quick: Annotated[bool, typer.Option(help="Few prompts and settings: ten minutes")] = False,
    scan: Annotated[bool, typer.Option(help="Three calibration prompts: choose settings")] = False,
    size: Annotated[tuple[int, int, int], typer.Option(help="height width frames")] = (64, 64, 17),
    steps: Annotated[int, typer.Option(min=2)] = 50,
    guidance_scale: Annotated[float, typer.Option(min=0)] = 4.0,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option()] = "float32",
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
) -> None:
    """Measure policies and the peers' own libraries side by side: quality, calls, time."""
    from warpcache_ray.bench import command
    from warpcache_ray.bench.conditions import Conditions, fingerprint

    folder = ServiceConfig(ModelConfig(model)).model.folder or model
    sampled = (*size, steps, guidance_scale, dtype, device)
    try:
        request = command.Request(
            conditions=Conditions(str(folder), fingerprint(str(folder)), *sampled),
            contenders=contenders or command.contenders_for(model),
            out=out,
            work=work.expanduser(),
            prompts=prompts or command.PROMPTS,
            calibration_prompts=calibration_prompts or command.CALIBRATION_PROMPTS,
            count=count,
            workers=workers,
            quick=quick,
            scan=scan,
            timed=timed,
            only=_names(only),
            redo=_names(redo),
        )
        report = command.bench(request)
    except WarpCacheError as error:
        raise complain(error) from error
    console.print(report, markup=False, highlight=False, soft_wrap=True)


@app.command()
def doctor(
    model: Annotated[
        Path | None, typer.Option(help="A model's folder: say what the cache can do with it.")
    ] = None,
) -> None:
    """Say what is installed and which devices and backends work; or what is in a model's folder."""
    from warpcache_ray.doctor import findings
    from warpcache_ray.doctor_model import model_findings

    table = Table("", "check", "finding", title="warpcache doctor")
    found = model_findings(model) if model is not None else findings()
    for finding in found:
        mark = {"ok": "[green]✓", "absent": "[yellow]–", "broken": "[red]✗"}[finding.state]
        table.add_row(mark, finding.check, escape(finding.text))
    console.print(table)
    if any(finding.state == "broken" for finding in found):
        raise typer.Exit(1)


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _image(path: Path, sizes: dict[str, Any]) -> Image:
    from warpcache_ray.image import fit, read_image

    try:
        image = read_image(path.read_bytes(), "image")
    except OSError as error:
        said = f"image = {str(path)!r}: can't be read: {error.strerror}"
        raise InvalidRequest(said, "image") from error
    known = "width" in sizes and "height" in sizes
    return fit(image, sizes["width"], sizes["height"]) if known else image


def _format(out: Path) -> Any:
    form = out.suffix.removeprefix(".")
    if form not in MEDIA_TYPES:
        allowed = ", ".join(MEDIA_TYPES)
        raise InvalidRequest(f"out = {str(out)!r}: the ending must be one of {allowed}", "out")
    return form


def _run(engine: Engine, generation: Generation, policy: Policy) -> Result:
    from warpcache_ray.engine.events import Control

    with Progress(*_COLUMNS, console=console) as progress:
        task = progress.add_task(policy.name, total=generation.num_inference_steps, note="")

        def on_step(event: StepEvent) -> Control:
            last = {r.branch: f"{r.branch}:{r.decision.action}" for r in event.decisions}
            shown = " ".join((f"{event.seconds * 1000:.0f} ms", *last.values()))
            progress.update(task, completed=event.index + 1, total=event.total, note=shown)
            return Control()

        return engine.generate(generation, policy, on_step)


def _write(out: Path, result: Result, fps: int, form: Any) -> None:
    from warpcache_ray.video import write_video

    out.parent.mkdir(parents=True, exist_ok=True)
    write_video(out, result.frames, fps, form)


def _account(result: Result, generation: Generation, out: Path) -> Table:
    stats, timings = result.stats, result.timings
    table = Table(show_header=False, title=escape(str(out)))
    table.add_row("seed", str(generation.seed))
    decisions = f"{stats.recomputed} recomputed, {stats.reused} reused, {stats.warped} warped"
    table.add_row("branch calls", decisions)
    table.add_row("blocks evaluated", f"{stats.share_of_blocks:.0%}")
    seconds = f"text {timings.text:.2f}, denoise {timings.denoise:.2f}, decode {timings.decode:.2f}"
    table.add_row("seconds", seconds)
    table.add_row("latents", f"sha256 {result.latents_sha256[:16]}…")
    return table


def _comparison(result: Result, plain: Result, beside: Path) -> Table:
    from warpcache_ray.quality.fidelity import psnr, ssim

    table = Table(show_header=False, title=f"against uncached ({beside})")
    table.add_row("PSNR", f"{psnr(result.frames, plain.frames):.1f} dB")
    table.add_row("SSIM", f"{ssim(result.frames, plain.frames):.4f}")
    table.add_row("denoising", f"{plain.timings.denoise / result.timings.denoise:.2f} × as fast")
    return table


if __name__ == "__main__":
    app()
