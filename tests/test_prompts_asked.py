"""Language models: a server of our own with every fault, the journal, a local model; the commands that ask them."""

from __future__ import annotations

import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_prompts_wordnet import write_wordnet
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.prompts import language_model
from rcdeploy.prompts.generate import ModelPrompts, numbered_lines, prompt_request
from rcdeploy.prompts.journal import Journal, ask, cost_of
from rcdeploy.prompts.keywords import Keywords
from rcdeploy.prompts.language_model import Endpoint, Request
from rcdeploy.prompts.local_models import LocalModel
from rcdeploy.prompts.nouns import Noun, visual_by_model, yes_or_no
from rcdeploy.prompts.unseen import Concept, by_model
from rcdeploy_runtime.errors import RcdeployError

run = CliRunner().invoke
Reply = tuple[int, dict[str, str], str]
"""status, headers, body"""


def completion(text: str) -> Reply:
    message = {"role": "assistant", "content": text}
    return 200, {}, json.dumps({"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def obedient(asked: dict[str, Any]) -> Reply:
    """Answers what the three prompts of the paper ask for."""
    user = asked["messages"][-1]["content"]
    if wanted := re.match(r"Generate (\d+) visually rich prompts focused on the noun '(.*?)'", user):
        salt = len(asked["messages"][-1]["content"]) + round(10 * asked["temperature"])
        lines = [f"{i}. A {wanted[2]} number {i} of {salt}" for i in range(1, int(wanted[1]) + 1)]
        return completion("\n".join(lines))
    if noun := re.match(r"Can a text-to-image model clearly visualize '(.*?)'\?", user):
        return completion("No. It is abstract." if noun[1] in ("justice", "entity") else "**Yes**, it is a thing.")
    sentences = json.loads(user.split("Input: ", 1)[1])
    found = [re.search(r"\b(moggy|tabby)\b", sentence) for sentence in sentences]
    rows = [{"contains_animals": "yes" if m else "no", "reason": m[1] if m else ""} for m in found]
    return completion(f"Here you are:\n```json\n{json.dumps(rows)}\n```")


class Server(ThreadingHTTPServer):
    """asked: bodies in the order they came. faults: replies given before the obedient ones; None: no reply at all."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.faults: list[Reply | None] = []
        self.answer: Callable[[dict[str, Any]], Reply] = obedient
        self.delay_s, self.lock, self.at_once, self.most_at_once = 0.0, threading.Lock(), 0, 0

    def users(self) -> list[str]:
        return [asked["messages"][-1]["content"] for asked in self.asked]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        """Not on the tests' terminal."""

    def do_POST(self) -> None:
        asked, server = json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.server
        with server.lock:
            server.asked.append(asked)
            server.times.append(time.monotonic())
            server.headers.append(dict(self.headers))
            fault = server.faults.pop(0) if server.faults else "none"
            server.at_once += 1
            server.most_at_once = max(server.at_once, server.most_at_once)
        time.sleep(server.delay_s)
        with server.lock:
            server.at_once -= 1
        if fault is None:
            time.sleep(1.5)  # longer than the client waits
            return
        status, headers, body = server.answer(asked) if fault == "none" else fault
        data = body.encode()
        if self.path != "/v1/chat/completions":
            status, data = 404, b"no such path"
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            return  # the client was killed: what some of these tests do


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "FIRST_WAIT_S", 0.02)


def endpoint(server: Server, **options: Any) -> Endpoint:
    return Endpoint(server.url, "tester", **{"timeout_s": 5, **options})


HELLO = Request("Be kind.", "Generate 2 visually rich prompts focused on the noun 'cup', and so on.", 50)


def test_an_endpoint_sends_what_the_protocol_wants(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    model = endpoint(server, key_variable="MY_KEY")
    assert model.answer(HELLO).startswith("1. A cup")
    assert server.asked == [
        {
            "model": "tester",
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": HELLO.user}],
            "max_tokens": 50,
            "temperature": 0.0,
        }
    ]
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    endpoint(server).answer(HELLO)
    assert "Authorization" not in server.headers[1]
    assert Endpoint(f"{server.url}/chat/completions/", "tester").url == model.url
    with pytest.raises(RcdeployError, match=r"variable NO_KEY holds no API key\nexport NO_KEY"):
        endpoint(server, key_variable="NO_KEY")
    monkeypatch.setenv("MY_KEY", "s3c\nret")
    with pytest.raises(RcdeployError, match="MY_KEY holds no API key") as refused:
        endpoint(server, key_variable="MY_KEY")
    assert "s3c" not in str(refused.value)
    with pytest.raises(RcdeployError, match="is no address"):
        Endpoint("file:///etc/passwd", "tester")


@pytest.mark.parametrize(
    "faults",
    [
        [(500, {}, "down"), (503, {}, "still down")],
        [(429, {}, "slower"), (200, {}, "<html>not JSON"), (200, {}, '{"choices": []}')],
        [None],
    ],
    ids=["5xx", "429 and malformed", "timeout"],
)
def test_faults_that_pass_are_waited_out(server: Server, faults: list[Reply | None]) -> None:
    server.faults = [*faults]
    assert endpoint(server, timeout_s=0.5).answer(HELLO).startswith("1. A cup")
    assert len(server.asked) == len(faults) + 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(server: Server, form: str) -> None:
    server.faults = [(429, {"Retry-After": "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)}, "")]
    endpoint(server).answer(HELLO)
    assert server.times[1] - server.times[0] > 0.9


def test_what_will_not_pass_is_said_at_once(server: Server) -> None:
    server.faults = [(401, {}, "bad key")]
    with pytest.raises(RcdeployError, match=r"status 401 bad key\n.*--api-key-env"):
        endpoint(server).answer(HELLO)
    assert len(server.asked) == 1
    server.faults = [(500, {}, "down")] * 3
    with pytest.raises(RcdeployError, match=r"does not answer \(3 tries\): status 500 down"):
        endpoint(server, retries=2).answer(HELLO)


def test_requests_leave_at_the_given_rate(server: Server, tmp_path: Path) -> None:
    requests = [Request("", f"Generate 1 visually rich prompts focused on the noun '{i}'", 9) for i in range(5)]
    with Journal(tmp_path / "j.jsonl") as journal:
        ask(endpoint(server, requests_per_minute=600, concurrency=4), requests, journal, lambda *_: True)
    assert server.times[-1] - server.times[0] > 0.35  # four gaps of a tenth of a second


def test_requests_run_at_once_and_nothing_is_asked_twice(server: Server, tmp_path: Path) -> None:
    server.delay_s = 0.1
    requests = [Request("", f"Generate 1 visually rich prompts focused on the noun '{i}'", 9) for i in range(12)]
    done: list[tuple[str, int, int]] = []
    with Journal(tmp_path / "j.jsonl") as journal:
        failed = ask(
            endpoint(server, concurrency=4), requests, journal, lambda *_: True, progress=lambda *n: done.append(n[:3])
        )
        assert failed == 0 and server.most_at_once == 4 and done[-1] == ("language model", 12, 12)
        assert journal[requests[3].key("tester")].startswith("1. A 3")
    with Journal(tmp_path / "j.jsonl") as journal:
        assert cost_of("tester", requests, journal, 10).requests == 0
        ask(endpoint(server), requests, journal, lambda *_: True)
        assert len(server.asked) == 12
        assert cost_of("another", requests, journal, 10).tokens_out == 120  # another model is asked anew
    assert "Generate" not in (tmp_path / "j.jsonl").read_text()


def test_malformed_answers_are_asked_for_again_and_not_kept(server: Server, tmp_path: Path) -> None:
    replies = iter(["what?", "maybe", "Yes."] + ["dunno"] * 3)
    server.answer = lambda _: completion(next(replies))
    nouns, model = [Noun("cup"), Noun("jug")], endpoint(server, concurrency=1)
    with Journal(tmp_path / "j.jsonl") as journal:
        assert visual_by_model(nouns, model, journal) == ([nouns[0]], 1)
    assert [round(a["temperature"], 1) for a in server.asked] == [0.0, 0.3, 0.6] * 2
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 1
    server.answer = obedient
    with Journal(tmp_path / "j.jsonl") as journal:
        assert visual_by_model(nouns, model, journal) == (nouns, 0)
    assert len(server.asked) == 7


def test_wrong_counts_are_made_up_for(server: Server, tmp_path: Path) -> None:
    def half(asked: dict[str, Any]) -> Reply:
        wanted = int(re.findall(r"Generate (\d+)", asked["messages"][-1]["content"])[0])
        return completion("\n".join(f"{i}) a jug, {wanted}-{i}" for i in range(1, wanted // 2 + 1)))

    server.answer = half
    with Journal(tmp_path / "j.jsonl") as journal:
        asked = ModelPrompts(endpoint(server), journal, 16)
        assert asked.request_missing([Noun("jug")]) == 0
        assert len(asked(Noun("jug"))) == 8 + 4 + 2  # three rounds, each for what is missing
        assert [int(re.findall(r"\d+", u)[0]) for u in server.users()] == [16, 8, 4]
        server.answer = lambda a: completion("\n".join(f"{i}. a vase {i}" for i in range(30)))
        asked.request_missing([Noun("vase")])
        assert len(asked(Noun("vase"))) == 16 and len(server.asked) == 4


def test_answers_are_read_whatever_they_are_dressed_in() -> None:
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
    def flawed(asked: dict[str, Any]) -> Reply:
        user = asked["messages"][-1]["content"]
        return completion("cannot say") if "poison" in user else obedient(asked)

    server.answer = flawed
    captions = [f"plain {i}" for i in range(24)] + ["poison", "my tabby"]
    with Journal(tmp_path / "j.jsonl") as journal:
        found = by_model(Concept("animals", Keywords(["cat"])), captions, endpoint(server), journal)
    assert [(why.stage, why.reason) if why else None for why in found] == [None] * 24 + [
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


def command(out: str, server_url: str, *more: str) -> list[str]:
    return [
        "prompts", "generate", "--out", out, "--wordnet", "wordnet", "--per-noun", "4", "--paired", "9",
        "--endpoint", server_url, "--model", "tester", "--json", *more,
    ]  # fmt: skip


def test_generate_through_an_endpoint(server: Server, tmp_path: Path) -> None:
    write_wordnet(tmp_path / "wordnet")
    refused = run(app, command("made", server.url))
    assert isinstance(refused.exception, RcdeployError) and "nothing was sent" in str(refused.exception)
    assert not server.asked
    result = run(app, command("made", server.url, "--yes", "--price-in", "1.5", "--price-out", "2"))
    assert result.exit_code == 0 and "at your prices about" in result.stderr
    nouns = (tmp_path / "made/nouns.txt").read_text().splitlines()
    assert "teapot" in nouns and "justice" not in nouns
    assert json.loads(result.stdout) == [{"nouns": len(nouns), "prompts": 4 * len(nouns), "paired": 9}]
    asked = len(server.asked)
    made = {f.name: f.read_bytes() for f in (tmp_path / "made").iterdir()}
    assert run(app, command("made", server.url)).exit_code == 0  # nothing to send, nothing to ask
    assert len(server.asked) == asked and {f.name: f.read_bytes() for f in (tmp_path / "made").iterdir()} == made


def test_a_killed_generate_goes_on_and_asks_only_what_is_missing(server: Server, tmp_path: Path) -> None:
    write_wordnet(tmp_path / "wordnet")
    server.delay_s = 0.1
    line = [sys.executable, "-m", "rcdeploy.cli.main", *command("made", server.url, "--yes", "--concurrency", "2")]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(server.asked) < 18 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    time.sleep(0.3)
    journal = tmp_path / "made/journal.jsonl"
    kept = journal.read_bytes().count(b"\n")
    assert 10 <= kept <= 18 and not (tmp_path / "made/pool.txt.gz").exists()
    before, server.delay_s = len(server.asked), 0.0
    again = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    users = server.users()
    # what was under way when it was killed is asked once more, nothing else is
    assert len(set(users)) == len(users) - (before - kept) and before - kept <= 2
    assert len(journal.read_text().splitlines()) == len(set(users))
    fresh = subprocess.run(
        [sys.executable, "-m", "rcdeploy.cli.main", *command("fresh", server.url, "--yes")], capture_output=True
    )
    assert fresh.returncode == 0
    for name in ("nouns.txt", "pool.txt.gz", "paired.txt.gz"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_an_unreachable_endpoint_keeps_what_was_answered(server: Server, tmp_path: Path) -> None:
    (tmp_path / "nouns.txt").write_text("cup\njug\nvase\n")
    down = (500, {}, "gone")
    seen: list[int] = []

    def once(asked: dict[str, Any]) -> Reply:
        seen.append(1)
        return obedient(asked) if len(seen) == 1 else down

    server.answer = once
    line = ["prompts", "generate", "--out", "made", "--nouns", "nouns.txt", "--per-noun", "3", "--model", "tester"]
    line += ["--retries", "1", "--concurrency", "1", "--yes", "--quiet", "--endpoint"]
    failed = run(app, [*line, server.url])
    assert isinstance(failed.exception, RcdeployError) and "does not answer" in str(failed.exception)
    assert len((tmp_path / "made/journal.jsonl").read_text().splitlines()) == 1
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # not listening
        failed = run(app, [*line, f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"])
    assert "Is the server up" in str(failed.exception)
    server.answer = obedient
    assert run(app, [*line, server.url]).exit_code == 0
    assert len(gzip.decompress((tmp_path / "made/pool.txt.gz").read_bytes()).splitlines()) == 9


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    for more, said in (
        (["--endpoint", "http://x/v1"], "needs the name of a model"),
        (["--model", "m"], "belong to an --endpoint"),
        (["--endpoint", "http://x/v1", "--local-model", "m"], "are both given"),
    ):
        failed = run(app, ["prompts", "generate", "--out", "made", *more])
        assert isinstance(failed.exception, RcdeployError) and said in str(failed.exception)
    assert list(tmp_path.iterdir()) == []


def unseen(*more: str) -> Any:
    return run(app, ["prompts", "unseen", "captions.txt", "--out", "split", "--json", *more])


def test_unseen_by_words_and_by_model(server: Server, tmp_path: Path) -> None:
    captions = [
        "a red  bus",
        "two wolves",
        "my tabby moggy",
        "an ugly moggy",
        "a crane lifts",
        "a red bus",
        "a cub scout",
    ]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    assert json.loads(unseen().stdout) == [{"captions": 6, "kept": 3, "dropped": 3, "keyword": 3}]
    assert (tmp_path / "split/kept.txt").read_text().splitlines() == ["a red bus", "an ugly moggy", "a crane lifts"]
    result = unseen("--endpoint", server.url, "--model", "tester", "--yes")
    assert json.loads(result.stdout) == [{"captions": 6, "kept": 2, "dropped": 4, "keyword": 3, "model": 1}]
    dropped = [json.loads(line) for line in (tmp_path / "split/dropped.jsonl").read_text().splitlines()]
    assert [(d["stage"], d["reason"]) for d in dropped] == [
        ("keyword", "wolf"), ("keyword", "tabby"), ("model", "moggy"), ("keyword", "cub"),
    ]  # fmt: skip
    (asked,) = server.asked
    assert asked["messages"][0]["content"].startswith("You are an assistant that identifies if each sentence in the")
    assert json.loads(asked["messages"][1]["content"].split("Input: ")[1]) == [
        "a red bus",
        "an ugly moggy",
        "a crane lifts",
    ]
    assert unseen("--endpoint", server.url, "--model", "tester").exit_code == 0 and len(server.asked) == 1
    # what was dropped is a source of prompts
    assert run(app, ["prompts", "build", "split/dropped.jsonl", "--out", "texts", "--quiet"]).exit_code == 0
    (tmp_path / "boats.txt").write_text("bus\n")
    assert json.loads(unseen("--concept", "vehicles", "--words", "boats.txt").stdout)[0]["kept"] == 5
    assert "--words FILE" in str(unseen("--concept", "vehicles").exception)
    assert "go together" in str(unseen("--pictures", "x").exception)


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model with random weights: whatever it says is nonsense."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llm") / "nonsense"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<end>"])}, merges=[]))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=257, n_positions=2048, n_embd=16, n_layer=1, n_head=2, eos_token_id=256)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_local_model_answers_the_same_each_time(tiny_llm: Path, tmp_path: Path) -> None:
    model = LocalModel(tiny_llm)
    warm = Request("Be kind.", "Say something.", 12, temperature=1.0)
    assert model.answer(warm) == model.answer(warm) != model.answer(Request("Be kind.", "Other.", 12, temperature=1.0))
    assert model.answer(HELLO) == LocalModel(tiny_llm).answer(HELLO)
    model.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    assert isinstance(model.answer(HELLO), str)
    with pytest.raises(RcdeployError, match="holds no language model"):
        LocalModel(tmp_path)
    (tmp_path / "nouns.txt").write_text("cup\n")
    line = ["prompts", "generate", "--out", "made", "--nouns", "nouns.txt", "--per-noun", "2", "--local-model"]
    failed = run(app, [*line, str(tiny_llm), "--quiet"])
    assert isinstance(failed.exception, RcdeployError) and "no prompt was made" in str(failed.exception)
    assert not (tmp_path / "made/made.json").exists()


def test_prompts_are_the_papers_words() -> None:
    request = prompt_request(Noun("teapot"), 128, 0)
    assert request.system == "You are a helpful assistant."
    assert request.user.startswith(
        "Generate 128 visually rich prompts focused on the noun 'teapot', ensuring each prompt is strictly distinct "
        "and cannot overlap in style, setting, or composition. Please return only the prompts on separate lines with "
        "numbering."
    )
