"""`worldreel annotate`: SOURCE -> plan -> blocks -> clips -> shards.

Kill it at any time, run the same command again: it goes on where it was.
"""

import contextlib
import itertools
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from pipelines import ledger, packing, places, plan, preflight, progress, sources, spool
from pipelines.blocks import Settings
from pipelines.fleet import Crew, Inline, Place, RayActors
from pipelines.funnel import Funnel, count, number
from pipelines.lease import Lease
from pipelines.loop import Loop
from shared import files, knobs

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.recipes import AnnotateRecipe

_BYTES_PER_PIXEL = 150
"""Of a clip under work: frames, labels and the arithmetic between them."""
_RETRIES = {"failed": ("failed", "quarantined"), "quarantined": ("quarantined",)}
"""What `--retry` opens again."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run came to, earlier runs in the same folder included."""

    videos: int
    clips: int
    annotated: int
    screened: int
    failed: int
    """Clips and videos, each a row with its reason."""
    quarantined: int
    """Of those: attempts spent."""
    blocks: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{number(self.annotated, 'clip')} annotated, {self.screened} screened out, {self.failed} failed, "
            f"from {number(self.videos, 'video')}, all committed"
        )


def annotate(
    source: str,
    out: str,
    recipe: "AnnotateRecipe",
    *,
    inline: bool = False,
    address: str | None = None,
    retry: str | None = None,
    redo: bool = False,
    limit: int | None = None,
    console: "Console | None" = None,
    crew: Callable[[], tuple[Crew, list[Place]]] | None = None,
) -> Summary:
    """Cuts, screens and annotates every video of SOURCE into shards under OUT; goes on where an earlier run ended.

    `retry` (`failed`, `quarantined`) opens the blocks that hold such clips again; `redo` lets a changed recipe take over OUT;
    `crew` starts other seats than Ray's. Raises ValueError, one sentence, where the run cannot start or go on, or made no clip.
    """
    began = time.monotonic()
    if retry not in (None, *_RETRIES):
        raise ValueError(f"--retry {retry}: expected {' or '.join(_RETRIES)}")
    from pipelines.recipes import for_source

    source, out = sources.canonical(source), sources.absolute(out)
    recipe = for_source(recipe, source)
    if not plan.runs(out):
        sources.entries(source, recipe.source)  # a source that holds nothing is refused before anything is made
    for annotator in (recipe.flow, recipe.cameras, recipe.depth, recipe.motion):
        annotator.check()
    preflight.check_output(out)
    preflight.check_codecs()
    with preflight.alone(out), Lease(out) as lease:
        run = _claim(out, source, recipe, redo=redo)
        listing = plan.Plan(out, source, run, recipe, recipe.fleet.block_videos, limit, lease.check)
        if listing.num_videos == 0:
            listing.pin()
        settings = _settings(out, recipe, address, run)
        if retry is not None:
            _open_again(out, run, settings, retry, lease)
        display = progress.Display(out, console)
        start = crew or (lambda: _start(recipe, inline=inline, address=address))
        total = _work(listing, out, recipe, settings, start, display, lease)
        _retire(out, run, settings)
        _sweep(out, settings)
    return _summary(total, listing.num_videos, time.monotonic() - began, source)


def _claim(out: str, source: str, recipe: "AnnotateRecipe", *, redo: bool) -> str:
    """The name of the run that OUT holds, or will. Raises ValueError if it holds one of another recipe."""
    uri, runs = files.join(out, "recipe.yaml"), plan.runs(out)
    mine = plan.digest(plan.label_knobs(recipe))
    if runs and files.exists(uri) and not redo:
        theirs = yaml.safe_load(files.read_bytes(uri))
        if changed := _changed(theirs, recipe.model_dump(mode="json")):
            raise ValueError(
                f"{out}: was annotated with another recipe ({changed}); choose another folder, or --redo to take this one over"
            )
    files.write_whole(uri, knobs.dump(recipe).encode())
    for name, header in runs.items():
        if header["recipe"] == mine:
            return name
    old = next(iter(runs), None)
    run = plan.run_name(runs[old]["source"] if old else source, recipe)
    if old:
        plan.adopt(out, old, run, recipe)
    return run


def _changed(theirs: Any, ours: Any, path: str = "") -> str:
    """The first knob that touches labels and differs: `depth.window: 8, now 16`; empty: none."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        names = [name for name in (ours | theirs) if path or name != "fleet"]
        found = (_changed(theirs.get(name), ours.get(name), f"{path}.{name}".lstrip(".")) for name in names)
        return next(filter(None, found), "")
    return "" if theirs == ours else f"{path}: {theirs}, now {ours}"


def _settings(out: str, recipe: "AnnotateRecipe", address: str | None, run: str) -> Settings:
    cut, fleet = recipe.cut, recipe.fleet
    where = fleet.spool or files.join(out, "spool")
    if fleet.spool is None and files.is_remote(out) and address is None:
        where = files.join(tempfile.gettempdir(), f"worldreel-{plan.digest(out, size=6)}")
    return Settings(
        spool=where,
        shards=files.join(out, "shards"),
        fleet=fleet,
        clip_bytes=cut.frames * cut.height * cut.width * _BYTES_PER_PIXEL,
        earlier={name: header for name, header in plan.runs(out).items() if name != run},
    )


def _work(
    listing: plan.Plan,
    out: str,
    recipe: "AnnotateRecipe",
    settings: Settings,
    start: Callable[[], tuple[Crew, list[Place]]],
    display: progress.Display,
    lease: Lease,
) -> Funnel:
    """Everything that is not committed yet. No worker is started if there is nothing."""
    committed = packing.committed_blocks(settings.shards)
    before, told = _remembered(out, listing.run, committed)
    spool.sweep(settings.spool, committed)
    blocks = (block for block in listing.blocks() if block.name not in committed)
    first = next(blocks, None)
    if first is None:
        return before
    events, book = ledger.Events(out), ledger.Ledger(out)
    events.say("run", run=listing.run, videos=listing.num_videos, recipe=recipe.model_dump(mode="json"))
    crew, seats = start()
    preflight.check_room(settings.spool, settings.clip_bytes, len(seats))

    def look(funnel: Funnel, busy: int) -> None:
        lease.check()
        display.update(funnel, listing.num_videos, busy, len(seats))

    try:
        loop = Loop(
            crew=crew,
            places=seats,
            settings=settings,
            out=out,
            ledger=book,
            blocks=itertools.chain((first,), blocks),
            standings=lambda name: told.pop(name, {}),
            say=events.say,
            look=look,
            committed=before,
        )
        with _terminated():
            total = loop.run()
        spool.remove(settings.spool)
        events.say("ended", annotated=total.annotated)
        return total
    except (ValueError, KeyboardInterrupt) as error:
        events.say("stopped", why=str(error) or type(error).__name__)
        raise
    finally:
        crew.close()
        events.close()
        display.close()


def _start(recipe: "AnnotateRecipe", *, inline: bool, address: str | None) -> tuple[Crew, list[Place]]:
    """Workers' seats, on this machine or on a cluster."""
    if inline:
        return Inline(), [places.one(recipe)]
    crew = RayActors(address)
    try:
        return crew, places.fitting(recipe, crew.machines(), grows=address is not None)
    except ValueError:
        crew.close()
        raise


def _remembered(out: str, run: str, committed: set[str]) -> tuple[Funnel, dict[str, dict[str, ledger.Standing]]]:
    """What the ledger says: the sum of what is committed, and the standings of the rest."""
    before, told = Funnel(), {}
    for name, events in ledger.read(out):
        if name.startswith(f"{run}-"):
            standings = ledger.standings(events)
            if name in committed:
                before += count(standings.values())
            else:
                told[name] = standings
    return before, told


def _open_again(out: str, run: str, settings: Settings, retry: str, lease: Lease) -> None:
    """Opens every block that holds failed (or only quarantined) videos or clips, and forgives their attempts."""
    wanted = _RETRIES[retry]
    committed = packing.committed_blocks(settings.shards)
    book = ledger.Ledger(out)
    for name, events in list(ledger.read(out)):
        standings = ledger.standings(events)
        again = {key for key, standing in standings.items() if standing.end and standing.end["event"] in wanted}
        if not again or not name.startswith(f"{run}-"):
            continue
        lease.check()
        if name in committed:
            packing.unpack(block=name, folder=files.join(settings.spool, name), shards_uri=settings.shards, again=again)
        book.write(name, [{"event": "forgiven", "kind": standings[key].kind, "key": key} for key in sorted(again)])
        book.close(name)
        for end in (standings[key].end for key in again):
            if end is not None and "where" in end:
                files.remove(end["where"])


def _retire(out: str, run: str, settings: Settings) -> None:
    """Removes what an earlier recipe made, now that this one's shards are all there."""
    for old in plan.runs(out):
        if old != run:
            packing.remove_run(settings.shards, old)
            ledger.remove_run(out, old)
            plan.remove(out, old)


def _sweep(out: str, settings: Settings) -> None:
    """Removes the half-written files of workers and drivers that were killed."""
    for folder in (out, settings.shards, files.join(out, "plan"), files.join(out, "quarantine")):
        files.sweep(folder)


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM, which spot machines send before they vanish, ends a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _summary(total: Funnel, videos: int, seconds: float, source: str) -> Summary:
    if total.annotated == 0:
        reasons = (total.screened + total.failed).most_common(3)
        why = "; ".join(f"{times} {reason}" for reason, times in reasons) or "nothing was found in them"
        said = "".join(f", for example {total.told_examples(kind)[0]}" for kind in [*total.examples][:1])
        raise ValueError(f"{source}: {number(videos, 'video')} gave not one annotated clip ({why}{said})")
    return Summary(
        videos=videos,
        clips=total.clips_found,
        annotated=total.annotated,
        screened=sum(total.screened.values()),
        failed=sum(total.failed.values()),
        quarantined=total.quarantined,
        blocks=total.blocks_committed,
        seconds=seconds,
    )
