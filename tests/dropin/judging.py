"""Compares what came of a run on the two sides."""

from typing import NamedTuple

from .projects import Project, Suite, Use
from .running import OURS, SIDES, TORNADO, Checks, run
from .venvs import Venv, own_versions

FEW = 40
"""More tests of a suite than these are not tried again: that is no accident."""


class Verdict(NamedTuple):
    """On one run of a project. It consists of what JSON has."""

    project: str
    run: str
    versions: dict[str, str]
    """Of the project, of Tornado, of iostreamsrv, and of Python, by these names."""
    on_tornado: int
    on_ours: int
    """How many checks passed."""
    failed: list[str]
    """What must not be, a paragraph each."""
    lost: list[str]
    """The checks that pass on Tornado only, and are not excepted."""
    excepted: list[str]
    """The checks that failed as they are expected to."""
    not_on_tornado: list[str]
    """The checks that fail on Tornado, and so compare nothing."""
    again: list[str]
    """The checks that passed on both sides at the second try only."""


def judge(project: Project, what: Suite | Use, excepted: dict[str, str]) -> Verdict:
    """Install a project, do one of its runs on both sides, and compare.

    :raises InstallError: pip failed.
    """
    venv = Venv(project.name)
    venv.install()
    sides = {side: run(venv, what, side) for side in SIDES}
    at_first = _of_both(sides)
    suspects = _lost(sides)
    if suspects and (isinstance(what, Use) or len(suspects) <= FEW):
        second = {side: run(venv, what, side, sorted(suspects)) for side in SIDES}
        sides = {side: _merged(sides[side], second[side], suspects) for side in SIDES}
    versions = {"project": venv.version(project.distribution), "tornado": venv.version("tornado"), **own_versions()}
    return compare(project.name, what, sides, excepted)._replace(
        versions=versions, again=sorted(_of_both(sides) - at_first)
    )


def compare(project: str, what: Suite | Use, sides: dict[str, Checks], excepted: dict[str, str]) -> Verdict:
    """What the two sides of one run say."""
    passed, outcomes = sides[TORNADO].passed, sides[OURS].outcomes
    lost = {check for check in _lost(sides) if f"{project}: {check}" not in excepted}
    failed = []
    for check in sorted(lost):
        why = outcomes.get(check, f"it did not run; {sides[OURS].end or 'no reason is known'}")
        failed.append(f"{project}: {check}: passes on Tornado, not on ours (see {sides[OURS].log})\n{why}")
    needless = [check for check in sorted(sides[OURS].passed) if f"{project}: {check}" in excepted]
    failed.extend(f"{project}: {check} passed, though it is excepted: take it off that list" for check in needless)
    for side in SIDES:
        failed.extend(f"{project}: {trouble}" for trouble in _of_the_run(what, side, sides[side]))
    if not passed:
        failed.append(f"{project}: {what.name}: nothing passed on Tornado, so nothing was compared")
    return Verdict(
        project,
        what.name,
        versions={},
        on_tornado=len(passed),
        on_ours=len(sides[OURS].passed & passed),
        failed=failed,
        lost=sorted(lost),
        excepted=sorted(_lost(sides) - lost),
        not_on_tornado=sorted(check for check, why in sides[TORNADO].outcomes.items() if why not in ("", "skipped")),
        again=[],
    )


def _lost(sides: dict[str, Checks]) -> set[str]:
    return sides[TORNADO].passed - sides[OURS].passed


def _of_both(sides: dict[str, Checks]) -> set[str]:
    return sides[TORNADO].passed & sides[OURS].passed


def _merged(first: Checks, second: Checks, suspects: set[str]) -> Checks:
    """The first run, but for suspects the second."""
    outcomes = first.outcomes | {name: second.outcomes[name] for name in suspects if name in second.outcomes}
    return Checks(outcomes, first.classes | second.classes, second.end if first.end else "", second.log)


def _of_the_run(what: Suite | Use, side: str, checks: Checks) -> list[str]:
    """What is wrong with a run as a whole."""
    troubles = []
    if checks.end:
        troubles.append(f"{what.name} on {side}: {checks.end} (see {checks.log})")
    others = sorted(line for line in checks.classes if line.split()[0] != side)
    if others:
        troubles.append(f"{what.name} on {side}: it made {', '.join(others)}")
    if not checks.classes.difference(others):
        troubles.append(f"{what.name} on {side}: it made no stream and no server of that side")
    return troubles
