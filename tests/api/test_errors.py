"""Every error has one shape, whatever is sent."""

import json
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from tests.api.conftest import Stack

CHAT = "/v1/chat/completions"
JOBS = "/v1/fine_tuning/jobs"


def check_envelope(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"].startswith("req-")
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/v1/files/", 404),
        ("PUT", "/v1/files", 405),
        ("PATCH", "/v1/models/tiny", 405),
        ("DELETE", "/v1/chat/completions", 405),
        ("GET", "/v1/files/none", 404),
        ("GET", "/v1/files/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("GET", "/v1/files/%00", 400),
        ("GET", "/v1/models/%00", 400),
        ("GET", "/v1/files?after=%00", 400),
        ("GET", "/v1/files?order=up", 400),
        ("GET", "/v1/models/%ff%fe", 404),
        ("GET", f"/v1/fine_tuning/jobs/{2**70}", 404),
        ("GET", "/v1/fine_tuning/jobs?metadata[%00]=x", 400),
        ("GET", "/v1/fine_tuning/jobs?metadata[a%22b]=x", 200),
        ("HEAD", "/livez", 200),
        ("HEAD", "/readyz", 200),
    ],
)
def test_wrong_addresses(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    if status == 200:
        assert response.status_code == 200
    else:
        check_envelope(response, status)


def test_what_is_not_offered_is_named(http: httpx.Client) -> None:
    error = check_envelope(http.post("/v1/responses", json={}), 404)
    assert error["message"] == "POST /v1/responses is not offered."


@pytest.mark.parametrize(
    "names",
    [["[]"], ["[a"], ["[" + "k" * 65 + "]"], [f"[k{n}]" for n in range(17)]],
)
def test_wrong_metadata_filters_are_refused(http: httpx.Client, names: list[str]) -> None:
    error = check_envelope(http.get(JOBS, params={f"metadata{name}": "v" for name in names}), 400)
    assert (error["code"], error["param"]) == ("invalid_value", "metadata")


def test_a_long_metadata_value_is_refused(http: httpx.Client) -> None:
    error = check_envelope(http.get(JOBS, params={"metadata[a]": "v" * 513}), 400)
    assert error["param"] == "metadata"


@pytest.mark.parametrize(
    ("path", "kind"), [(CHAT, "application/json"), ("/v1/files", "multipart/form-data; boundary=x")]
)
def test_who_hangs_up_in_mid_body_is_one_line(stack: Stack, key: str, path: str, kind: str) -> None:
    parts = urlsplit(stack.url)
    before = len(stack.log.read_text())
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(f"{head}Content-Type: {kind}\r\nContent-Length: 999\r\n\r\n".encode())
        time.sleep(0.3)
    deadline = time.monotonic() + 5
    while "499" not in (said := stack.log.read_text()[before:]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "499" in said
    assert len(said.splitlines()) == 1
    assert "error" not in said


TRAPS = {
    "nan": b'{"model": "tiny", "seed": NaN}',
    "infinity": b'{"model": "tiny", "seed": Infinity}',
    "minus infinity": b'{"model": "tiny", "temperature": -Infinity}',
    "too large a float": b'{"model": "tiny", "temperature": 1e999}',
    "lone surrogate": rb'{"model": "\ud800"}',
    "lone surrogate in a key": rb'{"\ud800": 1, "\ud800": 2}',
    "lone surrogate deep": rb'{"model": "tiny", "metadata": {"a": "\udc00"}}',
    "nul": rb'{"model": "ti\u0000ny"}',
    "nul in a key": rb'{"model": "tiny", "metadata": {"a\u0000": "b"}}',
    "raw nul": b'{"model": "ti\x00ny"}',
    "2**63": b'{"model": "tiny", "seed": 9223372036854775808}',
    "5000 digits": b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}",
    "duplicate keys": b'{"model": "tiny", "model": "other"}',
    "more keys than anything has": b"{" + b",".join(b'"k%d":1' % i for i in range(2000)) + b"}",
    "many duplicate keys": b"{" + b",".join(b'"k%d":1' % i for i in range(1000)) + b',"k1":1}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and whole": b"[" * 100_000 + b"]" * 100_000,
    "invalid utf-8": b'{"model": "\xff\xfe"}',
    "utf-16": '{"model": "tiny"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"model": "tiny"}',
    "not an object": b"[1, 2]",
    "a text": b'"model"',
    "null": b"null",
    "empty": b"",
    "cut off": b'{"model": "ti',
    "two values": b"{}{}",
}


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", JOBS])
@pytest.mark.parametrize("body", TRAPS.values(), ids=TRAPS)
def test_traps_in_json_are_400(http: httpx.Client, path: str, body: bytes) -> None:
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    check_envelope(response, 400)


@pytest.mark.parametrize("number", [str(2**63), str(-(2**63) - 1), "9" * 5000, "-1e999"])
@pytest.mark.parametrize(
    ("form", "param"),
    [
        ('{"model": "tiny", "seed": %s}', "seed"),
        ('{"metadata": {"a": [1, %s]}, "seed": 1}', "metadata.a.1"),
        ("[%s]", "0"),
        ("%s", None),
    ],
)
def test_a_number_over_64_bits_is_told_by_its_place(
    http: httpx.Client, number: str, form: str, param: str | None
) -> None:
    headers = {"content-type": "application/json"}
    error = check_envelope(http.post(CHAT, content=form % number, headers=headers), 400)
    assert (error["code"], error["param"]) == ("invalid_value", param)
    assert number[:32] in error["message"]
    assert len(error["message"]) < 120


@pytest.mark.parametrize(
    "text", ["\u2028", "😀", "﷽" * 50, "\x7f", "\x1b[31m", "<script>", "'; DROP TABLE jobs;--"]
)
def test_odd_but_sound_texts_come_back_exactly(http: httpx.Client, text: str) -> None:
    file = http.post(
        "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", b"{}")}
    ).json()["id"]
    for ascii_only in (True, False):
        body = {"model": "tiny", "training_file": file, "metadata": {text[:30]: text}}
        made = http.post(
            JOBS,
            content=json.dumps(body, ensure_ascii=ascii_only).encode(),
            headers={"content-type": "application/json"},
        )
        assert made.status_code == 200, made.text
        assert made.json()["metadata"] == {text[:30]: text}
    listed = http.get(JOBS, params={f"metadata[{text[:30]}]": text}).json()["data"]
    assert len(listed) == 2


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_a_body_must_say_that_it_is_json(http: httpx.Client, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    error = check_envelope(http.post(JOBS, content=b'{"model": "tiny"}', headers=headers), 400)
    assert error["code"] == "invalid_content_type"


def test_several_problems_are_told_at_once(http: httpx.Client) -> None:
    error = check_envelope(http.post(CHAT, json={"messages": 1, "colour": 2}), 400)
    for name in ("'model'", "'messages'", "'colour'"):
        assert name in error["message"]


def test_a_large_body_is_413(http: httpx.Client) -> None:
    error = check_envelope(http.post(CHAT, json={"model": "x" * 2_000_000}), 413)
    assert error["code"] == "too_large"


def test_without_a_key_nothing_of_a_body_is_read(stack: Stack) -> None:
    kind = {"content-type": "application/json"}
    response = httpx.post(stack.url + CHAT, content=b"{broken", headers=kind)
    assert check_envelope(response, 401)["code"] == "missing_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    response = httpx.post(stack.url + "/v1/files", content=bytes(3 * 1024 * 1024))
    check_envelope(response, 401)


@pytest.mark.parametrize(
    "value", ["Bearer", "Basic x", "Bearer wrong", "bearer \xe9\xff", "x" * 5000]
)
def test_bad_keys_are_401(stack: Stack, value: str) -> None:
    headers = {"authorization": value.encode("latin-1")}
    check_envelope(httpx.get(f"{stack.url}/v1/models", headers=headers), 401)


def test_the_clients_own_request_id_is_not_taken(http: httpx.Client) -> None:
    response = http.get("/v1/models", headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] != "mine"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("host", ["evil.example", "/livez", "x?y", "a@b"])
def test_the_host_header_opens_nothing(stack: Stack, host: str) -> None:
    response = httpx.get(f"{stack.url}/v1/models", headers={"host": host})
    assert response.status_code in (400, 401)


def test_an_absolute_target_opens_nothing(stack: Stack) -> None:
    parts = urlsplit(stack.url)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        request = "GET http://x/livez/../v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        answer = connection.makefile("rb").read()
    assert answer.split(b"\r\n")[0].split()[1] in (b"400", b"401", b"404")


def test_keys_and_texts_stay_out_of_the_log(stack: Stack, http: httpx.Client, key: str) -> None:
    canary = "canary-7f3a"
    http.post(CHAT, json={"model": "tiny", "messages": [{"role": "user", "content": canary}]})
    http.post(CHAT, json={"model": canary, "messages": []})
    http.get(f"/v1/files/{canary}%0a")
    log = stack.log.read_text()
    assert canary not in log
    assert key not in log
