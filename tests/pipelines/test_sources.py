"""What SOURCE may be, and the plan that pins it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import plan, sources
from pipelines.plan import Plan
from pipelines.recipes import AnnotateRecipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MOV", "deep/c.webm", "notes.txt", ".hidden.mp4"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    return tmp_path / "in"


def _names(source: str, root: Path) -> list[str]:
    return [entry.uri.removeprefix(f"{root}/") for entry in sources.entries(source)]


def test_a_folder_a_file_and_a_glob(folder: Path) -> None:
    assert _names(str(folder), folder) == ["a.MOV", "b.mp4", "deep/c.webm"]
    assert _names(f"file://{folder}", folder) == ["a.MOV", "b.mp4", "deep/c.webm"]
    assert _names(str(folder / "b.mp4"), folder) == ["b.mp4"]
    assert _names(f"{folder}/*.mp4", folder) == ["b.mp4"]
    assert _names(f"{folder}/**", folder) == ["a.MOV", "b.mp4", "deep/c.webm"]


def test_lists_keep_their_order_captions_and_licences(folder: Path) -> None:
    (folder / "list.txt").write_text("# mine\n\nb.mp4\ndeep/c.webm\ns3://other/d.mp4\n")
    assert _names(f"{folder}/list.txt", folder) == ["b.mp4", "deep/c.webm", "s3://other/d.mp4"]
    (folder / "list.csv").write_text('path,caption,license\nb.mp4,"a, b",CC0\n/abs/e.mp4,,\n')
    rows = list(sources.entries(f"{folder}/list.csv"))
    assert rows == [
        sources.Entry(uri=f"{folder}/b.mp4", caption="a, b", licence="CC0"),
        sources.Entry(uri="/abs/e.mp4"),
    ]
    pq.write_table(
        pa.table({"uri": ["b.mp4"], "caption": ["c"], "licence": ["MIT"], "other": [1]}), folder / "list.parquet"
    )
    assert list(sources.entries(f"{folder}/list.parquet")) == [
        sources.Entry(uri=f"{folder}/b.mp4", caption="c", licence="MIT")
    ]


def test_lists_carry_scores_of_other_models(folder: Path) -> None:
    """Three by name and any by prefix; an empty cell gives none, and the plan keeps them."""
    table = pa.table(
        {
            "uri": ["b.mp4", "deep/c.webm"],
            "aesthetic": pa.array([5.25, None], pa.float32()),
            "text_area": [0.25, float("nan")],
            "score.vlm_static": [1, 0],
            "unrelated": [7, 8],
        }
    )
    pq.write_table(table, folder / "list.parquet")
    first, second = sources.entries(f"{folder}/list.parquet")
    assert first.scores == {"aesthetic": 5.25, "text_area": 0.25, "vlm_static": 1.0}
    assert second.scores == {"vlm_static": 0.0}
    (folder / "list.csv").write_text("path,clip_score\nb.mp4,0.31\na.MOV,\n")
    assert [entry.scores for entry in sources.entries(f"{folder}/list.csv")] == [{"clip_score": 0.31}, {}]
    (folder / "list.csv").write_text("path,clip_score\nb.mp4,good\n")
    with pytest.raises(ValueError, match="column clip_score holds 'good', expected a number"):
        list(sources.entries(f"{folder}/list.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "no such file or folder"),
        ("empty", "folder", "holds no video"),
        ("list.txt", "# nothing\n", "holds no video"),
        ("list.csv", "name\na\n", "expected a column uri or path"),
        ("list.parquet", "no parquet", "not a Parquet file"),
        ("x/*.mp4", None, "no such folder"),
    ],
)
def test_what_holds_nothing_is_refused_in_a_sentence(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as refusal:
        sources.entries(str(tmp_path / name))
    assert "\n" not in str(refusal.value)


def test_a_bucket_is_listed_as_a_folder_is(bucket: str) -> None:
    from shared import files

    for name in ("b.mp4", "a/x.mp4", "readme.md"):
        files.write_whole(f"{bucket}/in/{name}", b"x")
    assert [entry.uri for entry in sources.entries(f"{bucket}/in")] == [f"{bucket}/in/a/x.mp4", f"{bucket}/in/b.mp4"]
    assert [entry.uri for entry in sources.entries(f"{bucket}/in/*.mp4")] == [f"{bucket}/in/b.mp4"]
    files.write_whole(f"{bucket}/in/list.txt", b"b.mp4\n")
    assert [entry.uri for entry in sources.entries(f"{bucket}/in/list.txt")] == [f"{bucket}/in/b.mp4"]


def _blocks(out: Path, source: Path, **more: int) -> list[tuple[str, list[str]]]:
    listing = Plan(str(out), str(source), "run", AnnotateRecipe(), 2, **more)
    return [(block.name, [Path(entry.uri).name for entry in block.entries]) for block in listing.blocks()]


def test_a_plan_is_pinned_and_grows_only_at_its_end(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = [("run-000000", ["a.MOV", "b.mp4"]), ("run-000001", ["c.webm"])]
    assert _blocks(out, folder) == first
    (folder / "b.mp4").unlink()
    (folder / "aa.mp4").write_bytes(b"x")
    assert _blocks(out, folder) == [*first, ("run-000002", ["aa.mp4"])]
    assert plan.size(str(out), "run") == (4, 3)


def test_a_video_listed_twice_is_planned_once(folder: Path, tmp_path: Path) -> None:
    (folder / "list.txt").write_text("b.mp4\na.MOV\nb.mp4\n")
    assert _blocks(tmp_path / "out", folder / "list.txt") == [("run-000000", ["b.mp4", "a.MOV"])]


def test_a_limit_counts_what_is_planned_already(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _blocks(out, folder, limit=1) == [("run-000000", ["a.MOV"])]
    assert _blocks(out, folder, limit=2) == [("run-000000", ["a.MOV"]), ("run-000001", ["b.mp4"])]


def test_long_listings_are_pinned_piece_by_piece(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PIECE_VIDEOS", 2)
    assert _blocks(tmp_path / "out", folder) == [("run-000000", ["a.MOV", "b.mp4"]), ("run-000001", ["c.webm"])]
    assert len(list((tmp_path / "out" / "plan").iterdir())) == 2


def test_a_driver_that_lost_its_lease_while_it_listed_plans_nothing(folder: Path, tmp_path: Path) -> None:
    def lost() -> None:
        raise ValueError("another may have taken over")

    out = tmp_path / "out"
    with pytest.raises(ValueError, match="taken over"):
        Plan(str(out), str(folder), "run", AnnotateRecipe(), 2, check=lost).pin()
    assert plan.runs(str(out)) == {}
