"""A judge behind a local server: what it says is used once, and what it does not say is never a zero."""

import contextlib
import http.server
import json
import threading

import pytest

from eval.__main__ import main
from eval.runs.judge import Endpoint, NotJudged, fill, judge, question
from eval.runs.score import score
from vila_jax.errors import ConfigError


@contextlib.contextmanager
def server(*replies):
    """Answers one request after another with a status or a text; yields its address and the list of requests."""
    seen, waiting = [], list(replies)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            reply = waiting.pop(0)
            status, data = (reply, b"{}") if isinstance(reply, int) else (200, reply)
            if isinstance(data, str):
                data = json.dumps({"choices": [{"message": {"content": data}}]}).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}/v1", seen
        finally:
            running.shutdown()
            thread.join()


def endpoint(url, **options):
    return Endpoint(url, "judge-1", wait=0.001, **options)


@pytest.fixture
def mmvet(write_run, answered):
    found = [answered(i, f"answer {i}", f"truth {i}", capability=["rec"], judged=None) for i in range(3)]
    return write_run(found, name="mmvet", metric="mmvet", variant="lmms_eval")


def test_every_answer_is_rated_once(mmvet):
    with server("0.5", " 1.0\n", "Correctness: 0.2") as (url, seen):
        assert judge(mmvet, endpoint(url, key="secret")) == (3, [])
        assert judge(mmvet, endpoint(url)) == (0, [])
    assert score(mmvet)["metric"]["value"] == pytest.approx((0.5 + 1 + 0.2) / 3)
    [named] = score(mmvet)["judges"]
    assert named["judge"] == "judge-1" and len(named["prompt_sha256"]) == 64
    path, authorization, body = seen[1]
    assert path == "/v1/chat/completions" and authorization == "Bearer secret"
    assert body["model"] == "judge-1" and body["temperature"] == 0
    text = body["messages"][0]["content"]
    assert "question 1" in text and "truth 1" in text and "answer 1" in text
    assert "secret" not in (mmvet / "judged.jsonl").read_text() and "secret" not in repr(endpoint(url, key="secret"))


def test_what_fails_for_a_while_is_asked_again(mmvet):
    with server(500, 429, b"no json", "0.4", "0.4", "0.4") as (url, seen):
        assert judge(mmvet, endpoint(url, retries=3)) == (3, [])
    assert len(seen) == 6


def test_no_verdict_is_no_zero(mmvet):
    with server(401, "I think it is fine", "0.4") as (url, seen):
        count, reasons = judge(mmvet, endpoint(url))
    assert count == 1 and len(seen) == 3  # a refusal is not asked again
    assert "status 401" in reasons[0] and "the reply is no verdict" in reasons[1]
    result = score(mmvet)
    assert result["metric"]["value"] is None and "2 answers are not judged" in result["warnings"]
    with server("0.6", "0.8") as (url, seen):
        assert judge(mmvet, endpoint(url)) == (2, [])
    assert score(mmvet)["metric"]["value"] == pytest.approx((0.6 + 0.8 + 0.4) / 3)


def test_after_all_retries_the_reason_is_said():
    with server(503, 503) as (url, _), pytest.raises(NotJudged, match="status 503"):
        endpoint(url, retries=1).ask("?")
    with pytest.raises(NotJudged, match="URLError"):
        endpoint("http://127.0.0.1:9/v1", retries=1).ask("?")
    with pytest.raises(ConfigError, match="is no address"):
        endpoint("file:///etc")


@pytest.mark.parametrize("reply", ["", "1.5", "0.5 because", "none", "-0.1", "10"])
def test_what_is_no_number_from_0_to_1_is_no_rating(reply):
    assert question("mmvet").read(reply) is None


def test_only_answers_that_no_rule_reads_are_judged(write_run, answered):
    choices = {"A": "a cat", "B": "a dog"}
    found = [
        answered(i, text, "B", cluster=str(i), index=i, choices=choices, question="What is it?")
        for i, text in enumerate(("B", "the barking one", "hard to say"))
    ]
    folder = write_run(found, name="mmbench", metric="mmbench", variant="vlmevalkit")
    assert score(folder)["metric"]["value"] == pytest.approx(1 / 3)
    with server("B", "(Z)") as (url, seen):
        assert judge(folder, endpoint(url)) == (2, [])
    assert "A. a cat\nB. a dog" in seen[0][2]["messages"][0]["content"]
    assert score(folder)["metric"]["value"] == pytest.approx(2 / 3)
    assert score(folder, "lmms_eval_prefetch")["metric"]["value"] == pytest.approx(1 / 3)  # was not judged for this


def test_prompts_of_ones_own(answered):
    with pytest.raises(ConfigError, match=r"does not hold \{reference\}, \{answer\}"):
        question("mmvet", "Rate {question}")
    with pytest.raises(ConfigError, match="are not judged"):
        question("gqa_exact_match")
    prompt = "{question} | {reference} | {answer}"
    assert (
        fill(question("mmvet", prompt).prompt, answered(1, "{reference}", "x", "y"))
        == "question 1 | x <OR> y | {reference}"
    )


def test_the_command_says_what_was_not_judged(mmvet, capsys, monkeypatch):
    with server("0.5", 400, "1.0") as (url, _):
        assert main(["judge", str(mmvet), "--endpoint", url, "--judge", "j", "--retries", "0"]) == 1
    said = capsys.readouterr()
    assert "2 judged, 1 not judged" in said.err and "status 400" in said.err
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert main(["judge", str(mmvet), "--endpoint", url, "--judge", "j", "--key-variable", "NO_SUCH_KEY"]) == 3
