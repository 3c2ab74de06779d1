from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_pipelines import WIDTH

from sldcore import builtin
from sldcore.catalogue import Catalogue, Entry, Provider, using
from sldcore.concepts import load_pack
from sldcore.contributions import ConceptProvider
from sldcore.documents import to_yaml
from sldcore.encoding import ConceptEncoder, RunConcepts, UsedRow
from sldcore.errors import ConceptError
from sldcore.families.base import TextOptions
from sldcore.families.sd import StableDiffusion
from sldcore.policy import GuidanceSpec, SafetyPolicy, Window

ARGUMENT = "encoder_hidden_states"
Prepare = Callable[..., RunConcepts]


@pytest.fixture
def prepare(pipe: Any, tmp_path: Path) -> Prepare:
    """Encodes the uses of policies; ``tensors`` are those of ``mine/a``, whose prefix is ``an image showing``."""

    def write(tensors: dict[str, torch.Tensor], embedding: dict[str, object]) -> Path:
        save_file(tensors, tmp_path / "e.safetensors")
        reference = {"file": "e.safetensors", "family": "stable-diffusion", "width": WIDTH, **embedding}
        concepts = [{"id": "a", "text": "smoke", "embedding": reference}, {"id": "b", "text": "smoke"}]
        pack = {"id": "mine", "version": "1", "title": "Mine", "licence": "MIT", "concepts": concepts}
        (tmp_path / "mine.yaml").write_text(to_yaml({**pack, "prefix": "an image showing"}))
        return tmp_path / "mine.yaml"

    def prepared(
        *policies: list[Any],
        tensors: dict[str, torch.Tensor] | None = None,
        encoder: Any = None,
        **embedding: object,
    ) -> RunConcepts:
        entries = builtin.entries()
        if tensors is not None:
            path = write(tensors, embedding)
            provider = ConceptProvider(name="mine", load=lambda: load_pack(path))
            entries.append(Entry(provider, Provider("mine", "mine", "1")))
        made = [
            SafetyPolicy.model_validate({"name": str(index), "guidance": GuidanceSpec(), "concepts": uses})
            for index, uses in enumerate(policies)
        ]
        with using(Catalogue(entries)):
            return (encoder or ConceptEncoder(pipe, StableDiffusion())).prepare(made, TextOptions())

    return prepared


def states_of(concepts: RunConcepts) -> torch.Tensor:
    """Hidden states of all rows, [K, L, D]."""
    return torch.cat([each[ARGUMENT] for each in concepts.arguments])


def encoded(pipe: Any, text: str) -> torch.Tensor:
    return StableDiffusion().encode(pipe, [text], TextOptions())[0][ARGUMENT]


def words(pipe: Any, text: str) -> torch.Tensor:
    """The text encoder's vectors of a text's tokens, [n, D]."""
    tokens = pipe.tokenizer(text).input_ids[1:-1]
    return pipe.text_encoder.get_input_embeddings().weight[tokens].detach().clone()


# --- rows -----------------------------------------------------------------------------------------------------


def test_a_text_that_two_policies_weigh_differently_is_one_row(prepare: Prepare) -> None:
    window = {"unit": "fraction", "stop": 0.5}
    concepts = prepare([{"text": "blood", "weight": 2}], [{"text": "blood", "strength": 3, "window": window}])
    assert [row.text for row in concepts.rows] == ["blood"]
    first, second = concepts.used.values()
    name = concepts.rows[0].concept
    assert first == (UsedRow(0, 2.0, 1.0, None, name),)
    assert second == (UsedRow(0, 1.0, 3.0, Window(unit="fraction", stop=0.5), name),)


def test_parts_of_a_long_concept_share_its_weight_strength_and_window(prepare: Prepare) -> None:
    long = ", ".join(["blood"] * 60)
    (used,) = prepare([{"text": long, "weight": 2, "strength": 3, "window": {"start": 1}}]).used.values()
    assert [each.row for each in used] == [0, 1]
    assert {(each.weight, each.strength, each.window) for each in used} == {(2.0, 3.0, Window(start=1))}


# --- hidden states --------------------------------------------------------------------------------------------


def test_hidden_states_are_used_as_they_are(prepare: Prepare, pipe: Any) -> None:
    states = encoded(pipe, "a blue cat in the snow")[0]
    concepts = prepare(["mine/a"], tensors={"any": states}, kind="hidden-states")
    assert torch.equal(states_of(concepts), states[None])
    assert concepts.rows[0].text == "an image showing smoke"


def test_an_embedding_and_its_text_are_two_rows(prepare: Prepare, pipe: Any) -> None:
    states = encoded(pipe, "a blue cat in the snow")[0]
    concepts = prepare(["mine/*"], tensors={ARGUMENT: states}, kind="hidden-states")
    assert [row.id for row in concepts.rows] == ["mine/a", "mine/b"]
    assert torch.equal(states_of(concepts)[1:], encoded(pipe, "an image showing smoke"))


def test_fewer_states_are_repeated_to_the_window(prepare: Prepare) -> None:
    states = torch.randn(11, WIDTH, generator=torch.Generator().manual_seed(0))
    concepts = prepare(["mine/a"], tensors={"any": states}, kind="hidden-states")
    assert torch.equal(states_of(concepts)[0], states.repeat(7, 1))


def test_states_take_the_pipeline_s_type(prepare: Prepare, pipe: Any) -> None:
    pipe.to(torch.bfloat16)
    concepts = prepare(["mine/a"], tensors={"any": torch.ones(77, WIDTH)}, kind="hidden-states")
    assert states_of(concepts).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("tensors", "changes", "complaint"),
    [
        ({"a": torch.ones(10, WIDTH)}, {}, r"is \[10, 32\], and this pipeline takes \[77, 32\]"),
        ({"a": torch.ones(78, WIDTH)}, {}, r"is \[78, 32\], and this pipeline takes \[77, 32\]"),
        ({"a": torch.ones(77, 64)}, {"width": 64}, r"is \[77, 64\], and this pipeline takes \[77, 32\]"),
        ({"a": torch.ones(77, WIDTH), "b": torch.ones(8)}, {}, f"holds a, b, and a concept needs {ARGUMENT}"),
        ({"a": torch.ones(77, WIDTH)}, {"family": "sdxl"}, "made for family 'sdxl', and this pipeline is of"),
        (
            {"a": torch.ones(2, 64)},
            {"kind": "tokens", "width": 64},
            "width 64, and this pipeline's text encoder has 32",
        ),
        ({"a": torch.ones(73, WIDTH)}, {"kind": "tokens"}, "73 tokens and its prefix take 78 tokens"),
    ],
)
def test_an_embedding_that_does_not_fit_the_pipeline_is_an_error(
    prepare: Prepare, tensors: dict[str, torch.Tensor], changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConceptError, match=complaint):
        prepare(["mine/a"], tensors=tensors, **{"kind": "hidden-states", **changes})


def test_states_that_overflow_the_pipeline_s_type_are_an_error(prepare: Prepare, pipe: Any) -> None:
    pipe.to(torch.float16)
    with pytest.raises(ConceptError, match="NaN or Inf"):
        prepare(["mine/a"], tensors={"any": torch.full((77, WIDTH), 1e30)}, kind="hidden-states")


# --- tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["knight", "a blue cat in the snow"])
def test_tokens_that_are_words_are_encoded_as_these_words_behind_the_prefix(
    prepare: Prepare, pipe: Any, text: str
) -> None:
    concepts = prepare(["mine/a"], tensors={"any": words(pipe, text)}, kind="tokens")
    expected = encoded(pipe, f"an image showing {text}")
    torch.testing.assert_close(states_of(concepts), expected, rtol=0, atol=1e-6)


def test_one_vector_without_a_dimension_of_tokens_is_one_token(prepare: Prepare, pipe: Any) -> None:
    vector = words(pipe, "knight")[0]
    concepts = prepare(["mine/a"], tensors={"any": vector}, kind="tokens")
    expected = encoded(pipe, "an image showing knight")
    torch.testing.assert_close(states_of(concepts), expected, rtol=0, atol=1e-6)


def test_as_many_tokens_as_the_window_holds_are_taken(prepare: Prepare) -> None:
    concepts = prepare(["mine/a"], tensors={"any": torch.ones(72, WIDTH)}, kind="tokens")
    assert states_of(concepts).shape == (1, 77, WIDTH)


def test_encoding_tokens_leaves_pipeline_and_tokenizer_as_they_were(prepare: Prepare, pipe: Any) -> None:
    family = StableDiffusion()
    weights = deepcopy(pipe.text_encoder.state_dict())
    state, vocabulary = family.encoder_state(pipe), dict(pipe.tokenizer.get_vocab())
    before = encoded(pipe, "a red knight")
    prepare(["mine/a"], tensors={"any": torch.ones(2, WIDTH)}, kind="tokens")
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks
    assert family.encoder_state(pipe) == state
    assert pipe.tokenizer.get_vocab() == vocabulary
    assert all(torch.equal(value, weights[name]) for name, value in pipe.text_encoder.state_dict().items())
    assert torch.equal(encoded(pipe, "a red knight"), before)


def test_the_text_encoder_is_restored_if_encoding_fails(prepare: Prepare, pipe: Any) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("out of memory")

    handle = pipe.text_encoder.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        prepare(["mine/a"], tensors={"any": torch.ones(2, WIDTH)}, kind="tokens")
    handle.remove()
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks


def test_a_text_encoded_meanwhile_in_another_thread_keeps_its_words(prepare: Prepare, pipe: Any) -> None:
    """Two pipelines may share a text encoder; the other one encodes while our vectors are in place."""
    expected, found = encoded(pipe, "a a a a a a"), []

    def other(*arguments: Any) -> None:
        handle.remove()
        thread = Thread(target=lambda: found.append(encoded(pipe, "a a a a a a")))
        thread.start()
        thread.join()

    handle = pipe.text_encoder.register_forward_pre_hook(other)
    prepare(["mine/a"], tensors={"any": torch.ones(2, WIDTH)}, kind="tokens")
    assert torch.equal(found[0], expected)


def test_a_text_encoder_that_does_not_look_words_up_cannot_take_tokens(prepare: Prepare, pipe: Any) -> None:
    words = pipe.text_encoder.get_input_embeddings()
    (holder,) = (each for each in pipe.text_encoder.modules() if words in each.children())
    forward = holder.forward

    def without_hooks(input_ids: torch.Tensor, **others: Any) -> torch.Tensor:
        others["inputs_embeds"] = torch.nn.functional.embedding(input_ids, words.weight)
        result: torch.Tensor = forward(**others)
        return result

    holder.forward = without_hooks
    with pytest.raises(ConceptError, match="cannot take token embeddings"):
        prepare(["mine/a"], tensors={"any": torch.ones(2, WIDTH)}, kind="tokens")


def test_a_family_that_cannot_encode_tokens_says_so(prepare: Prepare, pipe: Any) -> None:
    class Plain:
        """The family without ``encode_tokens``."""

        def __getattr__(self, name: str) -> Any:
            if name == "encode_tokens":
                raise AttributeError(name)
            return getattr(StableDiffusion(), name)

    encoder = ConceptEncoder(pipe, Plain())  # type: ignore[arg-type]
    with pytest.raises(
        ConceptError, match="family 'stable-diffusion' cannot encode; export it as hidden-states"
    ):
        prepare(["mine/a"], tensors={"any": torch.ones(2, WIDTH)}, encoder=encoder, kind="tokens")


def test_another_embedding_of_the_same_text_is_encoded_anew(prepare: Prepare, pipe: Any) -> None:
    encoder = ConceptEncoder(pipe, StableDiffusion())
    made = [
        prepare(
            ["mine/a"], tensors={"any": torch.full((77, WIDTH), value)}, encoder=encoder, kind="hidden-states"
        )
        for value in (1.0, 2.0)
    ]
    assert [float(states_of(concepts).max()) for concepts in made] == [1.0, 2.0]
