"""`worldreel curate`: a selection, the page that explains it, and what goes with it."""

import json

from curate.explain import explain as explain_clip
from curate.materialize import materialize as pack_kept
from curate.recipe import CurateRecipe
from curate.select import curate as select
from curate.summary import Summary
from shared import files


def curate(
    out: str, recipe: CurateRecipe, *, dry_run: bool = False, explain: str | None = None, materialize: str | None = None
) -> Summary | None:
    """Select, write the report and print the funnel; with `explain`, print one clip's verdicts instead and change nothing.

    Raises ValueError, after the report is written, if no clip is kept.
    """
    if explain is not None:
        print(explain_clip(out, explain, recipe))
        return None
    summary = select(out, recipe, dry_run=dry_run)
    print("\n".join(summary.lines()))
    if dry_run:
        return summary
    page = write_report(out, summary, recipe)
    print(page)
    if not summary.kept:
        raise ValueError(f"{out}: none of {summary.status['annotated']} annotated clips is kept; {page} says why")
    if materialize is not None:
        print(f"{pack_kept(out, materialize)} clips packed into {files.join(materialize, 'shards')}")
    return summary


def write_report(out: str, summary: Summary, recipe: CurateRecipe) -> str:
    """OUT/report/index.html, its numbers as JSON and the evaluation sets; returns the page's uri."""
    from curate import contact_sheets, histograms, report

    groups = contact_sheets.choose(summary, recipe)
    wanted = sorted({clip_id for ids in groups.values() for clip_id in ids})
    strips = contact_sheets.strips(out, wanted) if wanted else {}
    sheets = {group: [strips[clip_id] for clip_id in ids if clip_id in strips] for group, ids in groups.items()}
    scores = histograms.histograms(summary.sample, recipe) if summary.sample is not None else []
    uri = files.join(out, "report", "index.html")
    files.write_whole(
        files.join(out, "report", "summary.json"), (json.dumps(summary.numbers(), indent=1) + "\n").encode()
    )
    files.write_whole(uri, report.page(out, summary, recipe, scores, sheets).encode())
    return uri
