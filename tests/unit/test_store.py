"""The store: order, revisions, audit, migration, refusal of newer files."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from jupyter_mlops.core import schema
from jupyter_mlops.core.errors import Conflict, NotFound, PreconditionFailed, Refused, Unavailable
from jupyter_mlops.core.identity import Identity
from jupyter_mlops.core.store import Store

ANN = Identity("ann", "owner", token_id="t1")


@pytest.fixture
def store(tmp_path):
    s = Store(tmp_path / "store.db")
    s.open()
    yield s
    s.close()


async def put(store, name, spec, **options):
    return await store.write(lambda tx: tx.put("compute", name, spec, identity=ANN, **options))


async def test_put_counts_revisions_and_generations(store):
    first, created = await put(store, "a", {"x": 1})
    assert (first.revision, first.generation, created) == (1, 1, True)
    same, created = await put(store, "a", {"x": 1})
    assert (same.revision, created) == (1, False)
    other, _ = await put(store, "a", {"x": 2})
    assert (other.revision, other.generation) == (2, 2)
    status = await store.write(lambda tx: tx.set_status("compute", "a", {"phase": "Ready"}))
    assert (status.revision, status.generation, status.status) == (3, 2, {"phase": "Ready"})
    again = await store.write(lambda tx: tx.set_status("compute", "a", {"phase": "Ready"}))
    assert again.revision == 3


async def test_preconditions(store):
    await put(store, "a", {"x": 1}, if_none_match=True)
    with pytest.raises(PreconditionFailed):
        await put(store, "a", {"x": 1}, if_none_match=True)
    with pytest.raises(PreconditionFailed):
        await put(store, "a", {"x": 2}, if_match=7)
    with pytest.raises(PreconditionFailed):
        await put(store, "b", {"x": 2}, if_match=1)
    updated, _ = await put(store, "a", {"x": 2}, if_match=1)
    assert updated.revision == 2


async def test_immutable_spec_is_a_conflict_only_when_it_differs(store):
    await put(store, "a", {"x": 1}, mutable=())
    await put(store, "a", {"x": 1}, mutable=())
    with pytest.raises(Conflict):
        await put(store, "a", {"x": 2}, mutable=())


async def test_a_failed_transaction_leaves_nothing(store):
    def work(tx):
        tx.put("compute", "a", {}, identity=ANN)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        await store.write(work)
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.get("compute", "a"))
    assert await store.read(lambda tx: tx.changes(0)) == []
    assert (await store.read(lambda tx: tx.audit_rows(10)))[0] == []


async def test_every_change_has_its_audit_and_feed_row(store):
    await put(store, "a", {"x": 1})
    await put(store, "a", {"x": 2})
    await store.write(lambda tx: tx.mark_deleting("compute", "a", identity=ANN))
    await store.write(lambda tx: tx.remove("compute", "a"))
    rows, _ = await store.read(lambda tx: tx.audit_rows(10))
    assert [(r["action"], r["detail"]["op"], r["user"]) for r in rows] == [
        ("computes/delete", "delete", "ann"), ("computes/write", "update", "ann"), ("computes/write", "create", "ann")
    ]
    changes = await store.read(lambda tx: tx.changes(0))
    assert [c["op"] for c in changes] == ["put", "put", "put", "delete"]
    assert [c["seq"] for c in changes] == [1, 2, 3, 4]


async def test_a_glance_reads_only_what_has_changed(store):
    reads = []
    look = store.glance(lambda tx: (reads.append(1), tx.keys("compute"))[1])
    assert await look() == [] and await look() == [] and len(reads) == 1
    await store.write(lambda tx: tx.record_change("run"))
    await look()
    assert len(reads) == 1, "the feed is no resource"
    for change in (
        lambda tx: tx.put("compute", "a", {}, identity=ANN),
        lambda tx: tx.set_status("compute", "a", {"phase": "Ready"}),
        lambda tx: tx.set_private("compute", "a", {"x": 1}),
        lambda tx: tx.mark_deleting("compute", "a", identity=ANN),
        lambda tx: tx.remove("compute", "a"),
    ):
        before = len(reads)
        await store.write(change)
        there = await store.read(lambda tx: tx.keys("compute"))
        assert await look() == there and await look() == there and len(reads) == before + 1
    with pytest.raises(ZeroDivisionError):
        await store.write(lambda tx: (tx.put("compute", "b", {}, identity=ANN), 1 / 0))
    assert await look() == []


async def test_concurrent_writers_get_distinct_ordered_numbers(store):
    await asyncio.gather(*(put(store, f"c{i}", {"i": i}) for i in range(40)))
    changes = await store.read(lambda tx: tx.changes(0))
    assert [c["seq"] for c in changes] == list(range(1, 41))


async def test_numbers_are_not_used_again_after_pruning(store):
    await put(store, "a", {"x": 1})
    await store.write(lambda tx: tx.prune_changes(0))
    await put(store, "b", {"x": 1})
    assert [c["seq"] for c in await store.read(lambda tx: tx.changes(0))] == [2]


async def test_paging_newest_first(store):
    for i in range(5):
        await put(store, f"c{i}", {})
    page, mark = await store.read(lambda tx: tx.page("compute", limit=2))
    assert [r.name for r in page] == ["c4", "c3"]
    page, mark = await store.read(lambda tx: tx.page("compute", limit=2, before=mark))
    assert [r.name for r in page] == ["c2", "c1"]
    page, mark = await store.read(lambda tx: tx.page("compute", limit=2, before=mark))
    assert ([r.name for r in page], mark) == (["c0"], None)


async def test_intent_is_answered_once(store):
    first = await store.intent("r1", ANN, "runs/write", "runs", {})
    assert first.fresh
    repeat = await store.intent("r1", ANN, "runs/write", "runs", {})
    assert (repeat.id, repeat.fresh, repeat.outcome) == (first.id, False, None)
    assert [i.id for i in await store.open_intents()] == [first.id]
    await store.outcome(first.id, "done", 200, b'{"a": 1}')
    repeat = await store.intent("r1", ANN, "runs/write", "runs", {})
    assert (repeat.outcome, repeat.response) == ("done", (200, b'{"a": 1}'))
    assert await store.open_intents() == []
    with pytest.raises(Conflict):
        await store.intent("r1", ANN, "models/write", "models", {})


async def test_reopening_keeps_everything(tmp_path):
    s = Store(tmp_path / "store.db")
    s.open()
    await put(s, "a", {"x": 1})
    s.close()
    s = Store(tmp_path / "store.db")
    s.open()
    assert (await s.read(lambda tx: tx.get("compute", "a"))).spec == {"x": 1}
    s.close()
    assert not list(tmp_path.glob("store.db.before-*")), "nothing to migrate, so nothing to back up"
    assert (tmp_path / "store.db").stat().st_mode & 0o077 == 0


def test_a_newer_database_is_refused_in_one_line(tmp_path):
    s = Store(tmp_path / "store.db")
    s.open()
    s.close()
    with sqlite3.connect(tmp_path / "store.db") as c:
        c.execute("UPDATE alembic_version SET version_num = '9999'")
    s = Store(tmp_path / "store.db")
    with pytest.raises(Refused, match="newer version") as e:
        s.open()
    assert "\n" not in str(e.value)
    s.close()


def test_migrations_and_tables_agree(tmp_path):
    """The schema in code is the one that migrations make."""
    import sqlalchemy as sa

    s = Store(tmp_path / "store.db")
    s.open()
    s.close()
    inspector = sa.inspect(sa.create_engine(f"sqlite:///{tmp_path / 'store.db'}"))
    for table in schema.metadata.tables.values():
        made = {c["name"]: (str(c["type"]), c["nullable"]) for c in inspector.get_columns(table.name)}
        declared = {c.name: (str(c.type), bool(c.nullable)) for c in table.columns}
        assert made == declared, table.name
        assert {i["name"] for i in inspector.get_indexes(table.name)} == {i.name for i in table.indexes}


async def test_a_full_disk_changes_nothing_and_says_so(tmp_path):
    store = Store(tmp_path / "store.db")
    store.open()
    try:
        pages = await store.write(lambda tx: tx.connection.exec_driver_sql("PRAGMA page_count").scalar())
        await store.write(lambda tx: tx.connection.exec_driver_sql(f"PRAGMA max_page_count={pages}").scalar())
        spec = {"type": "local", "description": "x" * 200_000}
        with pytest.raises(Unavailable, match="full"):
            await store.write(lambda tx: tx.put("compute", "big", spec, identity=ANN))
        assert await store.read(lambda tx: tx.find("compute", "big")) is None
        await store.write(lambda tx: tx.connection.exec_driver_sql("PRAGMA max_page_count=1000000").scalar())
        await store.write(lambda tx: tx.put("compute", "big", spec, identity=ANN))
        assert (await store.read(lambda tx: tx.get("compute", "big"))).spec == spec
    finally:
        store.close()


def test_a_database_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "store.db").write_text("no database " * 100)
    with pytest.raises(Unavailable, match="not a database"):
        Store(tmp_path / "store.db").open()
