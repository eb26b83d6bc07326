"""Verdicts against real errors: counts and ranks done by hand."""

import numpy as np
import pyarrow as pa
import pytest

from curate import usable, verdicts
from curate.check import Limit
from curate.checks import Checks
from curate.checks.rigid_flow import RigidFlow
from curate.recipe import CurateRecipe
from curate.usable import Usable
from shared.index import INDEX

RECIPE = CurateRecipe(
    checks=Checks(**dict.fromkeys(Checks.model_fields)).model_copy(
        update={
            "rigid_flow": RigidFlow(**dict.fromkeys(RigidFlow.model_fields) | {"rigid_key_px": Limit(fail_above=2.0)})
        }
    )
)


def judged(values: list[float | None]) -> verdicts.Judged:
    rows = [{"clip_id": str(n), "status": "annotated", "num_frames": 9, "source": str(n)} for n in range(len(values))]
    table = pa.Table.from_pylist(rows, INDEX)
    return verdicts.judge(table.append_column("score.rigid_key_px", pa.array(values, pa.float32())), RECIPE)


def errors(depth: list[float], iou: list[float]) -> list[dict[str, float]]:
    return [{"static_depth.abs_rel": d, "dynamic.iou": i} for d, i in zip(depth, iou)]


def test_precision_and_recall_by_hand() -> None:
    """Ten clips whose scores are 0 to 9: three are kept, and seven are usable."""
    depth = [0.01, 0.02, 0.03, 0.04, 0.05, 0.5, 0.06, 0.07, 0.8, 0.9]
    given = errors(depth, [0.9] * 9 + [0.1])
    said = usable.page(judged(list(range(10))), given, RECIPE, Usable(), "Made by x.")
    assert "Of 10 clips 7 are usable; 3 are kept, 3 of them usable: precision 100 %, recall\n43 %." in said
    assert "Of 3 that are not usable 3 are rejected." in said
    (gate,) = usable.gates(judged([1.0] * 6 + [3.0] * 4), given, RECIPE, np.array(depth) > 0.1)
    assert (gate.rejects, gate.rejects_unusable, gate.alone) == (4, 2, 2)
    assert "| depth | static_depth.abs_rel above 0.1 | 3 | 3 |" in said
    assert "| movers | dynamic.iou below 0.5 | 1 | 1 |" in said


def test_a_clip_without_a_number_is_not_too_wrong() -> None:
    """A still camera has no error of its path."""
    beyond = Usable().beyond([{}, {"cameras.ate_percent": 3.0}, {"static_depth.coverage": 0.1}])
    assert beyond["position"].tolist() == [False, True, False]
    assert beyond["cover"].tolist() == [False, False, True]


def test_ranks_by_hand() -> None:
    assert usable.spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 40, 30])) == pytest.approx(0.8)
    shared = usable.spearman(np.array([1.0, 1, 2]), np.array([5.0, 6, 7]))  # ranks 1.5 1.5 3 and 1 2 3
    assert shared == pytest.approx(np.sqrt(0.75))
    iou = np.linspace(0.9, 0.2, 10).tolist()  # worse and worse as the score grows
    (gate,) = usable.gates(judged(list(range(10))), errors([0.01] * 10, iou), RECIPE, np.zeros(10, bool))
    assert gate.ranks == {"movers": pytest.approx(1.0)}  # all depths are alike: no rank
    assert gate.usable_within == pytest.approx(0.95 * 9)


def test_scores_that_no_clip_has_are_left_out() -> None:
    assert usable.gates(judged([None, None]), [{}, {}], RECIPE, np.zeros(2, bool)) == []
