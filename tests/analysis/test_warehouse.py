"""Tables of a warehouse: Postgres for real; the other engines as far as the SQL that they would be sent."""

from collections.abc import Iterator
from pathlib import Path

import ibis
import psycopg
import pytest
import sqlglot

from flywheel_analysis import users
from flywheel_analysis.period import Period, parse_time
from flywheel_contract.experiment import AnalysisResult
from tests.analysis import postgres, reference, traffic
from tests.analysis.test_outcomes import spec_file
from tests.analysis.traffic import T1, WINDOW

_PROGRAMS = postgres.binaries()


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    if _PROGRAMS is None:
        pytest.skip("Debian's PostgreSQL server is not installed (apt-get install postgresql)")
    with postgres.server(_PROGRAMS) as url:
        yield url


def fill(url: str, seed: int, zone: str = "timestamptz") -> tuple[list, list, list]:
    exposures, events, covariates = traffic.make(seed)
    tables = {
        "exposures": (f"user_id text, arm text, ts {zone}", exposures),
        "events": (f"user_id text, ts {zone}, type text, value numeric, event_id text", events),
        "covariates": ("user_id text, pre_messages bigint, pre_active_days integer", covariates),
    }
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SET timezone = 'UTC'")
        for name, (columns, rows) in tables.items():
            cursor.execute(f"DROP TABLE IF EXISTS {name}; CREATE TABLE {name} ({columns})")
            fields = [column.split()[0] for column in columns.split(", ")]
            with cursor.copy(f"COPY {name} ({', '.join(fields)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row([row[field] for field in fields])
    return exposures, events, covariates


def places(url: str) -> list[str]:
    return [f"--{name}={url}?table={name}&schema=public" for name in ("exposures", "events", "covariates")]


@pytest.mark.parametrize("zone", ["timestamptz", "timestamp"])
def test_postgres_gives_the_same_numbers(database: str, zone: str) -> None:
    table = reference.per_user(*fill(database, 6, zone), T1)
    report = traffic.run(*places(database), *WINDOW)
    found = traffic.by_name(report)
    for name in [*reference.RATIOS, *(n + "Cuped" for n in reference.COVARIATE)]:
        wanted = reference.estimate(table, name)
        for key in ("lift", "low", "high"):
            assert found[name][key] == pytest.approx(wanted[key], rel=1e-8), (name, key)
    for arm in ("control", "treatment"):
        assert report["users"][arm] == len(table[arm]["messages"])


def test_postgres_with_a_spec_of_short_days_and_own_metrics(database: str, tmp_path: Path) -> None:
    fill(database, 7)
    spec = spec_file(tmp_path, dimensions=["event_id", "arm"])
    report = traffic.run(*places(database), *WINDOW, "--spec", spec, "--test", "")
    files = []
    for name, rows in zip(("exposures", "events", "covariates"), traffic.make(7), strict=True):
        files += [f"--{name}", traffic.write_lines(rows, tmp_path / f"{name}.jsonl")]
    same = traffic.run(*files, *WINDOW, "--spec", spec, "--test", "")
    for ours, theirs in zip(report["metrics"], same["metrics"], strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("lift", "low", "high", "differenceUpper"):
            assert ours.get(key) == pytest.approx(theirs.get(key), rel=1e-8), (ours["name"], key)
    assert [(b["value"], b["users"]) for b in report["exploration"] if b["dimension"] == "arm"] == [
        (b["value"], b["users"]) for b in same["exploration"] if b["dimension"] == "arm"
    ]


def test_reading_rights_are_enough(database: str) -> None:
    fill(database, 8)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("REVOKE TEMP ON DATABASE flywheel FROM PUBLIC")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
        connection.execute("ALTER ROLE reader SET default_transaction_read_only = on")
    user = database.split("://")[1].split("@", maxsplit=1)[0]
    report = traffic.run(*places(database.replace(f"{user}@", "reader@")), *WINDOW)
    assert report["users"]["control"] > 0
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP OWNED BY reader; DROP ROLE reader")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--events", "{url}?table=nothing"], 65, "nothing"),
        (["--events", "{url}"], 64, "?table=NAME"),
        (["--events", "postgres://other@127.0.0.1:9/x?table=events"], 64, "one database"),
        (["--covariates", "{url}?table=exposures"], 0, ""),
        (["--exposures", "{url}?table=covariates"], 65, "no column 'arm'"),
    ],
)
def test_what_is_wrong_with_a_table_is_told(
    database: str, tmp_path: Path, words: list[str], code: int, told: str
) -> None:
    fill(database, 8)
    log = tmp_path / "termination"
    given = [word.format(url=database) for word in words]
    assert traffic.attempt(*places(database), *given, *WINDOW, "--termination-log", log)[0] == code
    assert told in AnalysisResult.model_validate_json(log.read_text()).message


@pytest.mark.parametrize("engine", ["trino", "clickhouse", "bigquery", "postgres", "snowflake", "mysql"])
def test_the_same_path_makes_sql_for_every_engine(engine: str) -> None:
    moment = "timestamp('UTC')"
    exposures = ibis.table({"user_id": "string", "arm": "string", "ts": moment, "fallback": "boolean"}, name="x")
    events = ibis.table(
        {"user_id": "string", "ts": moment, "type": "string", "value": "float64", "event_id": "string"}, name="e"
    )
    covariates = ibis.table({"user_id": "string", "pre_messages": "int64", "pre_active_days": "int64"}, name="c")
    period = Period(parse_time("2026-03-02"), parse_time("2026-03-09"))
    found = users.exposed(exposures, period)
    known = users.Exposed(found.mutate(**{users.KEY: found[users.USER]}))
    rows = users.counted_events(users.once(events), known, period)
    table = users.per_user(known, users.summed(rows, period), users.covariates_by_key(covariates, known))
    text = str(ibis.to_sql(table, dialect=engine))
    assert sqlglot.parse_one(text, dialect=engine)
