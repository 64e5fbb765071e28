import pytest

from core.database import Database
from core.errors import InvalidRequest, NotFound
from models.tables import api_key


def test_a_key_opens_until_it_is_revoked(database: Database) -> None:
    with database.unit_of_work() as session:
        row, secret = api_key.create(session, tenant="acme", name="laptop")
    assert secret not in (row.secret_hash, row.hint)
    with database.unit_of_work() as session:
        found = api_key.find_by_secret(session, secret)
        assert found is not None
        assert found.tenant == "acme"
        assert api_key.find_by_secret(session, secret + "x") is None
        api_key.revoke(session, row.id)
    with database.unit_of_work() as session:
        assert api_key.find_by_secret(session, secret) is None
    with pytest.raises(NotFound), database.unit_of_work() as session:
        api_key.revoke(session, row.id)


def test_a_name_is_as_long_as_its_column(database: Database) -> None:
    with database.unit_of_work() as session:
        api_key.create(session, tenant="acme", name="x" * 64)
    with pytest.raises(InvalidRequest, match="65"), database.unit_of_work() as session:
        api_key.create(session, tenant="acme", name="x" * 65)


@pytest.mark.parametrize("name", ["", "Acme", "a b", "../x", "a" * 33, "a:b"])
def test_a_tenant_name_is_fit_for_a_model_name(database: Database, name: str) -> None:
    with pytest.raises(InvalidRequest), database.unit_of_work() as session:
        api_key.create(session, tenant=name, name="x")
