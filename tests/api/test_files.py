import httpx
import pytest
from openai import APIStatusError, NotFoundError, OpenAI

from models.tables.file import File
from tests.api.conftest import CHAT_ROW, MIB, Stack

EVIL_NAMES = [
    "../../etc/passwd",
    "..\\x",
    "a/b",
    "über ☃ 'x'.jsonl",
    "CON",
    "%2e%2e",
    "\u202egpj.x",
]


def test_a_file_goes_through_its_life(client: OpenAI) -> None:
    made = client.files.create(file=("rows.jsonl", CHAT_ROW), purpose="fine-tune")
    assert (made.filename, made.bytes, made.purpose) == ("rows.jsonl", len(CHAT_ROW), "fine-tune")
    assert client.files.wait_for_processing(made.id).status == "processed"
    assert client.files.retrieve(made.id) == made
    content = client.files.content(made.id)
    assert content.read() == CHAT_ROW
    assert content.response.headers["x-content-type-options"] == "nosniff"
    assert content.response.headers["content-disposition"].startswith("attachment")
    assert client.files.delete(made.id).deleted
    with pytest.raises(NotFoundError) as gone:
        client.files.retrieve(made.id)
    assert gone.value.code == "file_not_found"
    with pytest.raises(NotFoundError):
        client.files.content(made.id)


def test_lists_page_filter_and_turn_around(client: OpenAI) -> None:
    ids = [
        client.files.create(file=(f"{number}.jsonl", CHAT_ROW), purpose=purpose).id
        for number, purpose in enumerate(["fine-tune", "batch", "fine-tune"])
    ]
    assert [item.id for item in client.files.list(limit=1)] == ids[::-1]
    assert [item.id for item in client.files.list(limit=2, order="asc")] == ids
    assert [item.id for item in client.files.list(purpose="fine-tune")] == [ids[2], ids[0]]
    page = client.files.list(limit=2)
    assert (page.has_more, len(page.data)) == (True, 2)
    assert client.files.list(after="file-unknown").data == []


def test_what_is_deleted_while_it_is_paged_ends_no_list(client: OpenAI) -> None:
    for name in "abcde":
        client.files.create(file=(name, b"x"), purpose="user_data")
    for made in client.files.list(limit=2, purpose="user_data"):
        client.files.delete(made.id)
    assert client.files.list(purpose="user_data").data == []


def test_lifetimes_count_from_creation(client: OpenAI) -> None:
    made = client.files.create(
        file=("a", b"x"),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert made.expires_at == made.created_at + 3600
    for seconds in (5, 2_592_001, 10**25):
        with pytest.raises(APIStatusError) as refused:
            client.files.create(
                file=("a", b"x"),
                purpose="batch",
                expires_after={"anchor": "created_at", "seconds": seconds},
            )
        assert refused.value.param == "expires_after.seconds"


def test_a_file_past_its_time_is_gone(stack: Stack, client: OpenAI) -> None:
    made = client.files.create(
        file=("a", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    with stack.database.unit_of_work() as session:
        row = session.query(File).filter_by(id=made.id).one()
        row.expires_at = row.created_at - 1
    with pytest.raises(NotFoundError):
        client.files.retrieve(made.id)


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_a_name_is_a_label_and_never_a_path(stack: Stack, client: OpenAI, name: str) -> None:
    made = client.files.create(file=(name, b"x"), purpose="fine-tune")
    assert made.filename == name
    assert client.files.content(made.id).read() == b"x"
    assert not [path for path in stack.data_folder.rglob("*") if "passwd" in path.name]


@pytest.mark.parametrize(
    ("form", "files", "code", "param"),
    [
        ({}, {"file": ("a", b"x")}, "missing_required_parameter", "purpose"),
        ({"purpose": "fine-tune"}, {"other": ("a", b"x")}, "invalid_multipart", None),
        ({"purpose": "nothing"}, {"file": ("a", b"x")}, "invalid_value", "purpose"),
        ({"purpose": "fine-tune"}, {"file": ("a", b"")}, "empty_file", "file"),
        ({"purpose": "fine-tune", "x": "1"}, {"file": ("a", b"x")}, "unknown_parameter", "x"),
        ({"purpose": "fine-tune"}, {"file": ("a" * 300, b"x")}, "invalid_filename", "file"),
        ({"purpose": "fine\0"}, {"file": ("a", b"x")}, "invalid_text", None),
        ({"purpose": "x" * 5000}, {"file": ("a", b"x")}, "invalid_multipart", None),
    ],
)
def test_a_bad_form_says_what_is_wrong(
    http: httpx.Client, form: dict, files: dict, code: str, param: str | None
) -> None:
    response = http.post("/v1/files", data=form, files=files)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{}", "application/json"),
        (b"--x\r\nContent-Disp", "multipart/form-data; boundary=x"),
        (b"garbage", "multipart/form-data; boundary=x"),
        (b"--x\r\n\r\nbody\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data; boundary=x"),
        (b"--x--\r\n", "multipart/form-data; boundary=x"),
        (b"--x\r\n", "multipart/form-data"),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="\xff"\r\n\r\na',
            "multipart/form-data; boundary=x",
        ),
    ],
)
def test_a_broken_form_is_a_400(http: httpx.Client, content: bytes, kind: str) -> None:
    response = http.post("/v1/files", content=content, headers={"content-type": kind})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_a_file_over_the_limit_is_cut_off(stack: Stack, http: httpx.Client) -> None:
    response = http.post(
        "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", bytes(2 * MIB + 1))}
    )
    assert (response.status_code, response.json()["error"]["code"]) == (413, "file_too_large")
    at_limit = http.post(
        "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", bytes(2 * MIB))}
    )
    assert at_limit.status_code == 200
    assert list((stack.data_folder / "uploads").iterdir()) == []


def test_a_body_without_a_length_is_cut_off_too(http: httpx.Client) -> None:
    sent = 0

    def body():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while sent < 64 * MIB:
            sent += MIB
            yield bytes(MIB)

    kind = {"content-type": "multipart/form-data; boundary=x"}
    try:
        response = http.post("/v1/files", content=body(), headers=kind)
    except httpx.TransportError:
        pass  # the connection was closed in the middle, which is the point
    else:
        assert response.status_code == 413
    assert sent < 32 * MIB


def test_the_sdk_hears_of_a_declared_length_over_the_limit(client: OpenAI) -> None:
    with pytest.raises(APIStatusError) as refused:
        client.files.create(file=("a", bytes(4 * MIB)), purpose="fine-tune")
    assert (refused.value.status_code, refused.value.type) == (413, "invalid_request_error")


def test_equal_bytes_of_two_files_outlive_one_of_them(client: OpenAI) -> None:
    first = client.files.create(file=("a", b"same"), purpose="batch")
    second = client.files.create(file=("b", b"same"), purpose="batch")
    client.files.delete(first.id)
    assert client.files.content(second.id).read() == b"same"


def test_another_tenants_file_reads_like_a_missing_one(stack: Stack, client: OpenAI) -> None:
    made = client.files.create(file=("a", b"x"), purpose="batch")
    with OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key(), max_retries=0) as other:
        for act in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(NotFoundError) as foreign:
                act(made.id)
            with pytest.raises(NotFoundError) as missing:
                act("file-missing")
            assert foreign.value.message.replace(made.id, "file-missing") == missing.value.message
        assert other.files.list(after=made.id).data == []
    assert client.files.content(made.id).read() == b"x"
