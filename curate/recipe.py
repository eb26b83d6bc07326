"""What people turn about a selection."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from curate.checks import Checks
from shared.knobs import Knobs, load
from shared.trust import PixelGates


class PerSource(Knobs):
    """Other limits for some clips. The first entry that matches a clip's data set and source decides."""

    dataset: str = "*"
    """A glob on the data set's kind: `video`, `point_odyssey`."""
    source: str = "*"
    """A glob on the uri: `s3://bucket/drone/*`."""
    set: dict[str, float | None]
    """Limits by path: {rigid_flow.rigid_flow_px.fail_above: 4}."""


class Duplicates(Knobs):
    """Clips that look alike. Of each pair the one of the source that comes first by hash stays."""

    max_distance_bits: Annotated[int, Field(ge=0, le=3)] = 3
    """Of the 64 bits of two perceptual hashes."""
    within_source: bool = False
    """Also between clips of one source, which are different moments."""


class Licences(Knobs):
    """Whose terms allow what. Pixels and every annotator count."""

    commercial_ok: bool = False
    """Keep only clips whose licences all are known to allow commercial use."""
    allowed: tuple[str, ...] | None = None
    """Keep only clips whose pixels have a licence that matches one of these globs, whatever the case."""


class Splits(Knobs):
    """Which clips are held out: a hash of the source decides, so no source is in two splits."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.01
    test: Annotated[float, Field(ge=0, lt=1)] = 0.01
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_training(self) -> "Splits":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave nothing to train on")
        return self


class Report(Knobs):
    """The page that explains a selection."""

    pictures: Annotated[int, Field(ge=0, le=50)] = 3
    """Clips shown of each group; 0 reads no shard."""
    sample: Annotated[int, Field(ge=100)] = 20_000
    """Clips, drawn by hash, whose scores make the histograms."""


class CurateRecipe(Knobs):
    """From all annotated clips to those that are trained on."""

    checks: Checks = Checks()
    per_source: tuple[PerSource, ...] = ()
    keep: Literal["pass", "flag"] = "flag"
    """The worst outcome that is kept."""
    flagged_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How often flagged clips are drawn, against those that passed."""
    min_frames: Annotated[int, Field(ge=1)] = 1
    fps: Annotated[float, Field(gt=0)] | None = None
    """Keep only clips of this rate, give or take 5 %: steps of 1/8 s and of 1/24 s are not the same motion. None: any rate."""
    licences: Licences = Licences()
    duplicates: Duplicates | None = Duplicates()
    pixels: PixelGates = PixelGates()
    """Gates that the trainer puts on the pixels of what is kept; see `shared.trust`."""
    mixture: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Share of each data set among what is drawn; data sets that are not named are left out. Empty: every clip alike."""
    splits: Splits = Splits()
    evaluation_clips: Annotated[int, Field(ge=0)] = 500
    """Size of the `general` (any) and `complex` (most motion) evaluation sets, drawn from the validation split."""
    report: Report = Report()

    @model_validator(mode="after")
    def _limits_exist(self) -> "CurateRecipe":
        for place, entry in enumerate(self.per_source):
            try:
                checks_for(self.checks, entry)
            except ValueError as error:
                raise ValueError(f"per_source.{place}.set: {str(error).removeprefix('recipe: ')}") from None
        return self


def checks_for(checks: Checks, entry: PerSource) -> Checks:
    """The checks with the entry's limits. Raises ValueError for a limit that does not exist."""
    return load(Checks, checks, [f"{path}={'null' if bound is None else bound}" for path, bound in entry.set.items()])
