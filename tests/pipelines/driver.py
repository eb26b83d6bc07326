"""`annotate` with quick workers, in a process of its own that can be killed: SOURCE OUT CREW SEATS KNOBS [ADDRESS]."""

import json
import sys

import quick

from pipelines import annotation
from pipelines.fleet import Crew, Local, Place, RayActors


def main(source: str, out: str, crew: str, seats: str, knobs: str, address: str = "") -> None:
    recipe = quick.recipe(**json.loads(knobs))

    def start() -> tuple[Crew, list[Place]]:
        return RayActors(address or None) if crew == "ray" else Local(), quick.seats(recipe, int(seats))

    annotation.annotate(source, out, recipe, crew=start)


if __name__ == "__main__":
    main(*sys.argv[1:])
