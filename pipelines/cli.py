"""The command line. Nothing heavy is imported here: `worldreel --help` answers at once."""

import sys
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Videos in; clips with depth, cameras, flow, scene flow and motion masks out; a WorldReel model trained on them.",
)
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure labels against truth, or a model against its task.")
app.add_typer(evaluate_app, name="evaluate")
weights_app = typer.Typer(no_args_is_help=True, help="The published networks a recipe needs: list, fetch, check.")
app.add_typer(weights_app, name="weights")

Source = Annotated[
    str,
    typer.Argument(
        help="A video, a folder, a glob, a list (.txt, .csv, .parquet), s3:// or gs://; KIND:FOLDER is a data set."
    ),
]
Out = Annotated[str, typer.Argument(help="The run's folder: a path, s3:// or gs://.")]
Run = Annotated[str, typer.Argument(help="The training run's folder.")]
Set = Annotated[list[str], typer.Option("--set", help="Turn one knob: --set cut.fps=12. May be repeated.")]
Address = Annotated[str | None, typer.Option(help="An existing Ray cluster; without it, this machine.")]


@app.command()
def annotate(
    source: Source,
    out: Out,
    recipe: Annotated[str, typer.Option(help="embedded, open, paper, or a .yaml file.")] = "embedded",
    set_: Set = [],  # noqa: B006
    address: Address = None,
    inline: Annotated[bool, typer.Option("--inline", help="In this process, for debugging: no Ray.")] = False,
    retry: Annotated[str | None, typer.Option(help="Try again what is `failed` or `quarantined`.")] = None,
    redo: Annotated[bool, typer.Option("--redo", help="Let a changed recipe take over OUT.")] = False,
    limit: Annotated[int | None, typer.Option(help="At most this many videos.")] = None,
) -> None:
    """Cut videos into clips and annotate them into sharded WebDataset tars. Run it again to go on where it was."""
    from pipelines import annotation, recipes

    knobs = recipes.annotate_recipe(recipe, set_, source)
    print(annotation.annotate(source, out, knobs, inline=inline, address=address, retry=retry, redo=redo, limit=limit))


@app.command()
def curate(
    out: Out,
    recipe: Annotated[str, typer.Option(help="default, or a .yaml file.")] = "default",
    set_: Set = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change; write nothing.")] = False,
    explain: Annotated[str | None, typer.Option(help="Every score and verdict of one clip.")] = None,
    materialize: Annotated[str | None, typer.Option(help="Also pack the kept clips into new shards here.")] = None,
) -> None:
    """Decide which clips to keep, with reasons, and write selection.parquet and report/index.html."""
    from pipelines import curation, recipes

    knobs = recipes.curate_recipe(recipe, set_)
    curation.curate(out, knobs, dry_run=dry_run, explain=explain, materialize=materialize)


@app.command()
def train(
    out: Out,
    run: Run,
    recipe: Annotated[str, typer.Option(help="tiny, small, paper, or a .yaml file.")] = "tiny",
    set_: Set = [],  # noqa: B006
    address: Annotated[str | None, typer.Option(help="A Ray cluster whose actors become the ranks.")] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Actors of Ray; without it, one for each GPU there.")] = None,
) -> None:
    """Train the widened DiT and the temporal DPT on the selected clips. Run it again to resume; several GPUs: torchrun, or Ray."""
    from pipelines import recipes, training

    training.train(out, run, recipes.train_recipe(recipe, set_), address=address, ranks=ranks)


@app.command()
def ablate(
    out: Out,
    to: Annotated[str, typer.Argument(help="The folder of the arms' runs, the table and the plot.")],
    recipe: Annotated[
        str, typer.Option(help="small, medium, tiny, paper, or a .yaml file: model, sizes, steps of each stage.")
    ] = "small",
    arms: Annotated[str, typer.Option(help="Names of arms, with commas.")] = (
        "base_finetuned,without_geometry_latent,without_joint,frozen_backbone,full"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds, with commas: each arm is trained once with each.")] = "0",
    clips: Annotated[int, typer.Option(min=1, help="Held-out clips of the test split to measure on.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the generated clips.")] = 20,
    annotators: Annotated[str, typer.Option(help="The annotators that judge the generated pixels.")] = "embedded",
    at_once: Annotated[int, typer.Option(min=1, help="Runs side by side, each a process of its own.")] = 1,
    set_: Set = [],  # noqa: B006
) -> None:
    """Train the paper's ablation arms side by side, measure them on held-out clips, and write one table. Run again to go on."""
    from pipelines import ablation, recipes

    knobs, judges = recipes.train_recipe(recipe, set_), recipes.annotate_recipe(annotators, [])
    ablation.ablate(
        out,
        to,
        knobs,
        arms.split(","),
        [int(s) for s in seeds.split(",")],
        judges,
        clips=clips,
        steps=steps,
        at_once=at_once,
    )


@app.command()
def sweep(
    out: Out,
    to: Annotated[str, typer.Argument(help="The sweep's folder.")],
    recipe: Annotated[str, typer.Option(help="default, or a .yaml file.")] = "default",
    set_: Set = [],  # noqa: B006
) -> None:
    """Confidence thresholds, selection, short training, metrics: one table and one plot. Run it again to go on."""
    from pipelines import sweep as sweep_

    sweep_.sweep(out, to, sweep_.sweep_recipe(recipe, set_))


@app.command()
def generate(
    run: Run,
    out: Out,
    image: Annotated[str, typer.Option(help="The first frame.")],
    prompt: Annotated[str, typer.Option(help="What happens.")] = "",
    seed: Annotated[int, typer.Option(help="The same seed gives the same world.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    sampler: Annotated[Literal["ddim", "dpm"], typer.Option(help="dpm draws noise at every step.")] = "ddim",
    guidance: Annotated[float, typer.Option(min=1.0, help="Classifier-free guidance; 1 is off.")] = 6.0,
    frames: Annotated[
        int | None, typer.Option(help="More than the model's window: experimental, prints the drift.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Frames that windows share, 4N + 1; without it, 9, or 5 of windows of 9.")
    ] = None,
    gate: Annotated[bool, typer.Option(help="Scene flow only where the mask says that something moves.")] = True,
) -> None:
    """From one image and a prompt: a video with depth, pointmaps, cameras, scene flow and masks of one world."""
    from pipelines import training

    training.generate(
        run,
        out,
        image,
        prompt,
        seed=seed,
        steps=steps,
        method=sampler,
        guidance=guidance,
        frames=frames,
        overlap=overlap,
        gate_scene_flow=gate,
    )


@app.command("cache-text")
def cache_text(
    out: Out,
    folder: Annotated[str, typer.Argument(help="Where the embeddings go.")],
    recipe: Annotated[str, typer.Option(help="The training recipe whose text encoder reads them.")] = "paper",
    set_: Set = [],  # noqa: B006
) -> None:
    """Embed the captions of the kept clips once, so that training loads no text encoder."""
    from pipelines import recipes, training

    training.cache_text(out, folder, recipes.train_recipe(recipe, set_))


@evaluate_app.command("model")
def evaluate_model(
    made: Annotated[str, typer.Argument(help="Shards that `worldreel generate` wrote.")],
    recipe: Annotated[str, typer.Option(help="The annotators that judge the pixels.")] = "embedded",
    set_: Set = [],  # noqa: B006
    json_: Annotated[str | None, typer.Option("--json", help="Also write the numbers here.")] = None,
    subject: Annotated[str | None, typer.Option(help="DINO: a folder of transformers, or TorchScript.")] = None,
    background: Annotated[str | None, typer.Option(help="CLIP, for background consistency: the same.")] = None,
    image_background: Annotated[str | None, typer.Option(help="DreamSim, for i2v background: the same.")] = None,
    interpolator: Annotated[str | None, typer.Option(help="AMT: TorchScript.")] = None,
    fid: Annotated[str | None, typer.Option(help="Inception: TorchScript.")] = None,
    fvd: Annotated[str | None, typer.Option(help="I3D: TorchScript.")] = None,
    real: Annotated[str | None, typer.Option(help="Shards of real clips, for FID and FVD.")] = None,
    fvd_frames: Annotated[int, typer.Option(min=1, help="The first so many frames of a clip, for FVD.")] = 16,
) -> None:
    """Motion, geometry and the three signatures of failure of generated clips, in the layout of the paper's tables."""
    from pipelines import model_evaluation, recipes

    given = model_evaluation.Networks(
        subject=subject,
        background=background,
        image_background=image_background,
        interpolator=interpolator,
        fid=fid,
        fvd=fvd,
        real=real,
        fvd_frames=fvd_frames,
    )
    model_evaluation.evaluate_model(made, recipes.annotate_recipe(recipe, set_), json_, given=given)


@evaluate_app.command("latents")
def evaluate_latents(
    out: Out,
    recipe: Annotated[str, typer.Option(help="The training recipe whose VAE is measured.")] = "tiny",
    set_: Set = [],  # noqa: B006
    clips: Annotated[int, typer.Option(min=1, help="Of the selection, at most.")] = 8,
) -> None:
    """What the video VAE keeps of depth and flow: AbsRel and end-point error of the way there and back."""
    from pipelines import model_evaluation, recipes

    model_evaluation.evaluate_latents(out, recipes.train_recipe(recipe, set_), clips)


@evaluate_app.command("labels")
def evaluate_labels(
    pred: Annotated[str, typer.Argument(help="A run's folder with labels to judge.")],
    truth: Annotated[
        str, typer.Argument(help="A run's folder, or truth .npz files named as the videos: one or a folder.")
    ],
    json_: Annotated[str | None, typer.Option("--json", help="Also write the numbers here.")] = None,
) -> None:
    """Depth, cameras, flow, scene flow and masks against truth, per clip and in total."""
    from pipelines import evaluate

    evaluate.print_labels(pred, truth, json_)


@app.command()
def score(out: Out) -> None:
    """Measure every check anew on stored labels and put the scores into the indexes: for checks that came after the clips."""
    from pipelines import scoring

    scoring.score(out)


@app.command()
def calibrate(
    clips: Annotated[str, typer.Argument(help="A run's folder whose labels are true; with --truth, an annotator's.")],
    truth: Annotated[
        str | None, typer.Option(help="The true labels of the same clips: real errors are judged.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="Also write the page here, as Markdown.")] = None,
    recipe: Annotated[str, typer.Option(help="default, or a .yaml file of `curate`.")] = "default",
    set_: Set = [],  # noqa: B006
) -> None:
    """Make true labels wrong in controlled ways, or take an annotator's, and print how good the gates are."""
    from pipelines import calibration, recipes

    knobs = recipes.curate_recipe(recipe, set_)
    if truth is None:
        calibration.run(clips, knobs, to)
    else:
        calibration.against(clips, truth, knobs, to)


AnnotateWith = Annotated[str, typer.Option("--recipe", help="embedded, open, paper, or a .yaml file.")]


@weights_app.command("list")
def weights_list(recipe: AnnotateWith = "paper", set_: Set = []) -> None:  # noqa: B006
    """Which networks, from where, how large, under which terms, and where they lie on this machine."""
    from pipelines import recipes, weights

    weights.show(weights.list_rows(recipes.annotate_recipe(recipe, set_)))


@weights_app.command("fetch")
def weights_fetch(recipe: AnnotateWith = "paper", set_: Set = []) -> None:  # noqa: B006
    """Download what is missing, once, at pinned revisions. Terms must be accepted in the recipe first."""
    from pipelines import recipes, weights

    weights.show(weights.fetch(recipes.annotate_recipe(recipe, set_)))


@weights_app.command("check")
def weights_check(recipe: AnnotateWith = "paper", set_: Set = []) -> None:  # noqa: B006
    """Whether every file is here and holds exactly its network's keys and shapes."""
    from pipelines import recipes, weights

    weights.show(weights.check(recipes.annotate_recipe(recipe, set_)))


@app.command()
def datasets(
    name: Annotated[str | None, typer.Argument(help="One of them: its knobs too.")] = None,
) -> None:
    """List the data sets that bring truth: how to name them, where to get them, terms, size, layout."""
    from pipelines import datasets as datasets_

    datasets_.show(name)


@app.command()
def status(
    out: Out,
    json_: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What a run has done so far, read from its files alone."""
    from pipelines import status as status_

    status_.show(out, as_json=json_)


@app.command()
def look(
    out: Out,
    clip: Annotated[str | None, typer.Argument(help="A clip id; the first clip without.")] = None,
    to: Annotated[str, typer.Option(help="The folder to write.")] = "look",
) -> None:
    """Write one clip as a static page: RGB, depth, flow and motion under one scrubber, and its points as .ply."""
    from pipelines import look as look_

    look_.look(out, clip, to)


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(help="Where the demo's outputs go.")] = "demo",
) -> None:
    """The whole road on a real video that ships inside a package: annotate, curate, train, generate."""
    from pipelines import demo as demo_

    demo_.demo(folder)


_INTERRUPTED = 130
"""What Typer makes of KeyboardInterrupt."""
_Misuse: Any = typer.BadParameter.__base__
"""Whatever is wrong with a command line: Typer has no public name for it."""


def main() -> None:
    """Run the command; every refusal is one sentence on stderr and a non-zero exit."""
    try:
        status = app(prog_name="worldreel", standalone_mode=False)
    except _Misuse as error:
        said = error.format_message().rstrip(".")
        if said:  # else Typer has shown the help of a command without arguments
            command = error.ctx.command_path if error.ctx else "worldreel"
            print(f"{command.replace(' ', ': ')}: {said[0].lower()}{said[1:]}; see `{command} --help`", file=sys.stderr)
        sys.exit(error.exit_code)
    except ValueError as refusal:
        print(f"worldreel: {refusal}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"worldreel: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    if status == _INTERRUPTED:
        print("worldreel: interrupted; run the same command again to go on", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
