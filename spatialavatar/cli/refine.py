"""``spatialavatar refine``: a tracked clip becomes an avatar."""

from typing import Annotated

import typer

from spatialavatar.cli.console import (
    DeviceOption,
    choose_device,
    clean_stop,
    locate_head,
    one_of_resume_and_force,
    progress,
    say,
)


def refine(
    clip: Annotated[str, typer.Argument(metavar="CLIP", help="A tracked clip: its folder or clip.json.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="AVATAR", help="Folder for the avatar.")],
    head: Annotated[
        str | None,
        typer.Option(
            "--head", metavar="FILE", help="The head that the clip was tracked with; the built-in one is found."
        ),
    ] = None,
    init: Annotated[
        str,
        typer.Option(
            metavar="template|generator|AVATAR",
            help="What to start from: the template skin, what --checkpoint makes of the clip, or an avatar.",
        ),
    ] = "template",
    checkpoint: Annotated[
        str | None, typer.Option(metavar="CKPT", help="With --init generator: a training run or a checkpoint of it.")
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", min=1, max=4, help="With --init generator: source frames; 4 unless given.")
    ] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="The encoder's weights, when not where they were at training.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML with any of the values of configs/refine.yaml.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps; the method's 10000 unless given.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Pixels of the image's longer side; 512 unless given.")] = None,
    uv_resolution: Annotated[
        int | None, typer.Option(help="Texels along the UV square, one Gaussian each; 256 unless given.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other value; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of a stopped run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out holds.")] = False,
    measure: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Write metrics.json on the held-out frames at the end.")
    ] = True,
    device: DeviceOption = "auto",
) -> None:
    """Refine an avatar of one person from a tracked clip.

    \b
    Examples:
      spatialavatar refine clips/anna --head flame2020.head.safetensors --out avatars/anna
      spatialavatar refine clips/anna --init generator --checkpoint runs/phase2 --out avatars/anna
      spatialavatar refine clips/anna --head builtin.head.safetensors --out quick --resolution 256 \\
          --uv-resolution 128 --iterations 2000 --set anti_spike.aspect_tau=0.7
    """
    from spatialavatar import files
    from spatialavatar.avatar.folder import MANIFEST, METRICS, claim_folder, is_finished
    from spatialavatar.avatar.reconstruct import load_generator
    from spatialavatar.clip import open_clip
    from spatialavatar.config import load_config
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.refine import (
        Progress,
        RefineConfig,
        Start,
        StopRefinement,
        avatar_start,
        generator_start,
        refine_clip,
        template_start,
    )

    one_of_resume_and_force(resume, force)
    if (init == "generator") != (checkpoint is not None):
        raise SpatialAvatarError("--init generator and --checkpoint CKPT go together: give both or neither")
    if init != "generator" and (k is not None or encoder_weights is not None):
        raise SpatialAvatarError("--k and --encoder-weights are for --init generator")
    if init not in ("template", "generator") and not files.exists(files.join(init, MANIFEST)):
        raise SpatialAvatarError(
            f"--init {init}: expected template, generator or an avatar's folder; {init} holds no {MANIFEST}"
        )
    shortcuts = {"iterations": iterations, "resolution": resolution, "uv_resolution": uv_resolution}
    overrides = [*(set_ or []), *(f"{key}={value}" for key, value in shortcuts.items() if value is not None)]
    settings = load_config(RefineConfig, config, overrides)
    where = choose_device(device)
    footage = open_clip(clip)
    found = locate_head(footage.head, head, clip, [footage.location])
    model = found.head
    if resume and is_finished(out):
        say(f"{out}: already finished; replace it with --force")
        return
    claim_folder(out, force, resume=resume)
    start: Start
    if init == "template":
        start = template_start(model, settings.uv_resolution)
    elif init == "generator":
        loaded = load_generator(str(checkpoint), model, where, encoder_weights)
        start = generator_start(footage, model, loaded, k or 4, settings.seed)
        del loaded
    else:
        start = avatar_start(init, model, where)
    asked = any(override.partition("=")[0] == "uv_resolution" for override in overrides)
    if asked and settings.uv_resolution != start.layout.resolution:
        raise SpatialAvatarError(
            f"uv_resolution {settings.uv_resolution}: {init} has {start.layout.resolution}, "
            "and a layout never changes; leave the option out"
        )
    settings = settings.model_copy(update={"uv_resolution": start.layout.resolution})
    say(_plan(footage, start.layout.count, start.origin, settings.iterations, str(where)))
    try:
        with clean_stop("iteration") as stop_requested, progress("refining", settings.iterations) as update:

            def observe(state: Progress) -> None:
                note = f"loss {state.latest['loss']:.4f}" if state.latest else ""
                update(state.iteration, note)
                if stop_requested():
                    raise StopRefinement

            avatar = refine_clip(
                footage, model, start, settings, out, head_file=found.file, device=where, resume=resume, force=force,
                observe=observe,
            )  # fmt: skip
    except StopRefinement:
        say(f"stopped; go on with the same command and --resume (checkpoint in {out})")
        raise typer.Exit(130) from None

    trained = avatar.provenance["metrics"]
    say(f"{trained['iterations']} iterations in {trained['seconds']:.1f} s -> {out}")
    if measure:
        from spatialavatar.cli.evaluate import print_report, report
        from spatialavatar.evaluation.self_reenactment import measured_frames

        split, limit = measured_frames(footage)
        result = report(avatar, model, footage, split, folder=out, out=f"{out}/{METRICS}", device=where, limit=limit)
        print_report(result)


def _plan(clip, gaussians: int, origin: str, iterations: int, device: str) -> str:  # type: ignore[no-untyped-def]
    train, test = clip.split("train"), clip.split("test")
    spans = f"frames {train[0].instant}..{train[-1].instant}" if train else "no frames"
    held_out = f"; {len(test)} held out from frame {clip.test_from}" if test else "; none held out"
    cameras = f", {clip.cameras} cameras" if clip.cameras > 1 else ""
    note = ""
    if clip.matte_kind != "alpha":
        note = f"\nno alpha in this clip (matte: {clip.matte_kind}): training on a black background only"
    return (
        f"clip {clip.identity}: training on {len(train)} images ({spans}{cameras}){held_out}\n"
        f"{gaussians} Gaussians from the {origin}, {iterations} iterations on {device}{note}"
    )
