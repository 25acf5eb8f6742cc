"""Sweep files: rows, grid and seeds become trials; keys that depend on contents; every error at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeps import ROOT, SCORE, SWEEP

from rcdeploy.prompts.pool_builder import build_pool
from rcdeploy.sweep.plan import load_plan
from rcdeploy.sweep.protocol import formulas_in_short, protocol, sentences
from rcdeploy_runtime.errors import RcdeployError


def test_rows_grid_and_seeds_make_trials(sweep_file: Callable[..., Path]) -> None:
    text = SWEEP.replace('rows = { "without"', 'rows = { "without, random"')
    plan = load_plan(sweep_file(text + '\n[grid]\n"student.init" = ["random", "sliced"]\n'))
    assert [variant.label for variant in plan.variants] == [
        "without, random",
        "without, sliced",
        "with, random",
        "with, sliced",
    ]
    assert len({trial.key for trial in plan.trials}) == 9  # the teacher too
    assert plan.trials[0].is_teacher
    trial = plan.variants[1].trials[1]
    assert (trial.recipe.student.init, trial.recipe.train.seed, trial.recipe.student.seed) == ("sliced", 1, 1)
    assert trial.recipe.cache.seed == 1
    assert trial.folder == Path(f"runs/sweeps/tiny-{trial.key[:8]}")
    assert plan.trial(trial.key) is plan.trial(trial.key[:8]) is trial
    with pytest.raises(RcdeployError, match="has no trial nothing"):
        plan.trial("nothing")


def test_each_seed_has_its_own_cache_and_start_noise(sweep_file: Callable[..., Path]) -> None:
    plan = load_plan(sweep_file())
    first, second = plan.variants[0].trials
    assert [t.recipe.cache.seed for t in (first, second)] == [0, 1]
    assert plan.noise_seed(plan.teacher) is plan.noise_seed(first) is None, "as the score file says"
    assert plan.trial_spec(first) == plan.evaluation_spec
    assert plan.trial_spec(second).first_noise_seed - plan.trial_spec(first).first_noise_seed >= 2**24
    assert plan.evaluation_folder(first).name == plan.evaluation_folder(plan.teacher).name
    assert plan.evaluation_folder(first).name != plan.evaluation_folder(second).name
    other = load_plan(sweep_file(SWEEP.replace("[0, 1]", "[1, 0]")))
    assert [t.key for t in other.variants[0].trials] == [second.key, first.key]

    shared = load_plan(sweep_file(SWEEP.replace("title =", "shared_cache = true\ntitle =")), overrides=["cache.seed=5"])
    assert [t.recipe.cache.seed for t in shared.variants[0].trials] == [5, 5]
    assert len({shared.evaluation_folder(t).name for t in shared.trials}) == 1


def test_files_of_a_seed(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    text = SWEEP.replace('"conditioning.probability" = "none"', '"prompts.pool" = ["pool_{seed}.txt"]')
    file = sweep_file(text)
    with pytest.raises(RcdeployError, match="has 2 errors"):
        load_plan(file)
    for seed in (0, 1):
        (tmp_path / f"pool_{seed}.txt").write_text(f"prompt {seed}\n")
    trials = load_plan(file).variants[0].trials
    assert [Path(t.recipe.prompts.pool[0]).name for t in trials] == ["pool_0.txt", "pool_1.txt"]


def test_a_label_names_what_a_number_is_of(sweep_file: Callable[..., Path]) -> None:
    text = SWEEP.split("[[rows]]")[0] + '[grid]\n"prompts.paired_count" = [4, 8]\n'
    assert [variant.label for variant in load_plan(sweep_file(text)).variants] == ["paired count 4", "paired count 8"]


def test_tables_share_trials_and_a_tree_that_moves_keeps_them(
    sweep_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = load_plan(sweep_file())
    other = load_plan(sweep_file(SWEEP.replace('"with"', '"as always"').replace("[0, 1]", "[1]"), "other"))
    assert other.variants[1].trials[0].key == plan.variants[1].trials[1].key
    keys = [c.key for c in plan.trials]
    same = ["train.log_every=3", "train.max_steps=6", "evaluate.seed=5"]  # 6 as before; the others change no weight
    assert [c.key for c in load_plan(sweep_file(), overrides=same).trials] == keys
    longer = load_plan(sweep_file(), overrides=["train.max_steps=7"])
    assert {c.key for c in longer.trials} & set(keys) == {plan.teacher.key}
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("table.toml", "tiny.toml", "score.toml", "paired.txt", "further.txt"):
        shutil.copy(name, moved)
    shutil.copytree("judge", moved / "judge")
    keys_by_place = []
    for place in (Path.cwd(), moved):
        shutil.copytree(plan.teacher.recipe.teacher.path, place / "tiny")
        monkeypatch.chdir(place)
        keys_by_place.append([c.key for c in load_plan(Path("table.toml"), overrides=["teacher.path=tiny"]).trials])
    assert keys_by_place[0] == keys_by_place[1]


def test_a_trials_key_depends_on_contents_not_on_places(
    sweep_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [trial.key for trial in load_plan(sweep_file()).trials]
    (tmp_path / "elsewhere").mkdir()
    for name in ("table.toml", "tiny.toml", "score.toml", "paired.txt", "further.txt", "judge"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert [trial.key for trial in load_plan(Path("elsewhere/table.toml")).trials] == keys
    monkeypatch.chdir(tmp_path / "elsewhere")
    plan = load_plan(Path("table.toml"))
    assert [trial.key for trial in plan.trials] == keys
    Path("further.txt").write_text("another prompt\n")
    assert {trial.key for trial in load_plan(Path("table.toml")).trials} & set(keys) == {plan.teacher.key}


def test_folders_that_version_0_1_named_by_paths_go_on(sweep_file: Callable[..., Path]) -> None:
    file = sweep_file()
    trial = load_plan(file).trials[1]
    assert trial.path_key != trial.key
    previous = Path(f"runs/sweeps/tiny-{trial.path_key[:8]}")
    previous.mkdir(parents=True)
    assert load_plan(file).trials[1].folder == previous
    trial.folder.mkdir()
    assert load_plan(file).trials[1].folder == trial.folder


def test_a_missing_file_is_an_error_with_the_command_that_makes_it(sweep_file: Callable[..., Path]) -> None:
    text = SWEEP.replace('"conditioning.probability" = "none"', '"prompts.pool" = ["pool"]')
    file = sweep_file(text.replace("title =", 'prepare = "python make_pool.py"\ntitle ='))
    with pytest.raises(RcdeployError, match="python make_pool.py") as raised:
        load_plan(file)
    assert "prompts.pool" in raised.value.errors[0]


def test_shipped_tables_that_need_data_name_their_command(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "recipes/tables", tmp_path / "recipes/tables")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("table_1", "table_2", "table_3", "table_b"):
        with pytest.raises(RcdeployError, match="made by: python examples/table_data.py"):
            load_plan(tmp_path / f"recipes/tables/{name}.toml")


def test_another_recipe_and_overrides_come_under_a_variants_own_keys(
    sweep_file: Callable[..., Path], recipe_file: Callable[..., Path]
) -> None:
    file, another = sweep_file(), recipe_file("another", train={"max_steps": 3})
    plan = load_plan(file, recipe=another, overrides=["conditioning.probability=linear"])
    assert [variant.trials[0].recipe.conditioning.probability for variant in plan.variants] == ["none", "linear"]
    assert {c.recipe.train.max_steps for c in plan.trials} == {3}
    assert plan.variants[0].trials[0].folder.name.startswith("another-")


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (("seeds =", "seedz ="), ["seedz: no such key; did you mean 'seeds'?"]),
        (('title = "a table"', ""), ["title: this key is needed"]),
        (("[0, 1]", "[1, 1]"), ["seeds: [1, 1] has one twice"]),
        (("conditioning.probability", "conditioning.probabilty"), ["no such key; did you mean 'probability'?"]),
        (("conditioning.probability", "train.seed"), ["rows, without: train.seed is set by `seeds`"]),
        (("conditioning.probability", "cache.seed"), ["rows, without: cache.seed is set by `seeds`"]),
        (('name = "with"', 'name = "without"'), ["two are named 'without'"]),
        (('"without" = [2.5]', '"withuot" = [2.5, 1]'), ["withuot: 2 values for 1 columns"]),
        (('"without" = [2.5]', '"withuot" = [2.5]'), ["no variant is called 'withuot'"]),
        (("tiny.toml", "tinny.toml"), ["did you mean", "tiny.toml"]),
        (("score.toml", "scores.toml"), ["there is no score file", "score.toml"]),
        (('title = "a table"', "title = a table"), ["cannot be read as TOML"]),
    ],
)
def test_errors_of_a_sweep_file(sweep_file: Callable[..., Path], change: tuple[str, str], messages: list[str]) -> None:
    assert change[0] in SWEEP
    with pytest.raises(RcdeployError) as raised:
        load_plan(sweep_file(SWEEP.replace(*change)))
    assert all(message in str(raised.value) for message in messages), str(raised.value)


def test_all_errors_at_once(sweep_file: Callable[..., Path]) -> None:
    rows = '[[rows]]\nname = "{}"\nset = {{ "{}" = {} }}\n'
    wrong = rows.format("a", "train.max_stepz", 1) + rows.format("b", "loss.feature", -1) + rows.format("c", "nn.x", 1)
    with pytest.raises(RcdeployError, match="has 3 errors") as raised:
        load_plan(sweep_file(SWEEP.split("[[rows]]")[0] + wrong))
    assert "'max_steps'" in str(raised.value)
    assert "loss.feature" in str(raised.value)
    assert "no section 'nn'" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("further.txt", "nothing.txt"), "nothing.txt does not exist"),
        (('"judge"\n', '"nobody"\n'), "nobody does not exist"),
        (("count = 12", "count = 0"), "count: "),
        (("count = 12", 'count = 12\nshow = ["al item"]'), "'al item' begins with none of the parts all, shoes"),
        (("shoes?", "shoes("), "is no regular expression"),
    ],
)
def test_errors_of_a_score_file(sweep_file: Callable[..., Path], change: tuple[str, str], message: str) -> None:
    assert change[0] in SCORE
    with pytest.raises(RcdeployError) as raised:
        load_plan(sweep_file(score=SCORE.replace(*change)))
    assert message in str(raised.value)


def test_the_shipped_tables_are_whole(tmp_path: Path) -> None:
    """Every one of recipes/tables, with what examples/table_data.py would make."""
    tables = tmp_path / "recipes/tables"
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    pools = [f"pool_{name}_{seed}" for name in ("paired", "eighth", "half", "unseen") for seed in range(3)]
    for name in ("real_pictures", *pools):
        (tmp_path / "build/tables" / name).mkdir(parents=True)
    (tmp_path / "build/tables/templates.txt").touch()
    plans = {f.stem: load_plan(f) for f in sorted(tables.glob("*.toml")) if f.stem not in ("fashion", "judge")}
    assert {"table_1", "table_2", "table_3", "table_b", "table_c", "table_e", "fig_7"} <= set(plans)
    shared = {trial.key for trial in plans["table_c"].trials}
    for name in ("table_1", "table_2", "table_b", "table_e", "fig_7"):
        assert len({trial.key for trial in plans[name].trials} & shared) >= 1 + 2 * 2, name  # the teacher, two variants
        assert plans[name].images_digest == plans["table_c"].images_digest
    for name in ("table_c", "table_e", "fig_7", "quickstart_p_of_t"):
        record = protocol(plans[name])
        assert (record["captions"], record["captions_in_training"], record["shared_cache"]) == (384, 0, False), name


def test_the_protocol_names_p_of_t_and_texts_that_are_scored_and_trained(sweep_file: Callable[..., Path]) -> None:
    record = protocol(load_plan(sweep_file()))
    scored = {" ".join(line.split()) for line in Path("further.txt").read_text().splitlines()}
    assert record["captions_in_training"] == record["captions"] <= len(scored), "the tiny recipe's pool is further.txt"
    text = sentences(record, seeds=2)
    assert text.startswith('p(t) is 0 in "without"; exp(-5 (1 - t/T)) in "with".')
    assert formulas_in_short(record) == "p(t): 0 or exp(-5 (1 - t/T))"
    assert "as the variants" in formulas_in_short({"p_of_t": dict(zip("abcd", "wxyz", strict=True))})
    assert f"{record['captions']} of the {record['captions']} scored captions are among" in text
    assert "Each seed has a latent cache" in text
    assert "Each seed" not in sentences(record, seeds=1)
    assert "narrower" in sentences({**record, "shared_cache": True}, seeds=2)

    pool = build_pool([Path("paired.txt")], Path("pool"))
    other = load_plan(sweep_file(SWEEP.replace("[[rows]]", '[set]\n"prompts.pool" = ["pool"]\n\n[[rows]]', 1)))
    paired = {" ".join(line.split()) for line in Path("paired.txt").read_text().splitlines()}
    assert protocol(other)["captions_in_training"] == len(scored & (paired | set(pool))) < record["captions"]
    assert "None of the" in sentences({**record, "captions_in_training": 0}, seeds=1)
    wordnet = load_plan(sweep_file(), overrides=['prompts.pool=["wordnet"]'])
    assert protocol(wordnet)["captions_in_training"] is None
    assert "texts of training" not in sentences(protocol(wordnet), seeds=1)
