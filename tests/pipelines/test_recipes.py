"""Recipes are values: every built-in one survives being saved, and a slip is refused with its path."""

import pytest

from pipelines import recipes
from shared import knobs


@pytest.mark.parametrize("name", recipes.ANNOTATE)
def test_a_saved_recipe_loads_back_equal(name, tmp_path):
    recipe = recipes.ANNOTATE[name]
    (tmp_path / "recipe.yaml").write_text(knobs.dump(recipe))
    assert recipes.annotate_recipe(str(tmp_path / "recipe.yaml"), []) == recipe


def test_knobs_turn():
    recipe = recipes.annotate_recipe("embedded", ["cut.frames=25", "store.codec=plain"])
    assert (recipe.cut.frames, recipe.store.codec) == (25, "plain")


def test_paper_labels_what_the_model_is_made_for():
    cut = recipes.ANNOTATE["paper"].cut
    assert (cut.frames, cut.fps, cut.height, cut.width) == (49, 8, 480, 720)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("embeded", [], "expected one of embedded"),
        ("missing.yaml", [], "No such file"),
        ("embedded", ["cut.frame=3"], "unknown knob cut.frame"),
        ("embedded", ["cut"], "expected path.to.knob=value"),
        ("embedded", ["cut.frames=many"], "cut.frames: .*found 'many'"),
        ("embedded", ["flow.kind=raft"], "dis"),
    ],
)
def test_a_slip_is_refused_with_its_path(name, overrides, words):
    with pytest.raises(ValueError, match=words):
        recipes.annotate_recipe(name, overrides)
