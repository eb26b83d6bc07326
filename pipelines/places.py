"""How many seats fit, and what each asks for: declared by the annotators, compared with what is there before a clip is touched."""

import math
from typing import TYPE_CHECKING

from annotate.annotator import Annotator
from pipelines.fleet import Place, TaskKind
from pipelines.tasks import Job

if TYPE_CHECKING:
    from pipelines.recipes import AnnotateRecipe

Machines = list[dict[str, float]]
"""Resources of each: CPU, GPU."""

FACTORY = "pipelines.work:Worker"
_ALL: frozenset[TaskKind] = frozenset(("cut", "clip", "pack"))
_LIGHT: frozenset[TaskKind] = frozenset(("cut", "pack"))
_HEAVY: frozenset[TaskKind] = frozenset(("clip",))
_STAGES = 3
"""Clips in flight in a worker that overlaps them: one is decoded, one annotated, one encoded."""


def one(recipe: "AnnotateRecipe") -> Place:
    """A seat that takes every task, whatever this machine has."""
    return Place(job=job(recipe, annotates=True), kinds=_ALL, cpus=1.0, gpus=0.0)


def fitting(recipe: "AnnotateRecipe", machines: Machines, *, grows: bool = False) -> list[Place]:
    """The seats of a run. `grows`: a cluster may add machines, so that more workers than fit now may be asked for.

    Raises ValueError, one sentence, if not one worker fits, or fewer than asked for.
    """
    fleet = recipe.fleet
    cpus = fleet.cpus or max(annotator.cpus for annotator in annotators(recipe))
    gpus = max(annotator.gpus for annotator in annotators(recipe)) / fleet.workers_per_gpu
    fit = sum(_fitting(machine, cpus, gpus) for machine in machines)
    asked = f"a worker asks for {cpus:g} CPUs and {gpus:g} GPUs"
    there = ", ".join(f"{m.get('CPU', 0):g} CPUs and {m.get('GPU', 0):g} GPUs" for m in machines)
    if fit == 0 and not grows:
        raise ValueError(
            f"{asked}, but there is: {there}; use smaller annotators, fleet.cpus, or --address of a cluster"
        )
    if fleet.workers and fleet.workers > fit and not grows:
        raise ValueError(
            f"fleet.workers is {fleet.workers} and {asked}, but only {fit} fit: {there}; lower it or fleet.cpus"
        )
    workers = fleet.workers or max(fit, 1)
    left = int(sum(machine.get("CPU", 0) for machine in machines) - workers * cpus)
    grown = workers > fit  # machines that are still to come may have CPUs to spare, or none
    screeners = (fleet.screeners or max(left, workers * grown)) if gpus else 0
    overlap = gpus > 0 if fleet.overlap is None else fleet.overlap
    kinds = _HEAVY if screeners and not grown else _ALL
    depth = _STAGES if overlap else 1
    heavy = Place(job=job(recipe, annotates=True, overlap=overlap), kinds=kinds, cpus=cpus, gpus=gpus, depth=depth)
    light = Place(job=job(recipe, annotates=False), kinds=_LIGHT, cpus=1.0, gpus=0.0)
    return [heavy] * workers + [light] * screeners


def annotators(recipe: "AnnotateRecipe") -> tuple[Annotator, ...]:
    """In the order in which they need each other."""
    return recipe.flow, recipe.cameras, recipe.depth, recipe.motion


def job(recipe: "AnnotateRecipe", *, annotates: bool, overlap: bool = False) -> Job:
    """The process that sits in a seat. Its threads follow from the recipe, so that labels do not depend on the machine."""
    fleet = recipe.fleet
    threads = max(1, int(max(annotator.cpus for annotator in annotators(recipe)))) if annotates else 1
    arguments = {"recipe": recipe.model_dump(mode="json"), "annotates": annotates, "threads": threads}
    return Job(
        factory=FACTORY,
        arguments=arguments | {"overlap": overlap},
        threads=threads,
        overlap=overlap,
        worker_gib=fleet.worker_gib,
        start_timeout_s=fleet.start_timeout_s,
        recycle_after=fleet.recycle_after,
    )


def _fitting(machine: dict[str, float], cpus: float, gpus: float) -> int:
    by_cpu = machine.get("CPU", 0.0) / cpus
    return math.floor(min(by_cpu, machine.get("GPU", 0.0) / gpus) if gpus else by_cpu)
