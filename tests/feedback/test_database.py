from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from vca.errors import ArtifactError, ResourceError
from vca.feedback.database import HEAD, MIGRATIONS, Database
from vca.feedback.errors import StoreDown
from vca.feedback.schema import metadata
from vca.feedback.store import Store


def test_migrations_make_the_tables_that_the_code_knows(store: Store) -> None:
    with store.database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_newest_migration_is_the_one_that_alembic_takes_for_it() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_migrating_again_does_nothing_and_another_version_is_told(store: Store) -> None:
    store.database.migrate()
    store.database.check_version()
    with store.database.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0000'"))
    with pytest.raises(ArtifactError, match="vca feedback migrate"):
        store.database.check_version()


def test_a_transaction_is_whole_or_nothing(store: Store) -> None:
    def half() -> None:
        with store.database.writing() as connection:
            connection.execute(sa.text("UPDATE store_state SET value = 5"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    with store.database.reading() as connection:
        assert connection.execute(sa.text("SELECT value FROM store_state")).scalar_one() == 0


def test_reading_sees_one_state_throughout(store: Store) -> None:
    statement = sa.text("SELECT value FROM store_state")
    with store.database.reading() as reading:
        assert reading.execute(statement).scalar_one() == 0
        with store.database.writing() as writing:
            writing.execute(sa.text("UPDATE store_state SET value = 5"))
        assert reading.execute(statement).scalar_one() == 0


def test_a_database_that_is_not_there_is_told_in_one_line() -> None:
    for url in ("postgresql://nobody@127.0.0.1:9/none", "sqlite:////proc/none/store.sqlite"):
        with pytest.raises((StoreDown, ResourceError), match="feedback store can't be"):
            Database(url).ping()
