"""Everything that is known of one clip's verdict."""

import pyarrow.compute as pc

from curate import select
from curate.check import Limit, judge, limits
from curate.checks import Checks
from curate.recipe import CurateRecipe, checks_for
from shared import shards
from shared.index import SCORE


def explain(out_uri: str, clip_id: str, recipe: CurateRecipe) -> str:
    """Every score, limit and verdict of a clip under this recipe, and what the selection that is there says of it.

    Raises ValueError if the run has no such clip.
    """
    row = _find(out_uri, clip_id)
    scores = {
        name.removeprefix(SCORE): value for name, value in row.items() if name.startswith(SCORE) and value is not None
    }
    checks = _checks_of(recipe, row)
    lines = [f"{clip_id}: frames {row['first_frame']} to {row['last_frame']} of {row['source']}"]
    lines += [f"{row['status']}{': ' if row['reason'] else ''}{row['reason']}"]
    for name, check in checks:
        if check is None:
            lines.append(f"{name}: off")
            continue
        verdict = judge(name, check, scores)
        lines.append(f"{name}: {verdict.outcome if verdict.score is not None else 'not measured'}")
        lines += [f"  {_score_line(score, limit, scores.get(score))}" for score, limit in limits(check).items()]
    judged = {score for _, check in checks if check is not None for score in limits(check)}
    if others := sorted(set(scores) - judged):
        lines += ["not judged:", *(f"  {score} {scores[score]:.4g}" for score in others)]
    return "\n".join([*lines, *_selected(out_uri, clip_id)])


def _find(out_uri: str, clip_id: str) -> dict:
    for table in shards.iter_index(out_uri):
        found = table.filter(pc.equal(table["clip_id"], clip_id))  # pyright: ignore[reportAttributeAccessIssue]
        if len(found):
            return found.to_pylist()[0]
    raise ValueError(f"{out_uri}: no index holds a clip {clip_id}")


def _checks_of(recipe: CurateRecipe, row: dict) -> Checks:
    from fnmatch import fnmatchcase

    for entry in recipe.per_source:
        if all(
            fnmatchcase(row[name] or "", glob) for name, glob in (("dataset", entry.dataset), ("source", entry.source))
        ):
            return checks_for(recipe.checks, entry)
    return recipe.checks


def _score_line(score: str, limit: Limit, value: float | None) -> str:
    bounds = ", ".join(f"{outcome} {side} {bound:g}" for outcome, side, bound in limit.bounds())
    return f"{score} {'not measured' if value is None else f'{value:.4g}'} ({bounds})"


def _selected(out_uri: str, clip_id: str) -> list[str]:
    table = select.read_selection(out_uri, ["clip_id", "keep", "outcome", "reasons", "weight", "split"])
    if table is None:
        return ["no selection yet"]
    rows = table.filter(pc.equal(table["clip_id"], clip_id)).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
    if not rows:
        return ["not in the selection that is there: it is newer"]
    row = rows[0]
    kept = f"kept, weight {row['weight']:g}, split {row['split']}" if row["keep"] else "not kept"
    return [f"selection: {row['outcome']}, {kept}", *(f"  {reason}" for reason in row["reasons"])]
