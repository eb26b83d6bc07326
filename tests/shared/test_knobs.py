"""A recipe says what it means or is refused with the knob's path; what was saved loads back equal."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from shared import knobs
from shared.knobs import Knobs


class Fast(Knobs):
    kind: Literal["fast"] = "fast"
    window: Annotated[int, Field(ge=1)] = 4
    """Frames."""


class Fine(Knobs):
    kind: Literal["fine"] = "fine"
    level: Annotated[int, Field(ge=0, le=9)] = 9
    weights: Path | None = None


class Checks(Knobs):
    flow: Fast | None = Fast()
    rigid: Fine | None = None


class Recipe(Knobs):
    depth: Annotated[Fast | Fine, Field(discriminator="kind")] = Fast()
    checks: Checks = Checks()
    fps: float = 8.0
    sizes: tuple[int, ...] = (240, 368)
    name: str = "é"


def refused(tree: dict | Path | Recipe, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        knobs.load(Recipe, tree, list(overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(depth=Fine(level=3, weights=Path("/a b/c.pt"))),
        Recipe(checks=Checks(flow=None, rigid=Fine()), fps=29.97, sizes=()),
        Recipe(name="yes: 'no' # 1e3\n- x", fps=1e-12),
        Recipe(name="1e3"),
        Recipe(name=""),
    ],
)
def test_a_saved_recipe_loads_back_equal(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(knobs.dump(recipe), encoding="utf-8")
    assert knobs.load(Recipe, tmp_path / "recipe.yaml") == recipe
    assert knobs.load(Recipe, recipe) == recipe
    assert knobs.load(Recipe, recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"fsp": 8}, "recipe: unknown knob fsp"),
        ({"depth": {"kind": "fast", "windw": 4}}, "recipe: unknown knob depth.windw"),
        ({"checks": {"flow": {"kind": "fast", "x": 1}}}, "recipe: unknown knob checks.flow.x"),
        (
            {"depth": {"kind": "fast", "window": 0}},
            "recipe: depth.window: input should be greater than or equal to 1, found 0",
        ),
        ({"depth": {"kind": "slow"}}, "'slow' found using 'kind'"),
        ({"depth": {"window": 4}}, "recipe: depth: unable to extract tag using discriminator 'kind'"),
        ({"fps": "many"}, "recipe: fps: input should be a valid number"),
        ({"fps": "many", "name": 5}, "(and 1 more)"),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(tree: dict, sentence: str) -> None:
    assert sentence in refused(tree)


def test_a_near_name_is_suggested() -> None:
    assert refused({"depth": {"kind": "fast", "windw": 4}}).endswith("depth.windw, did you mean depth.window?")
    assert refused({"xyzzy": 4}).endswith("unknown knob xyzzy")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("max_window", "depth.window"), ("wnidow", "depth.window"), ("windy", None), ("now", None), ("label", None)],
)
def test_what_is_far_off_is_not_suggested(name: str, meant: str | None) -> None:
    """A word more or a slip of the pen is; a word that shares letters is not (`label` and `level`, `windy` and `window`)."""
    assert refused({name: 4}).endswith(f"unknown knob {name}" + (f", did you mean {meant}?" if meant else ""))


def test_a_near_name_is_suggested_with_the_way_to_it() -> None:
    assert refused({"flow": None}).endswith("unknown knob flow, did you mean checks.flow?")
    assert refused({"checks": {"rigid": {"kind": "fine", "levl": 1}}}).endswith("did you mean checks.rigid.level?")
    assert "did you mean depth.window" not in refused(Recipe(), ("depth.kind=fine",))  # of another choice


def test_known_tags_are_named() -> None:
    assert "'fast', 'fine'" in refused({"depth": {"kind": "slow"}})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["depth.window=8"], Recipe(depth=Fast(window=8))),
        (["depth={kind: fine, level: 2}"], Recipe(depth=Fine(level=2))),
        (["checks.flow=null"], Recipe(checks=Checks(flow=None))),
        (["checks.rigid.level=1"], Recipe(checks=Checks(rigid=Fine(level=1)))),
        (["sizes=[480, 720]"], Recipe(sizes=(480, 720))),
        (["name='a=b'"], Recipe(name="a=b")),
        (["fps=1e-3"], Recipe(fps=1e-3)),
        (["fps=4", "fps=5"], Recipe(fps=5)),
        (["sizes.1=9"], Recipe(sizes=(240, 9))),
        (["name="], None),
    ],
)
def test_set_changes_one_knob(overrides: list[str], expected: Recipe | None) -> None:
    if expected is None:
        assert "name: input should be a valid string" in refused(Recipe(), tuple(overrides))
    else:
        assert knobs.load(Recipe, Recipe(), overrides) == expected


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("fps", "--set fps: expected path.to.knob=value"),
        ("=8", "--set =8: expected path.to.knob=value"),
        ("fps.x=8", "--set fps.x=8: fps is a value, not a group of knobs"),
        ("depth.kind=fine", "unknown knob depth.window"),
        ("depth.windw=8", "unknown knob depth.windw"),
        ("sizes=[1", "is not a YAML value"),
        ("sizes.2=1", "--set sizes.2=1: 2 is none of the 2 places of a list, expected 0 and on"),
        ("sizes.x=1", "--set sizes.x=1: x is none of the 2 places of a list, expected 0 and on"),
        ("sizes.0.x=1", "--set sizes.0.x=1: sizes.0 is a value, not a group of knobs"),
        ("fps=", "fps: input should be a valid number, found None"),
        ("a..b=1", "unknown knob a"),
    ],
)
def test_a_wrong_set_is_refused(override: str, sentence: str) -> None:
    assert sentence in refused(Recipe(), (override,))


def test_set_leaves_its_base_alone() -> None:
    base = {"depth": {"kind": "fast", "window": 2}}
    assert knobs.load(Recipe, base, ["depth.window=9"]) == Recipe(depth=Fast(window=9))
    assert base == {"depth": {"kind": "fast", "window": 2}}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("fps: [1", "not YAML"),
        ("- a\n- b", "holds list, expected a mapping of knobs"),
        ("8", "holds int, expected a mapping of knobs"),
        ("fsp: 8", "unknown knob fsp"),
        ("!!python/object/apply:os.system [true]", "not YAML"),
        ("fps: \xff", "fps: input should be a valid number"),
    ],
)
def test_a_wrong_file_is_refused_by_name(content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content, encoding="utf-8")
    assert refused(path).startswith(f"{path}: ")
    assert sentence in refused(path)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "missing.yaml")
    assert "Is a directory" in refused(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert str(tmp_path / "recipe.yaml") in refused(tmp_path / "recipe.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert "expected a mapping of knobs" in refused(tmp_path / "empty.yaml")


def test_knobs_are_frozen_and_changes_are_validated() -> None:
    fast = Fast()
    with pytest.raises(ValueError, match="frozen"):
        fast.window = 5  # pyright: ignore[reportAttributeAccessIssue]
    assert fast.changed(window=7) == Fast(window=7)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        fast.changed(window=0)
    with pytest.raises(ValueError, match="windw"):
        fast.changed(windw=7)


def test_docstrings_become_help() -> None:
    assert Fast.model_fields["window"].description == "Frames."
