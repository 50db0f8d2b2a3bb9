"""Files are fetched from a local server that simulates the failures of servers."""

import base64
import contextlib
import functools
import hashlib
import http.server
import re
import shutil
import threading

import google_crc32c
import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.datasets import download, fetch
from rlcls.datasets.__main__ import main

CONTENT = np.random.default_rng(0).bytes(300_000)
NAME = "Pong/1/replay_logs/$store$_action_ckpt.0.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`. `server.faults` lists the failures of the next requests for a file's contents."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        server, name = self.server, self.path.replace("%24", "$").lstrip("/")
        fault = server.faults.pop(0) if body and server.faults else None
        server.requests.append((self.command, name, self.headers.get("Range")))
        if not body and server.head_refused:
            return self.refuse(405)
        if name not in server.files:
            return self.refuse(404)
        data, first = server.files[name], 0
        if isinstance(fault, int) and fault >= 400:
            return self.refuse(fault)
        if fault == "wrong":
            data = bytes(len(data))
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and fault != "ignore range":
            first = int(match[1])
            if first >= len(data):
                return self.refuse(416, {"Content-Range": f"bytes */{len(data)}"})
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - first))
        for value in server.hashes.get(name, ()):
            self.send_header("x-goog-hash", value)
        self.end_headers()
        if body:
            stop = first + 100_000 if fault == "drop" else len(data)
            with contextlib.suppress(OSError):
                self.wfile.write(data[first:stop])

    def refuse(self, code, headers=None):
        self.send_response(code)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.hashes, self.faults, self.requests = {NAME: CONTENT}, {}, [], []
        self.head_refused = False
        self.url = f"http://127.0.0.1:{self.server_port}"

    def send_hash(self, name, kind="md5"):
        md5 = hashlib.md5(self.files[name]).digest()
        crc = google_crc32c.Checksum(self.files[name]).digest()
        digest = {"md5": md5, "crc32c": crc}[kind]
        self.hashes.setdefault(name, []).append(f"{kind}={base64.b64encode(digest).decode()}")

    def contents_sent(self):
        return [span for command, _, span in self.requests if command == "GET"]


@pytest.fixture
def serve():
    """A function that starts a server, which ends with the test."""
    with contextlib.ExitStack() as stack:

        def start():
            server = stack.enter_context(Server())
            stack.callback(server.shutdown)
            threading.Thread(
                target=functools.partial(server.serve_forever, poll_interval=0.01), daemon=True
            ).start()
            return server

        yield start


@pytest.fixture
def pauses(monkeypatch):
    """The list of pauses between retries, which take no time."""
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("kind", ["md5", "crc32c"])
def test_a_file_is_downloaded_and_checked(kind, serve, tmp_path):
    server, arrived = serve(), []
    server.send_hash(NAME, kind)
    assert download.ask(NAME, [server.url]).size == len(CONTENT)
    assert download.download(NAME, tmp_path / "a", [server.url], tick=arrived.append)
    assert (tmp_path / "a").read_bytes() == CONTENT and [p.name for p in tmp_path.iterdir()] == ["a"]
    assert arrived[-1] == len(CONTENT) and arrived == sorted(arrived)


def test_without_a_checksum_the_length_is_checked(serve, tmp_path):
    assert not download.download(NAME, tmp_path / "a", [serve().url])
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_download_continues_after_a_dropped_connection(serve, tmp_path, pauses):
    server = serve()
    server.send_hash(NAME)
    server.faults = ["drop", "drop"]
    assert download.download(NAME, tmp_path / "a", [server.url])
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.contents_sent() == [None, "bytes=100000-", "bytes=200000-"] and pauses == [1, 1]


def test_a_killed_download_continues(serve, tmp_path):
    server = serve()
    server.send_hash(NAME)
    (tmp_path / "a.part").write_bytes(CONTENT[:123])
    assert download.download(NAME, tmp_path / "a", [server.url])
    assert (tmp_path / "a").read_bytes() == CONTENT and server.contents_sent() == ["bytes=123-"]


@pytest.mark.parametrize("head_refused", [False, True])
def test_a_complete_part_is_not_fetched_again(head_refused, serve, tmp_path):
    server = serve()
    server.head_refused = head_refused  # the answer 416 then gives the size
    (tmp_path / "a.part").write_bytes(CONTENT)
    download.download(NAME, tmp_path / "a", [server.url])
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.contents_sent() == ([f"bytes={len(CONTENT)}-"] if head_refused else [])


@pytest.mark.parametrize("head_refused", [False, True])
def test_a_part_that_is_too_long_is_fetched_again(head_refused, serve, tmp_path, pauses):
    server = serve()
    server.head_refused = head_refused
    (tmp_path / "a.part").write_bytes(CONTENT + b"more")
    download.download(NAME, tmp_path / "a", [server.url])
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_sends_the_whole_file(serve, tmp_path, pauses):
    server = serve()
    server.send_hash(NAME)
    server.faults = ["drop", "ignore range"]
    assert download.download(NAME, tmp_path / "a", [server.url])
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_after_growing_pauses(serve, tmp_path, pauses):
    server = serve()
    server.faults = [503, 503, 429, 500]
    download.download(NAME, tmp_path / "a", [server.url])
    assert (tmp_path / "a").read_bytes() == CONTENT and pauses == [1, 2, 4, 8]


def test_a_permanently_busy_server_is_an_error_and_the_part_is_kept(serve, tmp_path, pauses):
    server = serve()
    server.faults = ["drop"] + [503] * 20
    with pytest.raises(UserError, match=r"cannot fetch Pong.*HTTP 503") as error:
        download.download(NAME, tmp_path / "a", [server.url])
    assert len(str(error.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.part"]
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:100_000]


def test_the_next_mirror_is_tried(serve, tmp_path, pauses):
    absent, busy, wrong, right = (serve() for _ in range(4))
    absent.files = {}
    busy.faults = [503] * 20
    wrong.send_hash(NAME)
    wrong.faults = ["wrong"] * 3
    right.send_hash(NAME)
    mirrors = ["http://127.0.0.1:1", *(server.url for server in (absent, busy, wrong, right))]
    assert download.ask(NAME, mirrors).size == len(CONTENT)
    assert download.download(NAME, tmp_path / "a", mirrors)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert [len(server.contents_sent()) > 0 for server in (absent, busy, wrong, right)] == [
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize("known", ["md5", "crc32c", "sha256"])
def test_a_file_with_a_wrong_checksum_is_never_renamed(known, serve, tmp_path):
    server, digest = serve(), None
    if known == "sha256":
        digest = hashlib.sha256(CONTENT).hexdigest()
    else:
        server.send_hash(NAME, known)
    server.faults = ["wrong"] * 5
    kind = {"md5": "MD5", "crc32c": "CRC-32C", "sha256": "SHA-256"}[known]
    with pytest.raises(UserError, match=f"its {kind} is .* instead of"):
        download.download(NAME, tmp_path / "a", [server.url], digest)
    assert list(tmp_path.iterdir()) == []
    server.faults = []
    assert download.download(NAME, tmp_path / "a", [server.url], digest)


def test_a_part_of_another_version_is_fetched_again(serve, tmp_path):
    server = serve()
    server.send_hash(NAME)
    (tmp_path / "a.part").write_bytes(b"older" * 100)
    assert download.download(NAME, tmp_path / "a", [server.url])
    assert (tmp_path / "a").read_bytes() == CONTENT and server.contents_sent() == ["bytes=500-", None]


def test_only_one_process_downloads_a_file(serve, tmp_path):
    with download._opened(tmp_path / "a.part"), pytest.raises(UserError, match="another process downloads"):
        download.download(NAME, tmp_path / "a", [serve().url])


COLUMNS = ["$store$_observation", "$store$_action", "$store$_reward", "$store$_terminal", "add_count"]


@pytest.fixture
def bucket(serve):
    """A server with runs 1 and 2 of Pong, with two checkpoints each."""
    server = serve()
    server.files = {
        f"Pong/{run}/replay_logs/{column}_ckpt.{number}.gz": f"{run} {column} {number}".encode() * 50
        for run in (1, 2)
        for number in (0, 1)
        for column in COLUMNS
    }
    for name in server.files:
        server.send_hash(name)
    return server


def contents(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_command_prints_the_sizes_and_fetches_all_files(bucket, tmp_path, capsys):
    command = [
        "fetch",
        "data=dqn_replay",
        f"data.path={tmp_path}/dqn",
        "game=Pong",
        f"mirrors=[{bucket.url}]",
    ]
    assert main(command) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert contents(tmp_path / "dqn") == bucket.files
    assert "   900 B  Pong/1/replay_logs/$store$_action_ckpt.0.gz\n" in shown
    assert "in 20 files, of which" in shown and "1 / 1 MB (100%)" in shown
    bucket.requests.clear()
    assert main(command) == 0 and "of which 0 B are missing" in capsys.readouterr().out
    assert bucket.contents_sent() == []


def test_runs_and_checkpoints_choose_files(bucket, tmp_path, capsys):
    command = ["fetch", "data=dqn_replay", f"data.path={tmp_path}", "data.runs=[2]", "data.checkpoints=[1]"]
    assert main([*command, f"mirrors=[{bucket.url}]"]) == 0, capsys.readouterr().err
    expected = {name for name in bucket.files if name.startswith("Pong/2") and ".1." in name}
    assert contents(tmp_path).keys() == expected


def test_rl_unplugged_is_fetched_to_the_folder_that_is_read(serve, tmp_path, capsys):
    server = serve()
    server.files = {f"Qbert/run_{run}-{number:05d}-of-00050": b"x" * 9 for run in (1, 2) for number in (0, 1)}
    command = ["fetch", "data=rl_unplugged", f"data.path={tmp_path}", "game=Qbert", f"mirrors={server.url}"]
    assert main(command) == 0
    assert contents(tmp_path) == server.files
    assert "no usable checksum for 4 files" in capsys.readouterr().err


def test_files_are_compared_with_a_list_of_sha256(bucket, tmp_path, capsys):
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in bucket.files.items()}
    (tmp_path / "sums").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    command = ["fetch", "data=dqn_replay", f"data.path={tmp_path}/dqn", f"mirrors=[{bucket.url}]"]
    command += ["data.runs=[1]", f"sha256={tmp_path}/sums"]
    assert main(command) == 0, capsys.readouterr().err
    name = "Pong/1/replay_logs/add_count_ckpt.1.gz"
    (tmp_path / "dqn" / name).unlink()
    (tmp_path / "sums").write_text((tmp_path / "sums").read_text().replace(sums[name], "0" * 64))
    assert main(command) == 2
    assert "its SHA-256 is" in capsys.readouterr().err and not (tmp_path / "dqn" / name).exists()
    assert main(command[:-1]) == 0  # without the list the files are fetched
    capsys.readouterr()
    assert main(command) == 2
    assert (
        f"{name} has the SHA-256 {sums[name]} instead of {'0' * 64}; move it away" in capsys.readouterr().err
    )
    (tmp_path / "sums").write_text("")
    assert main(command) == 2
    assert f"{tmp_path}/sums has no SHA-256 of Pong/1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("games", "runs", "checkpoints", "message"),
    [
        (["Pnog"], None, None, "unknown game 'Pnog'; did you mean 'Pong'"),
        (["Qbert"], None, None, r"Qbert/1/replay_logs/\$store\$_observation_ckpt\.0\.gz is not at http"),
        (["Pong"], [3], None, r"Pong/3/replay_logs/\$store\$_observation_ckpt\.0\.gz is not at http"),
        (["Pong"], None, [0, 7], r"Pong/1/.*observation_ckpt\.7\.gz is not at http"),
    ],
)
def test_what_is_not_on_the_server_is_one_line(games, runs, checkpoints, message, bucket):
    with pytest.raises(UserError, match=message) as error:
        fetch.wanted("dqn_replay", games, runs, checkpoints, [bucket.url])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("mirror", "message"),
    [("nowhere", "unknown url type"), ("http://127.0.0.1:1", "Connection refused")],
)
def test_a_server_that_does_not_answer_is_one_line(mirror, message, pauses):
    with pytest.raises(UserError, match=message) as error:
        fetch.wanted("dqn_replay", ["Pong"], None, None, [mirror])
    assert len(str(error.value).splitlines()) == 1


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
    here = f"data.path={tmp_path}/dqn"
    for message, arguments in {
        "give the folder of the files: data.path=FOLDER": ["data=dqn_replay"],
        "data=minari cannot be fetched (dqn_replay, rl_unplugged)": ["data=minari", here],
    }.items():
        assert main(["fetch", *arguments]) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "dqn").exists()


def test_a_file_of_another_size_is_refused_and_left_alone(bucket, tmp_path):
    name = "Pong/1/replay_logs/add_count_ckpt.0.gz"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(b"short")
    with pytest.raises(UserError, match="has 5 bytes, but 650 on the server; move it away"):
        fetch.missing(fetch.wanted("dqn_replay", ["Pong"], [1], [0], [bucket.url]), tmp_path)
    assert (tmp_path / name).read_bytes() == b"short"


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(bucket, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage._replace(free=100))
    files = fetch.wanted("dqn_replay", ["Pong"], [1], [0], [bucket.url])
    with pytest.raises(UserError, match="are missing, but .* has only 100 B left"):
        fetch.missing(files, tmp_path / "dqn" / "not there yet")
