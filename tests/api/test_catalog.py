import time

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from core.ids import random_letters
from tests.api.conftest import Stack, add_adapter, tenant_of


@pytest.fixture
def tenant(stack: Stack, key: str) -> str:
    return tenant_of(stack, key)


def test_the_base_and_own_adapters_are_listed(stack: Stack, client: OpenAI, tenant: str) -> None:
    with stack.database.unit_of_work() as session:
        mine = add_adapter(session, tenant)
        add_adapter(session, "somebody")
    listed = {item.id: item for item in client.models.list()}
    assert set(listed) == {"tiny", mine.name}
    assert listed["tiny"].owned_by == "graftwork"
    assert listed[mine.name].owned_by == tenant
    assert client.models.retrieve(mine.name) == listed[mine.name]
    assert client.models.retrieve("tiny").model_extra["graftwork"]["kind"] == "base"


@pytest.mark.parametrize("name", ["ft:a/b:{}:x", "ft:tiny:{}:über ☃", "ft:a%2Fb:{}"])
def test_ids_with_slashes_and_other_letters_work(
    stack: Stack, client: OpenAI, tenant: str, name: str
) -> None:
    name = name.format(random_letters(6))
    with stack.database.unit_of_work() as session:
        add_adapter(session, tenant, name=name)
    assert client.models.retrieve(name).id == name
    assert client.models.delete(name).deleted
    with pytest.raises(NotFoundError) as gone:
        client.models.retrieve(name)
    assert (gone.value.code, gone.value.param) == ("model_not_found", "model")


def test_deleting_tells_the_engine_when_nobody_has_the_bytes(
    stack: Stack, client: OpenAI, tenant: str
) -> None:
    digest = random_letters(64).lower()
    with stack.database.unit_of_work() as session:
        first = add_adapter(session, tenant, digest=digest)
        second = add_adapter(session, "somebody", digest=digest)
    client.models.delete(first.name)
    assert digest not in stack.engine.dropped
    with pytest.raises(NotFoundError):
        client.models.delete(second.name)
    assert digest not in stack.engine.dropped
    with OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key("somebody")) as other:
        other.models.delete(second.name)
    assert digest in stack.engine.dropped


def test_the_base_stays(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as error:
        client.models.delete("tiny")
    assert error.value.code == "base_not_deletable"


def test_methods_show_their_options_and_size(http: httpx.Client) -> None:
    listed = {item["type"]: item for item in http.get("/v1/methods").json()["data"]}
    assert {"lora", "ia3"} <= set(listed)
    lora = listed["lora"]
    assert lora["schema"]["properties"]["rank"]["default"] == 16
    assert lora["schema"]["additionalProperties"] is False
    assert lora["parameters"] == 16 * ((8 + 8) * 2 + (8 + 4) * 2 + (16 + 8) * 3)
    assert lora["shares_batch"] is True
    assert lora["description"]


def test_the_description_of_the_api_has_the_methods_and_the_envelope(http: httpx.Client) -> None:
    text = http.get("/v1/openapi.json").text
    assert "HTTPValidationError" not in text
    assert '"Lora"' in text
    assert '"ErrorEnvelope"' in text
    assert '"HTTPBearer"' in text


def test_a_revoked_key_is_refused_at_once(stack: Stack) -> None:
    from models.tables import api_key

    secret = stack.key()
    headers = {"authorization": f"Bearer {secret}"}
    assert httpx.get(f"{stack.url}/v1/models", headers=headers).status_code == 200
    with stack.database.unit_of_work() as session:
        found = api_key.find_by_secret(session, secret)
        assert found
        api_key.revoke(session, found.id)
    started = time.monotonic()
    assert httpx.get(f"{stack.url}/v1/models", headers=headers).status_code == 401
    assert time.monotonic() - started < 5
