"""Which of two policies' filters and prompt filters are stricter: coverage, thresholds, actions, and what becomes of errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from sldcore.policy import Action, PromptFilterUse

MILD: Final = {"flag": 0, "blur": 1, "pixelate": 1}
"""Actions that show something of the flagged picture; every other one shows nothing of it."""
WITHHOLDS: Final = 2
COVERS_BOXES: Final = 0.5


def weaker_filters(
    kind: str,
    own: Sequence[PromptFilterUse],
    floor: Sequence[PromptFilterUse],
    own_error: str,
    floor_error: str,
) -> Iterator[str]:
    """In what filters, all of one ``kind``, are weaker than a floor's; the errors are what their policies say of errors."""
    for wanted in floor:
        if wanted.shadow:
            continue
        found = [use for use in own if use.use == wanted.use and use.options == wanted.options]
        reasons = [list(_use(use, wanted, own_error, floor_error)) for use in found]
        if not reasons:
            yield f"{kind} '{wanted.use}' with the floor's options is missing"
        elif all(reasons):
            yield from (f"{kind} '{wanted.use}': {reason}" for reason in min(reasons, key=len))


def _use(own: PromptFilterUse, floor: PromptFilterUse, own_error: str, floor_error: str) -> Iterator[str]:
    if own.shadow:
        yield "it is in shadow and never acts"
    if (own.on_error or own_error) == "allow":
        yield from _allowed(own, floor, (floor.on_error or floor_error) == "allow")
    if _severity(own) < _severity(floor):
        yield f"its action is '{_action(own).do}', milder than '{_action(floor).do}'"
    if not _covers(own, floor):
        yield "it does not look at every category that the floor looks at"
    yield from _thresholds(own, floor)


def _allowed(own: PromptFilterUse, floor: PromptFilterUse, floor_allows: bool) -> Iterator[str]:
    """Errors that show a picture: only where the floor shows it too, and none that can be provoked."""
    if not floor_allows:
        yield "it shows what it could not review"
    if own.timeout < floor.timeout:
        yield f"it shows what it could not review within {own.timeout:g} s, below {floor.timeout:g} s"
    further = _categories(own) - _categories(floor)
    if further or (own.judges and not floor.judges):
        yield "it shows what it could not review, and may fail on categories that the floor does not name"


def _categories(use: PromptFilterUse) -> set[str]:
    return {*use.thresholds, *use.only, *use.ignore}


def _action(use: PromptFilterUse) -> Action:
    action = use.on_flag
    return (action if isinstance(action, Action) else Action(do=action)).final


def _severity(use: PromptFilterUse) -> float:
    action = _action(use)
    severity = MILD.get(action.do, WITHHOLDS)
    return severity - COVERS_BOXES if severity == MILD["blur"] and action.area == "boxes" else severity


def _covers(own: PromptFilterUse, floor: PromptFilterUse) -> bool:
    if own.only:
        return bool(floor.only) and set(floor.only) <= set(own.only)
    if own.ignore:
        return not set(own.ignore) & set(floor.only) if floor.only else set(own.ignore) <= set(floor.ignore)
    return True


def _thresholds(own: PromptFilterUse, floor: PromptFilterUse) -> Iterator[str]:
    """A threshold that is not said is the filter's own, which cannot be compared with a number."""
    names = [*dict.fromkeys([*own.thresholds, *floor.thresholds])]
    for name, mine, limit in (
        ("", own.threshold, floor.threshold),
        *((name, _of(own, name), _of(floor, name)) for name in names),
    ):
        if mine == limit:
            continue
        what = f"the threshold of '{name}'" if name else "its threshold"
        if mine is None or limit is None:
            yield f"{what} is {_said(mine)}, which cannot be compared with {_said(limit)}"
        elif mine > limit:
            yield f"{what} is {mine:g}, above {limit:g}"


def _of(use: PromptFilterUse, category: str) -> float | None:
    given: Mapping[str, object] = use.thresholds
    found = given.get(category, use.threshold)
    return float(found) if isinstance(found, int | float) else None


def _said(threshold: float | None) -> str:
    return "the filter's own" if threshold is None else f"{threshold:g}"
