"""The contract of guidance methods."""

# ruff: noqa: D102  (the name of a test is its documentation)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from sldcore.contributions import GuidanceMethod
from sldcore.guidance.base import ActsWithoutRows, Guidance, GuidanceRun
from sldcore.testing.contracts.base import NamedContract, does_not_apply, require
from sldcore.testing.contracts.guided_runs import (
    Combined,
    Spoil,
    combine,
    require_same_run,
    require_same_sample,
)
from sldcore.testing.contracts.tensors import (
    DTYPES,
    Place,
    cuda,
    require_equal,
    require_like,
    unchanged,
    with_nan,
)
from sldcore.testing.samples import guided_samples, predictions, schedule
from sldcore.types import Predictions, Row, Schedule, Step

BATCH: Final = ("knight", "cat", "crowd", "boat")
"""Names of the samples; they differ in number of concepts, in weights and in windows."""

OWN: Final = ("knight", "crowd", "boat")
"""Those that name the method under test; the others of the batch are none of its business."""


class GuidanceContract(NamedContract):
    """For :class:`sldcore.contributions.GuidanceMethod`; ``steps`` is the length of the runs that are tested."""

    kind = GuidanceMethod
    protocol = Guidance
    steps: ClassVar[int] = 30

    def make(self) -> Guidance:
        """A new method."""
        made: Guidance = self.subject.create()
        return made

    def use(self, made: Guidance) -> int:
        """One run."""
        return len(self.walk(made))

    def walk(
        self,
        method: Guidance,
        batch: Sequence[str] = BATCH,
        own: Sequence[str] = OWN,
        *,
        place: Place = Place(),  # noqa: B008  (frozen)
        plan: Schedule | None = None,
        spoil: Spoil | None = None,
        **fields: Any,
    ) -> list[Combined]:
        """One run over ``batch``, in which the method guides ``own``: all its calls of ``combine``."""
        plan = plan or schedule(self.steps)
        run = self.start(method, batch, own, plan, **fields)
        return [
            combined
            for index in range(len(plan))
            if (combined := combine(run, plan.step(index), tuple(batch), place, spoil)) is not None
        ]

    def start(
        self, method: Guidance, batch: Sequence[str], own: Sequence[str], plan: Schedule, **fields: Any
    ) -> GuidanceRun:
        """Begin a run for the samples ``own`` of ``batch``."""
        options = self.checked_options.model_dump()
        samples = guided_samples(self.subject.name, options, own, len(plan), batch=batch, **fields)
        return method.start(samples, plan)

    # --- what it is asked for -----------------------------------------------------------------------------------

    def test_rows_are_of_its_own_samples_and_their_concepts(self) -> None:
        plan = schedule(self.steps)
        options = self.checked_options.model_dump()
        samples = guided_samples(self.subject.name, options, OWN, self.steps, batch=BATCH)
        allowed = {Row(sample.index, concept) for sample in samples for concept in sample.concepts}
        run = self.make().start(samples, plan)
        for index in range(self.steps):
            rows = tuple(run.rows(plan.step(index)))
            if foreign := set(rows) - allowed:
                raise AssertionError(
                    f"step {index}: rows {sorted(foreign)} are of no sample and concept of the run"
                )
            require(len(set(rows)) == len(rows), f"step {index}: a row is asked for twice")
            combine(run, plan.step(index), BATCH, Place(), None, rows)

    def test_nothing_is_asked_for_without_samples_or_concepts(self) -> None:
        cases: tuple[tuple[str, Sequence[str], dict[str, Any]], ...] = (
            ("without samples", (), {}),
            (
                "for samples without concepts",
                OWN,
                {"concepts": (), "weights": (), "strengths": (), "concept_acting": ()},
            ),
        )
        for what, own, fields in cases:
            require(not self.walk(self.make(), own=own, **fields), f"rows are asked for {what}")

    # --- what it gives ------------------------------------------------------------------------------------------

    def test_results_have_the_shape_type_and_place_of_the_predictions(self) -> None:
        shapes = ((4, 4, 4), (3, 2, 6))
        for place in [Place(dtype, shape=shape) for dtype in DTYPES for shape in shapes]:
            for combined in self.walk(self.make(), place=place):
                self._require_form(combined)

    def test_results_on_cuda_stay_there(self) -> None:
        device = cuda()
        if device is None:
            raise does_not_apply("there is no CUDA device")
        for place in [Place(dtype, device) for dtype in DTYPES]:
            for combined in self.walk(self.make(), place=place):
                self._require_form(combined)

    @staticmethod
    def _require_form(combined: Combined) -> None:
        guided, given = combined.guided, combined.predictions
        require_like(guided.cond, given.cond, "the guided prediction is not like the conditional one")
        require(
            guided.terms.shape == given.concepts.shape,
            f"terms are {list(guided.terms.shape)}, and there must be one for each row: {list(given.concepts.shape)}",
        )
        require(
            set(guided.applied) <= set(range(len(combined.batch))),
            f"applied {guided.applied} are not samples",
        )

    def test_it_changes_what_it_guides(self) -> None:
        always = self.walk(self.make(), acting=(1.0,) * self.steps)
        changed = any(not each.guided.cond.equal(each.predictions.cond) for each in always)
        require(
            changed,
            f"in a run of {self.steps} steps it changes nothing, so a policy that names it would be unguided",
        )

    def test_it_says_which_samples_it_changed(self) -> None:
        for each in self.walk(self.make()):
            for index, name in enumerate(BATCH):
                untouched = each.guided.cond[index].equal(each.predictions.cond[index])
                require(
                    untouched or index in each.guided.applied,
                    f"step {each.step.index}: sample '{name}' was changed and is not in applied {each.guided.applied}",
                )

    def test_samples_of_others_are_left_alone(self) -> None:
        (other,) = set(BATCH) - set(OWN)
        for each in self.walk(self.make()):
            given = each.predictions.cond[BATCH.index(other)]
            require_equal(
                each.cond(other), given, f"step {each.step.index}: a sample of another method was changed"
            )

    def test_nothing_changes_at_weight_or_strength_0_or_outside_the_window(self) -> None:
        opened, shut = (1.0,) * self.steps, (0.0,) * self.steps
        two = {
            "concepts": (0, 1),
            "weights": (1.0, 1.0),
            "strengths": (),
            "concept_acting": (),
            "acting": opened,
        }
        for what, fields in (
            ("weights are 0", {**two, "weights": (0.0, 0.0)}),
            ("strengths are 0", {**two, "strengths": (0.0, 0.0)}),
            ("guidance acts at no step", {**two, "acting": shut}),
            ("concepts act at no step", {**two, "concept_acting": (shut, shut)}),
        ):
            for each in self.walk(self.make(), **fields):
                message = f"step {each.step.index}: the prediction changes although {what}"
                require_equal(each.guided.cond, each.predictions.cond, message)

    def test_results_are_finite_in_float16_and_where_predictions_say_nothing_of_the_noise(self) -> None:
        for prediction in ("epsilon", "v", "flow"):
            plan = schedule(self.steps, prediction)
            for dtype in DTYPES:
                for each in self.walk(self.make(), place=Place(dtype), plan=plan):
                    finite = bool(each.guided.cond.isfinite().all() and each.guided.terms.isfinite().all())
                    where = f"step {each.step.index}, {dtype}, {prediction} prediction"
                    require(finite, f"{where}: NaN or Inf out of finite predictions")

    # --- samples on their own -----------------------------------------------------------------------------------

    def test_a_sample_alone_is_as_in_a_batch(self) -> None:
        together = self.walk(self.make())
        for name in OWN:
            alone = self.walk(self.make(), (name,), (name,))
            require_same_sample(alone, together, name, "is not the same alone as in a batch")

    def test_the_order_of_a_batch_does_not_matter(self) -> None:
        one, two = self.walk(self.make()), self.walk(self.make(), BATCH[::-1], OWN[::-1])
        for name in OWN:
            require_same_sample(two, one, name, "is not the same at another place of the batch")

    def test_nan_in_one_sample_does_not_reach_the_others(self) -> None:
        clean = self.walk(self.make())
        for part, name, index in self._spots(clean):
            spoilt = self._spoilt_walk(part, name, index)
            if isinstance(spoilt, Exception):
                raise AssertionError(
                    f"NaN in {part} of one sample raises, so the others get no picture"
                ) from spoilt
            for other in set(OWN) - {name}:
                require_same_sample(spoilt, clean, other, f"changes with NaN in {part} of another sample")

    def test_nan_is_seen_in_the_result(self) -> None:
        for part, name, index in self._spots(self.walk(self.make())):
            spoilt = self._spoilt_walk(part, name, index)
            if isinstance(spoilt, Exception):
                continue
            (at,) = [each for each in spoilt if each.step.index == index]
            hidden = bool(at.cond(name).isfinite().all() and at.terms(name).isfinite().all())
            require(
                not hidden, f"NaN in {part} gives a finite result: guidance would be lost without a trace"
            )

    def _spots(self, clean: Sequence[Combined]) -> list[tuple[str, str, int]]:
        """Where to put NaN: part of the predictions, sample, and the first step at which guidance acts on the sample."""
        spots = []
        for name in OWN[:2]:
            at = BATCH.index(name)
            acting = [each.step.index for each in clean if at in each.guided.applied]
            acting = [index for index in acting if self._has_rows(clean, index, at)]
            spots += [(part, name, acting[0]) for part in ("uncond", "cond", "concepts") if acting]
        return spots

    @staticmethod
    def _has_rows(clean: Sequence[Combined], index: int, sample: int) -> bool:
        rows = [row for each in clean if each.step.index == index for row in each.predictions.rows]
        return any(row.sample == sample for row in rows)

    def _spoilt_walk(self, part: str, name: str, index: int) -> list[Combined] | Exception:
        at = BATCH.index(name)

        def spoil(step: Step, given: Predictions) -> Predictions:
            if step.index != index:
                return given
            row = (
                next(i for i, row in enumerate(given.rows) if row.sample == at) if part == "concepts" else at
            )
            return with_nan(given, part, row)

        try:
            return self.walk(self.make(), spoil=spoil)
        except Exception as error:
            return error

    # --- state --------------------------------------------------------------------------------------------------

    def test_the_same_input_gives_the_same_result(self) -> None:
        require_same_run(
            self.walk(self.make()), self.walk(self.make()), "differs between two runs of two methods"
        )

    def test_the_input_is_not_changed(self) -> None:
        plan = schedule(self.steps)
        run = self.start(self.make(), BATCH, OWN, plan)
        for step in map(plan.step, range(self.steps)):
            rows = tuple(run.rows(step))
            if rows or (isinstance(run, ActsWithoutRows) and run.acts(step)):
                given = predictions(step, rows, BATCH)
                with unchanged(given, "combine()"):
                    run.combine(step, given)

    def test_a_run_leaves_nothing_behind_in_the_method(self) -> None:
        method = self.make()
        first = self.walk(method)
        require_same_run(self.walk(method), first, "is another in the second run of the same method")

    def test_two_runs_at_once_do_not_disturb_each_other(self) -> None:
        plan, method = schedule(self.steps), self.make()
        expected = [self.walk(self.make(), batch, batch) for batch in (OWN, BATCH)]
        runs = [(self.start(method, batch, batch, plan), batch, []) for batch in (OWN, BATCH)]  # type: ignore[var-annotated]
        for step in map(plan.step, range(self.steps)):
            for run, batch, found in runs:
                if (combined := combine(run, step, batch, Place(), None)) is not None:
                    found.append(combined)
        for (_, _, found), alone in zip(runs, expected, strict=True):
            require_same_run(found, alone, "is another while a second run of the method is under way")
