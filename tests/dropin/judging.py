"""Compares what came of a run on the two sides."""

from typing import NamedTuple

from .projects import Project, Suite, Use
from .running import OURS, SIDES, TORNADO, Checks, run
from .venvs import Venv

FEW = 40
"""More tests of a suite than these are not tried again: that is no accident."""


class Verdict(NamedTuple):
    """On one project."""

    project: Project
    versions: dict[str, str]
    on_tornado: int
    on_ours: int
    """How many checks passed."""
    failed: list[str]
    """What must not be, a paragraph each."""
    excepted: list[str]
    """The checks that failed as they are expected to."""
    not_on_tornado: list[str]
    """The checks of our own programs that fail on Tornado, and so compare nothing."""
    again: list[str]
    """The checks that passed on both sides at the second try only."""


def judge(project: Project, excepted: dict[str, str]) -> Verdict:
    """Install a project, run all of it on both sides, and compare.

    :raises InstallError: pip failed.
    """
    venv = Venv(project.name)
    venv.install()
    verdict = Verdict(
        project, {name: venv.version(name) for name in (project.distribution, "tornado")}, 0, 0, [], [], [], []
    )
    for what in project.runs:
        verdict = _judge_run(verdict, venv, what, excepted)
    if not verdict.on_tornado:
        verdict.failed.append(f"{project.name}: nothing passed on Tornado, so nothing was compared")
    return verdict


def _judge_run(verdict: Verdict, venv: Venv, what: Suite | Use, excepted: dict[str, str]) -> Verdict:
    sides = {side: run(venv, what, side) for side in SIDES}
    suspects = _lost(sides)
    if suspects and (isinstance(what, Use) or len(suspects) <= FEW):
        second = {side: run(venv, what, side, sorted(suspects)) for side in SIDES}
        at_first = _of_both(sides)
        sides = {side: _merged(sides[side], second[side], suspects) for side in SIDES}
        verdict.again.extend(sorted(_of_both(sides) - at_first))
    return compare(verdict, what, sides, excepted)


def compare(verdict: Verdict, what: Suite | Use, sides: dict[str, Checks], excepted: dict[str, str]) -> Verdict:
    """The verdict, with what came of one more run."""
    name = verdict.project.name
    passed, lost = sides[TORNADO].passed, _lost(sides)
    for check in sorted(lost):
        if f"{name}: {check}" in excepted:
            verdict.excepted.append(check)
        else:
            why = sides[OURS].outcomes.get(check, f"it did not run; {sides[OURS].end or 'no reason is known'}")
            verdict.failed.append(f"{name}: {check}: passes on Tornado, not on ours (see {sides[OURS].log})\n{why}")
    if isinstance(what, Use):
        troubles = sides[TORNADO].outcomes.items()
        verdict.not_on_tornado.extend(f"{check}: {why}" for check, why in troubles if why not in ("", "skipped"))
    for check in sorted(sides[OURS].passed):
        if f"{name}: {check}" in excepted:
            verdict.failed.append(f"{name}: {check} passed, though it is excepted: take it off that list")
    for side in SIDES:
        verdict.failed.extend(f"{name}: {trouble}" for trouble in _of_the_run(what, side, sides[side]))
    return verdict._replace(
        on_tornado=verdict.on_tornado + len(passed), on_ours=verdict.on_ours + len(sides[OURS].passed & passed)
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
