"""`worldreel calibrate`: precision and recall of every gate, on clips with truth."""

from curate import calibrate, calibration_page
from curate.checks import Checks
from shared import files, shards


def run(clips: str, to: str | None) -> str:
    """Corrupt the true labels of a folder of shards, measure, and print the page; with `to`, also write it there.

    Raises ValueError if a clip has no true depth, cameras, flow and motion.
    """
    found = calibrate.observe(shards.read_clips(clips))
    page = calibration_page.page(found, Checks(), f"worldreel calibrate {clips}")
    if to is not None:
        files.write_whole(to, page.encode())
    print(page)
    return page
