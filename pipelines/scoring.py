"""`worldreel score`: the scores of checks that are newer than the clips, without annotating anew."""

from curate import measure
from shared import files, shards

LABELS = ("depth", "points", "cameras", "flow", "key_flow", "motion")


def score(out: str) -> int:
    """Measure every annotated clip of a run and update its index, a shard at a time; returns how many clips.

    Frames are not decoded: what checks measure is labels. Scores that checks do not make (of screening, of annotators) stay.
    """
    folder = files.join(out, "shards") if files.exists(files.join(out, "shards")) else out
    total = 0
    for table in shards.iter_index(out):
        found: dict[str, dict[str, float]] = {}
        rows = table.select(["clip_id", "status", "shard", "parts"]).to_pylist()
        for row in rows:
            if row["status"] == "annotated":
                found[row["clip_id"]] = measure.scores(shards.read_clip(folder, row, LABELS))
        if found:
            name = rows[0]["shard"].removesuffix(".tar")
            shards.update_scores(folder, name, found)
            total += len(found)
            print(f"{name}: {len(found)} clips scored")
    return total
