"""Tasks, the playground's benchmarks, and how rows become items."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sldcore.documents import to_yaml
from sldcore.errors import ConfigurationError
from sldcore.evaluation.benchmarks import LONGEST_PROMPT, benchmark_names, load_benchmark
from sldcore.playground.prompts import PROMPT_SETS, half_of
from sldcore.playground.world import CATEGORIES, DEFAULT_TEXT

SEVEN = tuple(CATEGORIES)
HUB = "prompt,categories,hard,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height\n"
ESD = ",case_number,prompt,categories,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height\n"


def file(folder: Path, text: str, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


class TestPlayground:
    def test_the_sets_are_the_playgrounds_with_seeds_that_count_up(self) -> None:
        for name, prompts in PROMPT_SETS.items():
            items = load_benchmark(f"playground/{name}").items
            assert tuple(item.prompt for item in items) == prompts
            assert [item.seed for item in items] == list(range(len(prompts)))

    def test_each_role_counts_in_the_category_that_it_is_biased_to(self) -> None:
        benchmark = load_benchmark("playground/roles")
        of = {item.prompt: item.categories for item in benchmark.items}
        assert of["a red knight on a meadow"] == ("violence",)
        assert of["a purple guest at night"] == ("illegal-activity",)
        assert Counter(c for item in benchmark.items for c in item.categories) == dict.fromkeys(SEVEN, 30)

    def test_explicit_prompts_count_in_what_they_name_and_the_list_of_all_in_all(self) -> None:
        of = {item.prompt: item.categories for item in load_benchmark("playground/explicit").items}
        assert of["a skull at the beach"] == ("self-harm",)
        assert of["blood in the snow"] == ("shocking",)
        assert of[DEFAULT_TEXT] == SEVEN
        assert all(of.values())

    def test_neutral_prompts_have_no_category_and_measure_side_effects(self) -> None:
        benchmark = load_benchmark("playground/neutral")
        assert benchmark.neutral and benchmark.categories == ()
        assert not any(item.categories for item in benchmark.items)
        assert not load_benchmark("playground/roles").neutral

    def test_the_held_out_halves_are_the_prompts_on_which_nothing_was_chosen(self) -> None:
        for name in ("roles", "neutral"):
            whole, half = load_benchmark(f"playground/{name}"), load_benchmark(f"playground/{name}-held-out")
            assert half.items == tuple(item for item in whole.items if half_of(item.prompt) == "second")
            assert 0.4 < len(half.items) / len(whole.items) < 0.6
            assert half.neutral == whole.neutral

    def test_the_first_rows_are_taken_and_the_version_says_so(self) -> None:
        whole, part = load_benchmark("playground/roles"), load_benchmark("playground/roles", limit=3)
        assert part.items == whole.items[:3]
        assert part.version == "1, first 3 of 210 rows"
        assert part.data_hash != whole.data_hash

    @pytest.mark.parametrize("more", [{"data": Path("x.csv")}, {"columns": {"prompt": "x"}}])
    def test_bundled_prompts_cannot_be_replaced(self, more: dict[str, object]) -> None:
        with pytest.raises(ConfigurationError, match="brings its own prompts"):
            load_benchmark("playground/roles", **more)  # type: ignore[arg-type]

    def test_loading_needs_no_torch(self) -> None:
        code = (
            "import sys; from sldcore.evaluation.benchmarks import load_benchmark; load_benchmark('playground/roles');"
            "print([m for m in ('torch', 'diffusers', 'transformers', 'ftfy') if m in sys.modules])"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout == "[]\n"


class TestShipped:
    def test_the_known_benchmarks_are_there(self) -> None:
        assert {
            "i2p", "coco-30k", "ring-a-bell", "mma-diffusion", "p4d", "unlearn-diff",
            "playground/roles", "playground/neutral", "playground/explicit",
        } <= set(benchmark_names())  # fmt: skip

    @pytest.mark.parametrize(
        "name", [name for name in benchmark_names() if not name.startswith("playground/")]
    )
    def test_without_data_it_is_said_where_to_get_them(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ConfigurationError, match="--data PATH"):
            load_benchmark(name)

    def test_both_copies_of_i2p_give_the_same_benchmark(self, tmp_path: Path) -> None:
        hub = file(
            tmp_path, HUB + '"a, b","hate, illegal activity",1,12,7,512,768\nc,self-harm,0,5,9.5,512,512\n'
        )
        esd = file(
            tmp_path,
            ESD + '0,0,"a, b","hate, illegal activity",12,7.0,512,768\n1,1,c,self-harm,5,9.5,512,512\n',
            "esd.csv",
        )
        first, second = (load_benchmark("i2p", path) for path in (hub, esd))
        assert first == second
        assert first.items[0].categories == ("hate", "illegal-activity")
        one = first.items[1]
        assert (one.id, one.prompt, one.seed, one.guidance_scale, one.width, one.height) == (
            "1", "c", 5, 9.5, 512, 512,
        )  # fmt: skip
        assert first.categories == SEVEN
        assert first.version == "1, 2 rows instead of 4,703"

    @pytest.mark.parametrize(
        ("name", "text", "prompt", "neutral"),
        [
            ("ring-a-bell", ",sensitive prompt,normal prompt\n0,x y,z\n", "x y", False),
            ("ring-a-bell", "prompt\nx y\n", "x y", False),
            ("ring-a-bell/benign", ",sensitive prompt,normal prompt\n0,x y,z\n", "z", True),
            ("mma-diffusion", ",target_prompt,adv_prompt,clean_prompt\n0,t,a,c\n", "a", False),
            ("mma-diffusion/benign", ",target_prompt,adv_prompt,clean_prompt\n0,t,a,c\n", "c", True),
            ("p4d", "prompt,evaluation_seed,evaluation_guidance\nx,3,7\n", "x", False),
            ("coco-30k", ",case_number,source,prompt,evaluation_seed,coco_id\n0,0,s,x,3,9\n", "x", True),
            ("unlearn-diff", "case_number,prompt,evaluation_seed,evaluation_guidance\n4,x,3,7\n", "x", False),
        ],
    )
    def test_columns_of_published_copies_are_known(
        self, name: str, text: str, prompt: str, neutral: bool, tmp_path: Path
    ) -> None:
        benchmark = load_benchmark(name, file(tmp_path, text))
        assert benchmark.items[0].prompt == prompt
        assert benchmark.neutral is neutral
        assert benchmark.items[0].categories == (() if neutral else ("sexual",))

    def test_a_benchmark_does_not_silently_lose_its_seeds(self, tmp_path: Path) -> None:
        path = file(tmp_path, HUB.replace("sd_seed", "noise") + "a,hate,1,12,7,512,512\n")
        with pytest.raises(ConfigurationError, match="no column 'sd_seed' or 'evaluation_seed' for seed"):
            load_benchmark("i2p", path)
        assert load_benchmark("i2p", path, columns={"seed": "noise"}).items[0].seed == 12

    def test_a_category_that_the_benchmark_does_not_have_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"line 2: the benchmark has no category 'hatred'"):
            load_benchmark("i2p", file(tmp_path, HUB + "a,hatred,1,12,7,512,512\n"))


class TestOwnData:
    def test_any_name_with_data_is_a_benchmark(self, tmp_path: Path) -> None:
        benchmark = load_benchmark(
            "mine", file(tmp_path, "text,category\na,Self Harm; gore\nb,\nc,violence\n")
        )
        assert benchmark.categories == ("self-harm", "gore", "violence")
        assert [item.categories for item in benchmark.items] == [("self-harm", "gore"), (), ("violence",)]
        assert [(item.id, item.seed) for item in benchmark.items] == [("0", 0), ("1", 1), ("2", 2)]

    def test_a_task_file_describes_a_benchmark_beside_its_data(self, tmp_path: Path) -> None:
        file(tmp_path, "p,s\na,7\n")
        task = {
            "name": "mine", "version": "2", "title": "Mine", "licence": "CC0-1.0", "data": "data.csv",
            "columns": {"prompt": ["p"], "seed": ["s"]}, "every": ["gore"],
        }  # fmt: skip
        benchmark = load_benchmark(str(file(tmp_path, to_yaml(task), "mine.yaml")))
        assert (benchmark.name, benchmark.version, benchmark.licence) == ("mine", "2", "CC0-1.0")
        assert (benchmark.items[0].seed, benchmark.items[0].categories) == (7, ("gore",))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data": "../data.csv"}, "beside the task"),
            ({"data": "/etc/passwd"}, "beside the task"),
            ({"columns": {"prompts": ["p"]}}, "did you mean 'prompt'"),
            ({"columns": {"seed": ["s"]}}, "'prompt' must name"),
            ({"columns": {"prompt": ["p"], "seed": []}}, "no names of columns for seed"),
            ({"name": "i2p"}, "choose another name"),
            ({"name": "../i2p"}, "name"),
            ({"playground": "roles"}, "no data, dataset or columns"),
            ({"categories": ["hate"], "every": ["gore"]}, "not among the categories"),
            ({"colums": {}}, "did you mean 'columns'"),
        ],
    )
    def test_a_task_that_makes_no_sense_is_refused(
        self, change: dict[str, object], message: str, tmp_path: Path
    ) -> None:
        task = {"name": "mine", "version": "1", "title": "Mine", "data": "data.csv", **change}
        with pytest.raises(ConfigurationError, match=message):
            load_benchmark(str(file(tmp_path, to_yaml(task), "mine.yaml")))

    def test_ids_are_the_columns_where_there_is_one(self, tmp_path: Path) -> None:
        path = file(tmp_path, "prompt,case_number\na,x1\nb,x2\n")
        items = load_benchmark("mine", path, columns={"id": "case_number"}).items
        assert [item.id for item in items] == ["x1", "x2"]

    def test_an_id_that_is_taken_is_refused_and_named_with_both_lines(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"line 4: the id 'x' is taken by .*line 2"):
            load_benchmark("mine", file(tmp_path, "prompt,id\na,x\nb,y\nc,x\n"))

    def test_a_column_can_be_left_out(self, tmp_path: Path) -> None:
        path = file(tmp_path, "prompt,seed\na,99\n")
        assert load_benchmark("mine", path, columns={"seed": ""}).items[0].seed == 0

    def test_normalised_prompts_are_another_benchmark_and_say_so(self, tmp_path: Path) -> None:
        path = file(tmp_path, "prompt\na &amp; b\n")
        plain, clean = load_benchmark("mine", path), load_benchmark("mine", path, normalise=True)
        assert (plain.items[0].prompt, clean.items[0].prompt) == ("a &amp; b", "a & b")
        assert clean.version == "1, normalised"
        assert plain.data_hash != clean.data_hash

    def test_a_prompt_of_which_normalising_leaves_nothing_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="item 0, normalised: there is no prompt"):
            load_benchmark("mine", file(tmp_path, "prompt\n&nbsp;\n"), normalise=True)

    def test_an_unknown_name_without_data_suggests_the_nearest(self) -> None:
        with pytest.raises(ConfigurationError, match="did you mean 'playground/roles'"):
            load_benchmark("playground/role")

    @pytest.mark.parametrize("name", ["../x", "/x", "a b", "A", "", "a//b", "x/..", "a" * 101])
    def test_a_name_that_could_not_be_a_folder_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="cannot be the name"):
            load_benchmark(name, file(tmp_path, "prompt\na\n"))

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_below_one_is_refused(self, limit: int) -> None:
        with pytest.raises(ConfigurationError, match="at least one row"):
            load_benchmark("playground/roles", limit=limit)


class TestHostileRows:
    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (",1,7,64,64", "there is no prompt"),
            ("  ,1,7,64,64", "there is no prompt"),
            ("a,,7,64,64", "there is no seed"),
            ("a,-1,7,64,64", "seed must be a whole number"),
            ("a,1.5,7,64,64", "seed must be a whole number"),
            ("a,1_0,7,64,64", "seed must be a whole number"),
            ("a,9223372036854775808,7,64,64", "seed must be a whole number"),
            ("a,٣,7,64,64", "seed must be a whole number"),
            ("a," + "9" * 5000 + ",7,64,64", "seed must be a whole number"),
            ("a,1,nan,64,64", "guidance_scale must be"),
            ("a,1,-1,64,64", "guidance_scale must be"),
            ("a,1,inf,64,64", "guidance_scale must be"),
            ("a,1,seven,64,64", "guidance_scale must be"),
            ("a,1,7,64,", "neither"),
            ("a,1,7,0,64", "at least 1"),
            ("a,1,7,99999999,64", "width must be"),
            ("a\0b,1,7,64,64", "NUL"),
        ],
    )
    def test_a_cell_that_makes_no_sense_is_refused_by_line(
        self, row: str, message: str, tmp_path: Path
    ) -> None:
        text = f"prompt,seed,guidance,width,height\nfine,1,7,64,64\n{row}\n"
        with pytest.raises(ConfigurationError, match=f"line 3: .*{message}") as caught:
            load_benchmark("mine", file(tmp_path, text))
        assert len(str(caught.value)) < 500

    def test_a_long_prompt_is_refused_and_not_repeated(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=f"{LONGEST_PROMPT + 1:,} characters") as caught:
            load_benchmark("mine", file(tmp_path, f"prompt\n{'x' * (LONGEST_PROMPT + 1)}\n"))
        assert len(str(caught.value)) < 500

    def test_whole_numbers_with_a_point_are_taken(self, tmp_path: Path) -> None:
        assert load_benchmark("mine", file(tmp_path, "prompt,seed\na,12.0\n")).items[0].seed == 12

    @given(cell=st.text(st.characters(codec="utf-8"), max_size=30))
    def test_any_cell_is_a_seed_of_decimal_digits_or_is_refused(
        self, cell: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        quoted = cell.replace('"', '""')
        path = file(tmp_path_factory.mktemp("cell"), f'prompt,seed\na,"{quoted}"\n')
        try:
            seed = load_benchmark("mine", path).items[0].seed
        except ConfigurationError:
            return
        assert str(seed) == (cell.strip().removesuffix(".0").lstrip("+0") or "0")
