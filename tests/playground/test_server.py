"""The playground's server over a socket: who may use it, what it accepts, and that its commands make the same pixels."""

from __future__ import annotations

import io
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fork_server import run_command
from pages import Page, files_of
from PIL import Image

from genimg.api.play import open_playground
from genimg.config.schema.commands import Sample
from genimg.errors import ConfigError
from genimg.playground.server import PlaygroundServer
from genimg.playground.tasks import MOST_IMAGES

PageOf = Callable[[str], Page]


def photo(size: int = 16) -> bytes:
    """A PNG file of noise."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


# Who may use it


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_requests_of_other_sites_are_refused(page_of: PageOf, headers: dict[str, str]) -> None:
    page = page_of("gan")
    for method, path, body in (("GET", "/model.json", None), ("POST", "/make", "{}"), ("POST", "/picture?name=a", "x")):
        status, answer, _ = page.request(method, path, body, {"Content-Type": "application/json", **headers})
        assert (status, list(answer)) == (403, ["error"])


def test_the_own_page_may_use_it_under_both_names_of_this_machine(page_of: PageOf) -> None:
    page = page_of("gan")
    for host in (f"127.0.0.1:{page.port}", f"localhost:{page.port}", "localhost:9"):
        assert page.request("GET", "/model.json", None, {"Host": host, "Origin": f"http://{host}"})[0] == 200
    assert page.raw(b"GET /model.json HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n").startswith(b"HTTP/1.0 403")
    assert page.raw(b"GET /model.json HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 403")


def test_it_listens_on_the_loopback_interface_only(page_of: PageOf, run_of: Callable[[str], Path]) -> None:
    page = page_of("gan")
    with open_playground(run_of("gan"), device="cpu") as playground:
        with pytest.raises(ConfigError) as caught:
            PlaygroundServer(playground, page.port)
        assert caught.value.key == "port"
        with PlaygroundServer(playground) as server:
            assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/", "/style.css", "/script.js", "/model.json"])
def test_pages_have_a_strict_policy(page_of: PageOf, path: str) -> None:
    status, content, headers = page_of("gan").request("GET", path)
    assert status == 200
    assert content
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("path", ["/page/", "/page.html", "/../server.py", "/..%2fserver.py", "/model.json/", "/picture"])
def test_there_are_no_other_files(page_of: PageOf, path: str) -> None:
    assert page_of("gan").request("GET", path)[0] == 404


def test_other_methods_are_refused(page_of: PageOf) -> None:
    page = page_of("gan")
    assert page.request("PUT", "/make")[0] == 501
    assert page.request("OPTIONS", "/make")[0] == 501
    assert page.post("/nothing", {})[0] == 404


# What it accepts


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ("{", {}, 400),
        ("[" * 60000, {}, 400),
        (b"\xff", {}, 400),
        ("{}", {"Content-Type": "text/plain"}, 415),
        ("{}", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("{}", {"Content-Length": "-1"}, 411),
        ("", {"Content-Length": "999999"}, 413),
        ("", {"Content-Length": "9" * 13}, 411),
    ],
)
def test_bodies_that_are_not_small_json_are_refused(
    page_of: PageOf, body: bytes | str, headers: dict[str, str], status: int
) -> None:
    page = page_of("gan")
    found, answer, _ = page.request("POST", "/make", body, {"Content-Type": "application/json", **headers})
    assert (found, "error" in answer) == (status, True)
    assert page.make("sample", num_images=1)["pictures"]


@pytest.mark.parametrize(
    ("request_", "key"),
    [
        ([], "page"),
        ({"page": "", "task": "sample"}, "page"),
        ({"page": "x" * 65, "task": "sample"}, "page"),
        ({"page": "a", "task": "smaple"}, "task"),
        ({"page": "a", "task": ["sample"]}, "task"),
        ({"page": "a", "task": "reconstruct"}, "task"),
        ({"page": "a", "task": "sample", "values": []}, "values"),
        ({"page": "a", "task": "sample", "more": 1}, "more"),
    ],
)
def test_malformed_requests_are_refused_with_their_key(page_of: PageOf, request_: Any, key: str) -> None:
    status, answer = page_of("gan").post("/make", request_)
    assert (status, answer["key"]) == (400, key)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("truncatoin", 0.5), ("seed", -1), ("seed", 2**53), ("seed", 1.5), ("seed", True), ("seed", "1"), ("num_images", 0),
        ("num_images", MOST_IMAGES + 1), ("label", "index:9"), ("label", 0), ("truncation", "a"), ("truncation", 0),
        ("truncation", -1), ("weights", "nothing"), ("near", "/etc/passwd"), ("output", "made"),
    ],
)  # fmt: skip
def test_invalid_values_are_refused_with_their_key(page_of: PageOf, name: str, value: Any) -> None:
    assert page_of("gan").refused("sample", **{name: value})[0] == name


def test_values_that_contradict_each_other_are_refused(page_of: PageOf) -> None:
    assert page_of("flow").refused("sample", eta=0.5)[0] == "eta"
    assert page_of("gan").refused("interpolate", seed=4, seed_to=4)[0] == "seed_to"


def test_only_images_can_be_uploaded(page_of: PageOf) -> None:
    page = page_of("vae")
    binary = {"Content-Type": "application/octet-stream"}
    status, answer, _ = page.request("POST", "/picture?name=..%2F..%2Fa%20b.png", b"%!PS\n", binary)
    assert (status, answer["error"].startswith("a b.png cannot be opened")) == (400, True)
    assert page.request("POST", "/picture?name=a", None, {**binary, "Content-Length": str(2**30)})[0] == 413
    assert page.refused("reconstruct")[0] == "picture"
    assert page.refused("reconstruct", picture="../../etc/passwd")[0] == "picture"


def test_the_oldest_upload_is_removed(page_of: PageOf) -> None:
    page = page_of("vae")
    first, *_ = [page.upload("a.png", photo()) for _ in range(9)]
    assert page.refused("reconstruct", picture=first)[0] == "picture"


def test_a_bug_is_shown_in_the_terminal_and_not_on_the_page(
    page_of: PageOf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = page_of("gan")
    monkeypatch.setattr("genimg.playground.pictures.sampler_for", lambda *arguments: 1 / 0)
    status, answer = page.post("/make", {"page": "a", "task": "sample"})
    assert (status, "division" in str(answer)) == (500, False)
    assert "ZeroDivisionError" in capsys.readouterr().err


# The commands make the same pixels

IMAGES: list[tuple[str, str, dict[str, Any]]] = [
    ("gan", "sample", {"seed": 5}),
    ("gan", "sample", {"seed": 5, "label": "index:1", "truncation": 0.7}),
    ("gan", "sample", {"weights": "raw", "num_images": 2}),
    ("gan", "interpolate", {"seed": 5, "seed_to": 9, "position": 0.3, "interpolate": "linear"}),
    ("flow", "sample", {"seed": 1, "label": "index:2", "sampler": "ancestral", "steps": 3, "num_images": 2}),
    ("flow", "interpolate", {"seed": 1, "steps": 2, "num_images": 2}),
    ("flow", "near", {"picture": "", "spread": 0.2, "steps": 2, "label": "index:0"}),
    ("flow", "translate", {"picture": "", "steps": 2, "label_from": "index:0", "label_to": "index:1"}),
    ("vae", "sample", {"seed": 2**40, "truncation": 1}),
    ("vae", "near", {"picture": "", "spread": 0}),
    ("vae", "reconstruct", {"picture": ""}),
    ("denoiser", "translate", {"picture": ""}),
    ("inpaint", "translate", {"picture": "", "mask": ""}),
    ("random", "translate", {"picture": "", "seed": 3, "num_samples": 3, "steps": 2}),
    ("paired", "translate", {"picture": "", "half": "left"}),
    ("paired", "translate", {"picture": "", "half": "whole"}),
    ("cyclegan", "translate", {"picture": "", "direction": "b2a"}),
    ("text", "sample", {"text": 'it\'s a "red" ring, ${x}'}),
    ("text", "sample", {}),
]


@pytest.mark.parametrize(("name", "task", "values"), IMAGES)
def test_the_command_writes_the_same_files(
    page_of: PageOf, tmp_path: Path, name: str, task: str, values: dict[str, Any]
) -> None:
    page = page_of(name)
    files = {key: file for key, file in (("picture", "a photo.png"), ("mask", "mask.png")) if key in values}
    for key, file in files.items():
        (tmp_path / file).write_bytes(photo(24))
        values = {**values, key: page.upload(file.replace(" ", "%20"), photo(24))}
    result = page.make(task, **values)
    program, *words = shlex.split(result["command"])
    command = program.removeprefix("genimg-")
    arguments = [] if any(word.startswith("output=") for word in words) else ["output=made"]
    done = run_command(command, *words, *arguments, cwd=tmp_path)
    assert done.returncode == 0, result["command"] + done.stderr
    made = files_of(result)
    assert len(made) == sum(not each["is_input"] for each in result["pictures"]) > 0
    folder = tmp_path / ("translated" if arguments == [] else "made")
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == made
    assert result["files"] == list(files.values())


def test_the_command_names_the_checkpoint_as_the_user_did_unless_it_runs_elsewhere(
    run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_of("vae").parent)
    with open_playground("vae", device="cpu", which="last", weights="raw") as playground:
        request = {"page": "a", "task": "sample", "values": {"num_images": 1}}
        assert playground.make(request)["command"] == "genimg-sample ckpt=vae device=cpu weights=raw seed=0 num_images=1"
        key = playground.uploads.add("a.png", photo())["id"]
        command = playground.make({"page": "a", "task": "reconstruct", "values": {"picture": key}})["command"]
        assert command == f"genimg-sample ckpt={Path('vae').resolve()} device=cpu weights=raw reconstruct=a.png"


def test_an_image_depends_on_the_seed_and_its_number_only(page_of: PageOf) -> None:
    page = page_of("gan")
    few, many = (page.make("sample", seed=7, label="index:0", num_images=count) for count in (2, 5))
    assert len({each["png"] for each in many["pictures"]}) == 5
    first, second = ([np.asarray(Image.open(io.BytesIO(each))) for each in files_of(made).values()] for made in (few, many))
    for one, other in zip(first, second, strict=False):
        np.testing.assert_allclose(one.astype(int), other.astype(int), atol=1)  # bits may depend on the size of the batch


def test_the_ends_of_a_path_are_the_images_of_the_seeds(page_of: PageOf) -> None:
    page = page_of("gan")
    label = {"label": "index:0"}
    for position, seed in ((0, 3), (1, 8)):
        end = page.make("interpolate", seed=3, seed_to=8, position=position, num_images=3, **label)
        own = page.make("sample", seed=seed, **label)
        for one, other in zip(files_of(end).values(), files_of(own).values(), strict=True):
            np.testing.assert_allclose(*(np.asarray(Image.open(io.BytesIO(each))).astype(int) for each in (one, other)), atol=1)


def test_the_batch_size_is_that_of_the_command() -> None:
    assert next(field.metadata["default"] for field in Sample.__dataclass_fields__.values() if field.name == "batch_size") == (
        MOST_IMAGES
    )


def test_captions_and_classes_are_shown(page_of: PageOf) -> None:
    page = page_of("gan")
    tasks = {each["name"]: each for each in page.request("GET", "/model.json")[1]["tasks"]}
    (classes,) = (each["choices"] for each in tasks["sample"]["controls"] if each["name"] == "label")
    assert [each["about"] for each in page.make("sample", label=classes[1][0])["pictures"]] == [classes[1][1]] * 3
    assert all(each["about"] for each in page_of("text").make("sample")["pictures"])


# One at a time


def test_a_newer_request_of_a_page_replaces_the_older_one(page_of: PageOf) -> None:
    page, answers = page_of("flow"), []
    long = {"page": "a", "task": "sample", "values": {"steps": 100000}}
    thread = threading.Thread(target=lambda: answers.append(page.post("/make", long)))
    thread.start()
    state = page.request("GET", "/progress?page=a")[1]
    while not (state["busy"] and state["progress"]):
        state = page.request("GET", "/progress?page=a")[1]
    assert state["own"]
    assert state["progress"]["total"] == 100000
    assert not page.request("GET", "/progress?page=b")[1]["own"]
    assert page.make("sample", steps=1)["pictures"]
    thread.join()
    assert answers == [(200, {"is_replaced": True})]
    assert page.request("GET", "/progress?page=a")[1] == {"busy": False}
