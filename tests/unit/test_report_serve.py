"""The served report: what it answers, to whom, and that it follows its runs."""

import http.client
import json
import threading
from collections.abc import Iterator

import pytest

from samovar.cli.report import parse
from samovar.report.serve import server
from samovar.runs.records import Record, RunDir
from tests.unit.report_runs import NOTHING, make_run


@pytest.fixture
def served(tmp_path) -> Iterator:
    folder = make_run(tmp_path / "r", without=NOTHING)
    with server([folder], port=0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, running
        running.shutdown()
        thread.join()


def _get(running, path: str, host: str = "localhost") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", running.server_port)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_only_this_machine_reaches_it_and_only_its_three_paths(served) -> None:
    _, running = served
    assert running.server_address[0] == "127.0.0.1"
    assert _get(running, "/")[0] == 200
    assert _get(running, "/etc/passwd")[0] == _get(running, "/../config.json")[0] == 404
    assert _get(running, "/", host=f"127.0.0.1:{running.server_port}")[0] == 200
    assert _get(running, "/", host="evil.example")[0] == 403
    assert _get(running, "/state", host="evil.example:80")[0] == 403


def test_it_follows_its_run(served) -> None:
    folder, running = served
    before = json.loads(_get(running, "/state")[1])
    assert before["lines"] == ["vit-digits: no records yet"]
    RunDir(folder).append(
        Record("train/loss", 2.0, "nats", where={"step": 10}),
        Record("val/accuracy", 0.5, "1", 0.01, 500, {"step": 10}),
    )
    after = json.loads(_get(running, "/state")[1])
    assert after["version"] != before["version"]
    assert after["lines"][0].startswith(
        "vit-digits: running, step 10, held-out accuracy 50.0 %, last recorded: training, "
    )
    page, fresh = _get(running, "/")[1], _get(running, "/fresh")[1]
    assert 'id="p-train-loss"' in page
    assert f'data-live="{after["version"]}"' in page
    assert "connect-src 'self'" in page
    assert "<script>" not in fresh, "what brings a page up to date has no scripts"
    assert len(fresh) < len(page) / 10
    (folder / "config.json").unlink()
    RunDir(folder).append(Record("train/loss", 1.9, "nats", where={"step": 20}))
    assert _get(running, "/state")[0] == 503


def test_flags_that_exclude_each_other_are_refused() -> None:
    assert parse(["r", "--serve"]).served == ("127.0.0.1", 8040)
    assert parse(["r", "--serve", "--port", "0"]).served == ("127.0.0.1", 0)
    with pytest.raises(ValueError, match="--serve writes no file"):
        parse(["r", "--serve", "-o", "x.html"])
    with pytest.raises(ValueError, match="need --serve"):
        parse(["r", "--port", "9000"])


def test_a_port_that_is_taken_is_one_line(served) -> None:
    folder, running = served
    with pytest.raises(ValueError, match="cannot serve on 127.0.0.1 port .*; give --port another number"):
        server([folder], port=running.server_port)
