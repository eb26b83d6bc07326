"""What was tried survives: appended before the work, torn lines tolerated, attempts counted."""

from pathlib import Path

import pytest

from pipelines import ledger


def _started(key: str = "k") -> dict[str, object]:
    return {"event": "started", "kind": "clip", "key": key}


def _read(out: Path) -> dict[str, ledger.Standing]:
    return {k: s for _, events in ledger.read(str(out)) for k, s in ledger.standings(events).items()}


def test_an_open_start_is_a_used_attempt(tmp_path: Path) -> None:
    book = ledger.Ledger(str(tmp_path))
    book.write("run-000000", [_started()])
    again = ledger.Ledger(str(tmp_path))
    again.write("run-000000", [_started()])
    found = _read(tmp_path)["k"]  # nothing is closed yet: so does a killed driver leave it
    book.close()
    again.close()
    assert found == ledger.Standing(kind="clip", begun=2, attempts=2)


@pytest.mark.parametrize(
    ("event", "attempts", "lost"),
    [
        ({"event": "returned"}, 0, 0),
        ({"event": "fault", "class": "died"}, 1, 0),
        ({"event": "fault", "class": "node_lost"}, 0, 1),
        ({"event": "done"}, 0, 0),
        ({"event": "quarantined"}, 1, 0),
        ({"event": "forgiven"}, 0, 0),
    ],
)
def test_what_each_event_does_to_attempts(event: dict[str, str], attempts: int, lost: int) -> None:
    standing = ledger.standings([_started(), {**event, "key": "k"}])["k"]
    assert (standing.begun, standing.attempts, standing.lost) == (1, attempts, lost)
    assert (standing.end is not None) == (event["event"] in ("done", "quarantined"))


def test_a_torn_last_line_is_ignored_and_any_other_is_not(tmp_path: Path) -> None:
    book = ledger.Ledger(str(tmp_path))
    book.write("run-000000", [_started("a"), _started("b")])
    book.close()
    (file,) = (tmp_path / "ledger").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    assert set(_read(tmp_path)) == {"a"}
    file.write_bytes(b"{torn\n" + whole)
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        _read(tmp_path)


def test_writers_never_share_a_file(tmp_path: Path) -> None:
    for _ in range(3):
        book = ledger.Ledger(str(tmp_path))
        book.write("run-000000", [_started()])
        book.close("run-000000")
    assert len(list((tmp_path / "ledger").iterdir())) == 3
    assert _read(tmp_path)["k"].begun == 3


def test_in_a_bucket_each_batch_is_an_object_until_they_are_united(bucket: str) -> None:
    from shared import files

    book = ledger.Ledger(bucket)
    book.write("run-000000", [_started("a")])
    book.write("run-000000", [_started("b"), {"event": "done", "key": "b"}])
    names = list(files.list_files(f"{bucket}/ledger"))
    before = list(ledger.read(bucket))
    assert len(names) == 2
    book.close("run-000000")
    assert len(list(files.list_files(f"{bucket}/ledger"))) == 1
    assert list(ledger.read(bucket)) == before
    batch = files.read_bytes(next(iter(files.list_files(f"{bucket}/ledger"))))
    files.write_whole(names[0], batch)  # united, but killed before the batches were removed
    assert list(ledger.read(bucket)) == before


def test_events_are_one_line_each(tmp_path: Path) -> None:
    events = ledger.Events(str(tmp_path))
    events.say("seated", node="here")
    events.say("ended", annotated=3)
    events.close()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [line.split('"event": ')[1].split(",")[0] for line in lines] == ['"seated"', '"ended"']
