from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_runs import MAX, OFF, plan

from sldcore import SafetyEngine
from sldcore.errors import ConfigurationError, ModelError
from sldcore.evaluation.generation import Generator, Made, store
from sldcore.evaluation.planning import Method, Plan
from sldcore.evaluation.records import Item
from sldcore.evaluation.run_folder import RunFolder
from sldcore.policy import SafetyPolicy

ITEMS = (Item("k", "a red knight on a meadow", 3, ("hate",)), Item("c", "a blue cat in the snow", 4))


def made(pipe: Any, *methods: Method, items: tuple[Item, ...] = ITEMS, **changes: Any) -> list[Made]:
    return run(pipe, plan(*methods, items=items, **changes))


def run(pipe: Any, whole: Plan) -> list[Made]:
    generator = Generator(pipe, whole)
    return [each for batch in whole.batches() for each in generator.make(batch)]


def pixels(each: Made) -> Any:
    from io import BytesIO

    assert each.picture is not None
    return np.asarray(Image.open(BytesIO(each.picture)))


def filtered(on_flag: str, threshold: float = 0.0) -> Method:
    """A policy whose filter flags every picture."""
    use = {"use": "playground-glyphs", "options": {"threshold": threshold}, "on_flag": on_flag}
    return Method(on_flag, SafetyPolicy.preset("off").replace(name=on_flag, filters=(use,)))


def test_pictures_are_those_of_the_engine(pipe: Any) -> None:
    result = SafetyEngine(pipe, "max").generate(
        [item.prompt for item in ITEMS], seed=[3, 4], num_inference_steps=3, guidance_scale=4.0
    )
    for each, image in zip(made(pipe, MAX), result.images, strict=True):
        assert np.array_equal(pixels(each), np.asarray(image))


def test_a_sample_says_what_the_report_says(pipe: Any) -> None:
    off, guided = (made(pipe, method)[0].sample for method in (OFF, MAX))
    assert (off.item, off.prompt, off.seed, off.categories) == ("k", ITEMS[0].prompt, 3, ("hate",))
    assert (off.rows, off.plain_rows, off.action, off.attempts, off.errors) == (6, 6, "none", 1, ())
    assert (guided.rows, guided.plain_rows, guided.policy_digest) == (9, 6, MAX.policy.digest)
    assert off.curves == {}
    assert [len(curve) for curve in guided.curves.values()] == [3]
    assert max(guided.curves["inappropriate"]) > 0
    assert off.seconds > 0


def test_pixels_tell_equal_pictures_from_different_ones(pipe: Any) -> None:
    first, guided, again = (made(pipe, method)[0] for method in (OFF, MAX, OFF))
    assert first.sample.pixels == again.sample.pixels != guided.sample.pixels
    assert first.sample.pixels == sha256(b"32x32\n" + pixels(first).tobytes()).hexdigest()


@pytest.mark.parametrize("action", ["black", "drop", "blur"])
def test_a_withheld_picture_is_there_as_it_was_shown_and_hashed_as_it_was_made(
    pipe: Any, action: str
) -> None:
    (plain, _), (withheld, _) = made(pipe, OFF), made(pipe, filtered(action))
    assert withheld.sample.action == action
    assert withheld.sample.pixels == plain.sample.pixels
    assert withheld.sample.errors == ()
    assert not np.array_equal(pixels(withheld), pixels(plain))
    assert (pixels(withheld).max() == 0) == (action != "blur")
    assert pixels(withheld).shape == (32, 32, 3)


def test_a_flagged_picture_that_is_shown_is_there(pipe: Any) -> None:
    flagged, plain = made(pipe, filtered("flag"))[0], made(pipe, OFF)[0]
    assert flagged.sample.action == "flag"
    assert np.array_equal(pixels(flagged), pixels(plain))


def test_of_several_attempts_the_last_one_counts(pipe: Any) -> None:
    use = {
        "use": "playground-glyphs",
        "options": {"threshold": 0.0},
        "on_flag": {"do": "regenerate", "attempts": 2, "stronger": False, "add_concept": False},
    }
    method = Method("again", SafetyPolicy.preset("off").replace(name="again", filters=(use,)))
    again, plain = made(pipe, method)[0].sample, made(pipe, OFF)[0].sample
    assert again.attempts > 1
    assert (again.errors, again.rows) == ((), plain.rows * again.attempts)
    assert again.pixels != plain.pixels
    assert again.seed == plain.seed


def test_a_picture_that_failed_is_an_error_without_file(pipe: Any) -> None:
    pipe.unet.conv_out.bias.data.fill_(float("nan"))
    for each in made(pipe, MAX):
        assert each.picture is None
        assert each.sample.file == ""
        assert each.sample.errors


def test_a_policy_that_raises_costs_its_own_picture_only(pipe: Any) -> None:
    found = made(pipe, filtered("raise"))
    assert [(each.picture, each.sample.action, len(each.sample.errors)) for each in found] == [
        (None, "raise", 1)
    ] * 2


def test_a_raise_about_one_picture_leaves_the_others(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sldcore.errors import SafetyFailure

    generate = SafetyEngine.generate

    def picky(self: Any, prompt: Any, *arguments: Any, **options: Any) -> Any:
        if ITEMS[0].prompt in prompt:
            raise SafetyFailure("no knights")
        return generate(self, prompt, *arguments, **options)

    monkeypatch.setattr(SafetyEngine, "generate", picky)
    knight, cat = made(pipe, OFF)
    assert (knight.sample.errors, knight.picture) == (("no knights",), None)
    assert (cat.sample.errors, cat.sample.item) == ((), "c")
    assert cat.picture is not None


def test_a_batch_that_does_not_fit_into_memory_says_what_to_do(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SafetyEngine, "generate", full)
    with pytest.raises(ModelError, match=r"2 pictures at once .*--batch-size"):
        made(pipe, OFF)


def test_a_negative_prompt_reaches_the_pipeline(pipe: Any) -> None:
    negative = replace(OFF, name="negative", arguments={"negative_prompt": "a blue cat in the snow"})
    expected = SafetyEngine(pipe, "off").generate(
        [item.prompt for item in ITEMS],
        seed=[3, 4],
        num_inference_steps=3,
        guidance_scale=4.0,
        negative_prompt="a blue cat in the snow",
    )
    for each, image in zip(made(pipe, negative), expected.images, strict=True):
        assert np.array_equal(pixels(each), np.asarray(image))


def test_guidance_and_size_of_an_item_are_used(pipe: Any) -> None:
    own = replace(ITEMS[0], guidance_scale=7.0, width=64, height=32)
    image = (
        SafetyEngine(pipe, "off")
        .generate(own.prompt, seed=3, num_inference_steps=3, guidance_scale=7.0, width=64, height=32)
        .images[0]
    )
    assert np.array_equal(pixels(made(pipe, OFF, items=(own,))[0]), np.asarray(image))


def test_items_that_repeat_one_another_get_samples_of_their_own(pipe: Any) -> None:
    items = (ITEMS[0], replace(ITEMS[0], id="k2", categories=("violence",)))
    first, second = made(pipe, OFF, items=items)
    assert (second.sample.item, second.sample.categories, second.picture) == ("k2", ("violence",), None)
    assert (second.sample.file, second.sample.pixels) == (first.sample.file, first.sample.pixels)


def test_what_the_pipeline_does_not_take_is_refused_before_anything_is_made(pipe: Any) -> None:
    odd = replace(OFF, name="odd", arguments={"negative_promt": "x"})
    with pytest.raises(ConfigurationError, match="takes no negative_promt, which method 'odd' needs"):
        Generator(pipe, plan(odd, items=ITEMS))


def test_a_policy_that_would_never_act_is_refused_before_anything_is_made(pipe: Any) -> None:
    with pytest.raises(ConfigurationError, match="starts at step 15"):
        Generator(pipe, plan(OFF, Method("weak", SafetyPolicy.preset("weak")), items=ITEMS))


def test_a_batch_is_recorded_after_its_pictures(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = RunFolder(tmp_path), made(pipe, OFF)
    written: list[bool] = []
    monkeypatch.setattr(
        RunFolder,
        "add_samples",
        lambda self, worker, samples: written.extend(self.picture_of(s).exists() for s in samples),
    )
    store(folder, "a", found)
    assert written == [True, True]


def test_a_disk_that_is_full_loses_nothing_but_the_batch(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sldcore.evaluation import generation

    folder, found = RunFolder(tmp_path), made(pipe, OFF, MAX)
    store(folder, "a", found[:2])

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(generation, "write_bytes_atomically", full)
        store(folder, "a", found[2:])
    assert [each.method for each in folder.samples()] == ["off", "off"]
    store(folder, "a", found[2:])
    assert len(folder.samples()) == 4
