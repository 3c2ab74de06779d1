"""Jobs in, answers out: right for each job's own policy and seed, whatever else is in the batch."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from service_hosts import CLOSE, STEPS, hosting, job, pictures, pixels, policy, run

from sldcore import SafetyEngine, load_pipeline
from sldcore.denoiser import HOOK_NAME
from sldcore.errors import ConfigurationError
from sldcore.service.hosting.engine_host import EngineHost
from sldcore.service.hosting.hosted_models import HostedModel, size_of
from sldcore.service.jobs import Event, Failed, Progress
from sldcore.service.settings import ModelSettings

CLOWN = "a red clown on a meadow"
GLYPHS = {"use": "playground-glyphs"}
SECRET = "a purple elephant with a password of 48151623"


@pytest.fixture(scope="module")
def host() -> Iterator[EngineHost]:
    with hosting() as made:
        yield made


def model_of(host: EngineHost) -> HostedModel:
    return host._models.of("playground")


def test_a_mixed_batch_equals_the_engine_called_alone(host: EngineHost) -> None:
    jobs = [
        job(CLOWN, 4, policy(filters=(GLYPHS,)), id="off"),
        job(
            "a blue knight on a meadow", 3, policy("max", filters=({**GLYPHS, "on_flag": "blur"},)), id="max"
        ),
        job("a red house", 3, policy("medium-noise"), id="medium"),
        job(CLOWN, 3, policy("gated", filters=({**GLYPHS, "on_flag": "flag"},)), id="gated"),
        job("a green dancer on a beach", 5, policy(filters=({**GLYPHS, "on_flag": "pixelate"},)), id="pix"),
    ]
    answers = pictures(run(host, *jobs))
    pipe = load_pipeline("playground", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    for each, answer in zip(jobs, answers, strict=True):
        alone = SafetyEngine(pipe, each.policy).generate(
            each.prompt, seed=each.seed, num_inference_steps=STEPS, guidance_scale=4.0
        )
        assert answer.job == each.id
        assert answer.account["action"] == alone.reports[0].action
        assert answer.account["policy_digest"] == each.policy.digest
        assert answer.account["seed"] == each.seed
        assert np.abs(pixels(answer.png) - pixels_of_image(alone.images[0])).max() <= CLOSE
    assert {answer.account["action"] for answer in answers} >= {"black", "none"}


def pixels_of_image(image: Any) -> Any:
    return np.asarray(image.convert("RGB"), dtype=np.int16)


def test_answers_can_be_pickled_and_written_as_json(host: EngineHost) -> None:
    (answer,) = pictures(run(host, job(CLOWN, own=policy("max"), explain=True, unguided=True)))
    assert pickle.loads(pickle.dumps(answer)) == answer
    parts = (answer.account, answer.provenance, answer.timings, answer.curves, answer.unguided_account)
    json.dumps(parts, allow_nan=False)
    assert type(answer.account["prompt"]) is str
    assert set(answer.timings) == {"denoise", "review", "encode", "unguided"}


def test_a_bad_job_is_invalid_and_leaves_the_others(host: EngineHost) -> None:
    good = job("a blue house", 1, policy("max"), id="good")
    answers = run(
        host,
        job(CLOWN, own=policy("weak"), id="bad"),
        good,
        job("a tree", 2, id="tree"),
        job("a cat", 3, id="cat"),
    )
    bad, *others = answers
    assert isinstance(bad, Failed) and bad.reason == "invalid" and "window" in bad.message
    (alone,) = pictures(run(host, good))
    assert [answer.job for answer in answers] == ["bad", "good", "tree", "cat"]
    assert np.abs(pixels(pictures(others)[0].png) - pixels(alone.png)).max() <= CLOSE


def test_policies_with_other_schedulers_are_made_too(host: EngineHost) -> None:
    euler = policy(scheduler={"use": "euler"})
    first, second = pictures(run(host, job(id="a"), job(own=euler, id="b")))
    assert first.provenance["scheduler"] == "DDIMScheduler"
    assert second.provenance["scheduler"] == "EulerDiscreteScheduler"


@pytest.mark.parametrize(
    "fields",
    [{"on_error": "raise", "filters": ("raises",)}, {"filters": ({"use": "flags", "on_flag": "raise"},)}],
)
def test_what_a_policy_raises_concerns_its_own_job(
    host: EngineHost, fields: Any, caplog: pytest.LogCaptureFixture
) -> None:
    failed, other = run(host, job(SECRET, own=policy(**fields), id="raising"), job(id="other"))
    assert isinstance(failed, Failed) and failed.reason == "failed" and "`raise`" in failed.message
    assert "elephant" not in failed.message + caplog.text
    pictures([other])


def test_what_breaks_is_told_without_prompt_or_path(
    host: EngineHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = model_of(host).engine

    def broken(prompts: list[str], **arguments: Any) -> Any:
        raise RuntimeError(f"no kernel for {prompts[0]} in /opt/secret/lib.so")

    monkeypatch.setattr(engine, "generate", broken)
    (failed,) = run(host, job(SECRET))
    assert isinstance(failed, Failed) and failed.reason == "failed"
    assert "elephant" not in failed.message and "/opt" not in failed.message
    assert "no kernel for [prompt]" in caplog.text and "elephant" not in caplog.text


def test_an_unknown_model_is_invalid(host: EngineHost) -> None:
    (failed,) = host.run([job().__class__("x", "nobody", "p", 1, policy(), 64, 64, 8)], print, lambda: ())
    assert isinstance(failed, Failed) and failed.reason == "invalid"
    assert "'nobody'" in failed.message and "playground" in failed.message


def test_a_batch_that_does_not_fit_is_halved(
    host: EngineHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = model_of(host).engine
    whole = engine.generate

    def tight(prompts: list[str], **arguments: Any) -> Any:
        if len(prompts) > 1:
            raise torch.cuda.OutOfMemoryError("no room")
        return whole(prompts, **arguments)

    jobs = [job("a house", seed, id=str(seed)) for seed in range(3)]
    expected = pictures(run(host, *jobs))
    monkeypatch.setattr(engine, "generate", tight)
    halved = pictures(run(host, *jobs))
    assert [answer.job for answer in halved] == ["0", "1", "2"]
    for one, other in zip(halved, expected, strict=True):
        assert np.abs(pixels(one.png) - pixels(other.png)).max() <= CLOSE
    assert "out of memory with a batch of 3" in caplog.text


def test_a_nan_step_withholds_its_own_picture(host: EngineHost) -> None:
    spoilt, sound = pictures(run(host, job(own=policy(step_hooks=("spoils",)), id="nan"), job(id="sound")))
    assert spoilt.account["action"] == "block" and spoilt.account["errors"][0]["source"] == "spoils"
    assert not pixels(spoilt.png).any()
    assert sound.account["action"] == "none" and pixels(sound.png).any()


def test_progress_is_told_for_the_jobs_of_each_pipeline_call(host: EngineHost) -> None:
    again = {"do": "regenerate", "attempts": 1, "stronger": False, "add_concept": False}
    retried = job(own=policy(filters=({"use": "flags", "on_flag": again},)), id="again")
    events: list[Event] = []
    answers = pictures(run(host, retried, job(id="once"), emit=events.append))
    steps = range(1, STEPS + 1)
    told = {
        name: [
            (each.attempt, each.step) for each in events if isinstance(each, Progress) and each.job == name
        ]
        for name in ("again", "once")
    }
    assert told["once"] == [(1, step) for step in steps]
    assert told["again"] == [(1, step) for step in steps] + [(2, step) for step in steps]
    assert answers[0].account["attempts"] == 2
    assert {each.total for each in events if isinstance(each, Progress)} == {STEPS}


def test_who_does_not_take_events_loses_no_picture(host: EngineHost) -> None:
    def refuse(event: Event) -> None:
        raise OSError("the pipe is closed")

    (answer,) = pictures(run(host, job(), emit=refuse))
    assert answer.account["action"] == "none"


def test_a_call_whose_jobs_are_all_cancelled_stops_and_leaves_the_pipeline_as_it_was(
    host: EngineHost,
) -> None:
    gone: set[str] = set()
    seen: list[Event] = []

    def give_up(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Progress) and event.step == 3:
            gone.update({"a", "b"})

    jobs = [job(CLOWN, 1, policy("max"), id="a", partials=3), job(CLOWN, 2, policy("max"), id="b")]
    expected = pictures(run(host, *jobs))
    answers = host.run(jobs, give_up, lambda: gone)
    assert [(each.job, each.reason) for each in answers if isinstance(each, Failed)] == [
        ("a", "cancelled"),
        ("b", "cancelled"),
    ]
    assert max(each.step for each in seen if isinstance(each, Progress)) == 3
    pipe = model_of(host).engine.pipe
    assert pipe.unet._diffusers_hook.get_hook(HOOK_NAME) is None
    assert "step" not in vars(pipe.scheduler) and "encode_prompt" not in vars(pipe)
    for one, other in zip(pictures(run(host, *jobs)), expected, strict=True):
        assert np.abs(pixels(one.png) - pixels(other.png)).max() <= CLOSE


def test_a_job_cancelled_before_its_batch_is_not_made_and_the_others_are(host: EngineHost) -> None:
    events: list[Event] = []
    gone, made = host.run([job(id="a"), job(seed=2, id="b")], events.append, lambda: {"a"})
    assert isinstance(gone, Failed) and gone.reason == "cancelled"
    pictures([made])
    assert {each.job for each in events} == {"b"}


def test_nothing_that_a_client_wrote_is_in_log_failure_file_or_provenance(
    host: EngineHost, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    own = policy(
        "max",
        name="my elephant policy",
        concepts=("inappropriate", {"text": "big elephants"}),
        filters=({"use": "raises", "on_error": "allow"},),
        prompt_filters=({"use": "prompt-terms", "options": {"terms": "elephant"}, "on_flag": "flag"},),
    )
    failing = policy(filters=("raises",))
    shown, withheld = pictures(run(host, job(SECRET, own=own), job(SECRET, 2, failing)))
    assert shown.account["action"] == "flag" and withheld.account["action"] == "block"
    assert "cannot read '[prompt]'" in caplog.text
    chunks = Image.open(BytesIO(shown.png or b"")).text
    assert chunks["seed"] == "1" and chunks["policy_digest"] == own.digest
    for text in (
        caplog.text,
        json.dumps(chunks),
        json.dumps(shown.provenance),
        json.dumps(withheld.provenance),
    ):
        assert "elephant" not in text and "48151623" not in text
    assert shown.provenance["model"] == "playground"
    assert shown.provenance["providers"]["filter raises"] == "test 0"


def test_a_picture_whose_file_cannot_be_signed_is_withheld(host: EngineHost) -> None:
    blocked, failed = run(
        host,
        job(own=policy(marks=("cannot-sign",)), id="block"),
        job(own=policy(marks=("cannot-sign",), on_error="raise"), id="raise"),
    )
    (answer,) = pictures([blocked])
    assert answer.account["action"] == "block" and "the key is gone" in answer.account["errors"][0]["error"]
    assert not pixels(answer.png).any()
    assert isinstance(failed, Failed) and failed.reason == "failed"


def test_heat_and_curves_explain_a_shown_picture(host: EngineHost) -> None:
    guided, plain = pictures(run(host, job(own=policy("max"), explain=True), job(explain=True, id="off")))
    (curves,) = guided.curves.values()
    assert len(curves["norm"]) == len(curves["relevance"]) == STEPS
    assert max(norm or 0 for norm in curves["norm"]) > 0
    assert pixels(guided.heat).shape == (256, 256, 3)
    assert plain.heat is None and not plain.curves


@pytest.mark.parametrize("action", ["black", "drop", "replace"])
def test_there_is_no_heat_over_a_picture_that_is_not_shown(host: EngineHost, action: str) -> None:
    own = policy("max", filters=({"use": "flags", "on_flag": action},))
    (answer,) = pictures(run(host, job(own=own, explain=True)))
    assert answer.heat is None and answer.account["action"] == action
    assert (answer.png is None) == (action == "drop")


def test_the_unguided_picture_is_that_of_the_same_seed_and_its_filters_only_record(host: EngineHost) -> None:
    own = policy("max", filters=({**GLYPHS, "on_flag": "drop"},))
    guided, off = pictures(run(host, job(CLOWN, 4, own, unguided=True, id="a"), job(CLOWN, 4, id="off")))
    assert guided.unguided_account is not None
    assert guided.unguided_account["flagged"] and guided.unguided_account["action"] == "flag"
    assert np.abs(pixels(guided.unguided) - pixels(off.png)).max() <= CLOSE
    assert off.unguided is None and off.unguided_account is None


def test_a_prompt_that_may_not_be_drawn_is_not_drawn_unguided_either(host: EngineHost) -> None:
    own = policy("max", prompt_filters=("flags",), filters=("clean",))
    (answer,) = pictures(run(host, job(own=own, unguided=True)))
    assert answer.account["action"] == "black" and answer.unguided is None
    assert answer.unguided_account is not None and answer.unguided_account["action"] == "black"


def test_the_guided_answer_stands_if_the_unguided_call_fails(
    host: EngineHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = model_of(host).engine
    whole = engine.generate

    def only_guided(prompts: list[str], policies: Any, **arguments: Any) -> Any:
        if not policies[0].guides:
            raise RuntimeError("no more")
        return whole(prompts, policies=policies, **arguments)

    monkeypatch.setattr(engine, "generate", only_guided)
    (answer,) = pictures(run(host, job(own=policy("max"), unguided=True)))
    assert answer.account["action"] == "none" and pixels(answer.png).any()
    assert answer.unguided is None and answer.unguided_account is not None
    assert answer.unguided_account["action"] == "block" and answer.unguided_account["errors"]


def test_warming_up_says_what_cannot_be_had(host: EngineHost, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigurationError, match="no-such-filter"):
        host.warm_up([policy(filters=("no-such-filter",))])
    with (
        pytest.raises(ConfigurationError, match="/nowhere"),
        hosting(sd=ModelSettings(source="/nowhere")) as other,
    ):
        other.warm_up([])
    host.warm_up([policy("weak"), policy("max", filters=(GLYPHS, "raises"))])
    assert "'weak' cannot act in the 8 steps" in caplog.text
    assert "raises fails" in caplog.text
    assert host.sizes() == {"playground": [(64, 64)]}


def test_sizes_are_read_from_the_settings() -> None:
    assert size_of("512x768", "m") == (512, 768)
    with pytest.raises(ConfigurationError, match="WIDTHxHEIGHT"):
        size_of("512", "m")
