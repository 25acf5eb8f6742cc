"""The journal of answers, and how usable answers are read."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from language_model_server import Reply, Server, completion, endpoint, paper_answers

from rcdeploy.prompts import endpoint as endpoint_module
from rcdeploy.prompts.generate import ModelPrompts, numbered_lines, prompt_request
from rcdeploy.prompts.journal import Journal, ask, cost_of
from rcdeploy.prompts.keywords import Keywords
from rcdeploy.prompts.language_model import Request
from rcdeploy.prompts.nouns import Noun, visual_by_model, yes_or_no
from rcdeploy.prompts.unseen import Concept, by_model
from rcdeploy_runtime.errors import RcdeployError


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_S", 0.02)


def test_requests_run_concurrently_and_none_is_sent_twice(server: Server, tmp_path: Path) -> None:
    server.delay_s = 0.1
    requests = [Request("", f"Generate 1 visually rich prompts focused on the noun '{i}'", 9) for i in range(12)]
    done: list[tuple[str, int, int]] = []
    with Journal(tmp_path / "j.jsonl") as journal:
        failed = ask(
            endpoint(server, concurrency=4), requests, journal, lambda *_: True, progress=lambda *n: done.append(n[:3])
        )
        assert failed == 0 and server.max_concurrent == 4 and done[-1] == ("language model", 12, 12)
        assert journal[requests[3].key("tester")].startswith("1. A 3")
    with Journal(tmp_path / "j.jsonl") as journal:
        assert cost_of("tester", requests, journal, 10).requests == 0
        ask(endpoint(server), requests, journal, lambda *_: True)
        assert len(server.bodies) == 12
        assert cost_of("another", requests, journal, 10).tokens_out == 120  # another model needs answers of its own
    assert "Generate" not in (tmp_path / "j.jsonl").read_text()


def test_malformed_answers_are_requested_again_and_not_journalled(server: Server, tmp_path: Path) -> None:
    replies = iter(["what?", "maybe", "Yes."] + ["dunno"] * 3)
    server.answer = lambda _: completion(next(replies))
    nouns, model = [Noun("cup"), Noun("jug")], endpoint(server, concurrency=1)
    with Journal(tmp_path / "j.jsonl") as journal:
        assert visual_by_model(nouns, model, journal) == ([nouns[0]], 1)
    assert [round(a["temperature"], 1) for a in server.bodies] == [0.0, 0.3, 0.6] * 2
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 1
    server.answer = paper_answers
    with Journal(tmp_path / "j.jsonl") as journal:
        assert visual_by_model(nouns, model, journal) == (nouns, 0)
    assert len(server.bodies) == 7


def test_missing_prompts_are_requested_in_rounds(server: Server, tmp_path: Path) -> None:
    def half(body: dict[str, Any]) -> Reply:
        count = int(re.findall(r"Generate (\d+)", body["messages"][-1]["content"])[0])
        return completion("\n".join(f"{i}) a jug, {count}-{i}" for i in range(1, count // 2 + 1)))

    server.answer = half
    with Journal(tmp_path / "j.jsonl") as journal:
        prompts_of = ModelPrompts(endpoint(server), journal, 16)
        assert prompts_of.request_missing([Noun("jug")]) == 0
        assert len(prompts_of(Noun("jug"))) == 8 + 4 + 2  # three rounds, each for what is missing
        assert [int(re.findall(r"\d+", u)[0]) for u in server.users()] == [16, 8, 4]
        server.answer = lambda a: completion("\n".join(f"{i}. a vase {i}" for i in range(30)))
        prompts_of.request_missing([Noun("vase")])
        assert len(prompts_of(Noun("vase"))) == 16 and len(server.bodies) == 4


def test_answers_are_read_in_any_markup() -> None:
    text = 'Sure!\n1. A red cup\n 2) "A  blue cup"\n**3.** A green cup.\n4 - a cup\n- 5: x\n1. A red cup\nEnjoy 6 cups!'
    assert numbered_lines(text) == ["A red cup", "A blue cup", "A green cup.", "a cup", "x"]
    assert [yes_or_no(t) for t in ("Yes.", " 'no', it", "**YES**", "Nothing", "", "I say yes")] == [
        True, False, True, None, None, None,
    ]  # fmt: skip


def test_verdicts_must_fit_the_sentences() -> None:
    concept = Concept("animals", Keywords(["cat"]))
    good = '[{"contains_animals": "yes", "reason": "dog"}, {"contains_animals": "No", "reason": ""}]'
    assert concept.verdicts(f"```json\n{good}\n```", 2) == ["dog", None]
    wrong = (
        good,
        '[{"contains_animals": "perhaps"}]',
        '[{"a": 1}]',
        "[]",
        "nothing",
        '{"contains_animals": "no"}',
        "[1]",
    )
    assert [concept.verdicts(answer, 1) for answer in wrong] == [None] * len(wrong)
    assert "contains_sailing_boats" in Concept("sailing boats", Keywords(["boat"])).request(["a"]).user


def test_sentences_without_a_usable_answer_do_not_pass(server: Server, tmp_path: Path) -> None:
    def flawed(body: dict[str, Any]) -> Reply:
        user = body["messages"][-1]["content"]
        return completion("cannot say") if "poison" in user else paper_answers(body)

    server.answer = flawed
    captions = [f"plain {i}" for i in range(24)] + ["poison", "my tabby"]
    with Journal(tmp_path / "j.jsonl") as journal:
        results = by_model(Concept("animals", Keywords(["cat"])), captions, endpoint(server), journal)
    assert [(drop.stage, drop.reason) if drop else None for drop in results] == [None] * 24 + [
        ("unanswered", ""), ("model", "tabby"),
    ]  # fmt: skip


def test_a_journal_survives_half_a_line_and_has_one_writer(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "j.jsonl"
    with Journal(file) as journal:
        journal.add("a", "first\nwith two lines")
        journal.add("b", "zweite – 🚀")
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"key": "c", "ans')
    with Journal(file) as journal:
        assert "c" not in journal and journal["b"] == "zweite – 🚀" and journal["a"].endswith("lines")
        journal.add("c", "third")
    assert file.read_bytes().startswith(whole) and len(file.read_text().splitlines()) == 3
    file.write_text('{"no": "key"}\n')
    with pytest.raises(RcdeployError, match=r"line 1: no line of a journal"):
        Journal(file)
    assert not list(file.parent.glob("*.claim"))


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\nfrom rcdeploy.prompts.journal import Journal\n"
        "with Journal(pathlib.Path('j.jsonl')):\n    print('open', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        with pytest.raises(RcdeployError, match=r"another process is writing j\.jsonl"):
            Journal(Path("j.jsonl"))
        other.kill()
    with Journal(Path("j.jsonl")) as journal:  # its claim outlives it, but does not count
        assert "a" not in journal


def test_prompts_are_the_papers_words() -> None:
    request = prompt_request(Noun("teapot"), 128, 0)
    assert request.system == "You are a helpful assistant."
    assert request.user.startswith(
        "Generate 128 visually rich prompts focused on the noun 'teapot', ensuring each prompt is strictly distinct "
        "and cannot overlap in style, setting, or composition. Please return only the prompts on separate lines with "
        "numbering."
    )
