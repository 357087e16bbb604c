"""`flywheel-gateway serve | erase | expire | hash-ids`."""

import argparse
import csv
import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from pydantic import ValidationError

from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.gateway_config import GATEWAY_CONFIG, GatewayConfig
from flywheel_contract.online import GATEWAY_PORT, METRICS_PORT
from flywheel_gateway import logs
from flywheel_gateway.erasure import WAIT_SECONDS, erase, expire
from flywheel_gateway.errors import ConfigError
from flywheel_gateway.keys import Keys, is_user_id, read_key
from flywheel_gateway.server import Process
from flywheel_gateway.stores import open_store

_log = logging.getLogger("flywheel_gateway")


def main(arguments: list[str] | None = None) -> int:
    """Does what the arguments say and answers the exit code."""
    parsed = _parser().parse_args(arguments)
    logs.configure(parsed.log_level)
    try:
        code: int = parsed.run(parsed)
    except ConfigError as error:
        _log.error("%s", error)
        return int(ExitCode.CONFIG)
    return code


def read_config(file: Path) -> GatewayConfig:
    """The configuration in a JSON file.

    Raises:
        ConfigError: it cannot be read, or a field is wrong; names the field.
    """
    try:
        return GatewayConfig.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"the configuration {file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the configuration {file}: {where}: {first['msg']}") from error


def _serve(parsed: argparse.Namespace) -> int:
    process = Process(read_config(parsed.config))
    uvloop.run(process.run(parsed.host, parsed.port, parsed.metrics_port))
    return int(ExitCode.DONE)


def _erase(parsed: argparse.Namespace) -> int:
    user = parsed.user
    if not is_user_id(user):
        raise ConfigError("--user: a user id has 1 to 256 characters without control characters")
    if not parsed.hashed:
        if parsed.key_file is None:
            raise ConfigError("--key-file: name the lineage's key, or give the id as it stands in the log by --hashed")
        user = Keys(read_key(parsed.key_file)).hash_user(user)
    receipt, name = erase(open_store(parsed.store), user, datetime.now(UTC), wait=parsed.wait)
    print(f"{name}: " + ", ".join(f"{count} {table}" for table, count in receipt.rows.items()))
    if receipt.open_segments:
        print(f"{len(receipt.open_segments)} segments are still open and hold rows of the user: run it again")
        return int(ExitCode.FAULT)
    return int(ExitCode.DONE)


def _expire(parsed: argparse.Namespace) -> int:
    removed = expire(open_store(parsed.store), datetime.now(UTC))
    print(f"{sum(removed.rows.values())} turns removed from {len(removed.files)} segments")
    return int(ExitCode.DONE)


def _hash_ids(parsed: argparse.Namespace) -> int:
    keys = Keys(read_key(parsed.key_file))
    if parsed.json_lines:
        return _hash_json_lines(keys, parsed.column or "user")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    rows = csv.reader(sys.stdin)
    column = 0
    if parsed.column is not None:
        header = next(rows, [])
        if parsed.column not in header:
            raise ConfigError(f"--column: the first line names no column {parsed.column!r}")
        column = header.index(parsed.column)
        writer.writerow(header)
    for row in rows:
        if len(row) <= column or not is_user_id(row[column]):
            raise ConfigError(f"line {rows.line_num}: no user id in column {column + 1}")
        writer.writerow([*row[:column], keys.hash_user(row[column]), *row[column + 1 :]])
    return int(ExitCode.DONE)


def _hash_json_lines(keys: Keys, field: str) -> int:
    """Traffic from elsewhere: rows as docs/data.md describes them, their users hashed as the gateway does."""
    for number, line in enumerate(sys.stdin, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"line {number} is no JSON ({error.msg}): write one object per line") from error
        user = row.get(field) if isinstance(row, dict) else None
        if not isinstance(user, str) or not is_user_id(user):
            raise ConfigError(f"line {number}: no user id in the field {field}")
        print(json.dumps({**row, field: keys.hash_user(user)}, ensure_ascii=False))
    return int(ExitCode.DONE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flywheel-gateway", description="The gateway beside a model server.")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    commands = parser.add_subparsers(required=True)

    serve = commands.add_parser("serve", help="serve until SIGTERM")
    serve.add_argument("--config", type=Path, default=Path(GATEWAY_CONFIG), help="default: %(default)s")
    serve.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")
    serve.add_argument("--port", type=int, default=GATEWAY_PORT, help="default: %(default)s")
    serve.add_argument("--metrics-port", type=int, default=METRICS_PORT, help="default: %(default)s")
    serve.set_defaults(run=_serve)

    erase_ = commands.add_parser("erase", help="remove a user's rows from the log and leave a receipt")
    erase_.add_argument("--user", required=True, help="the user's id")
    erase_.add_argument("--store", required=True, help="URI of the lineage's log, <artifacts>/<lineage>/traffic")
    erase_.add_argument("--key-file", type=Path, help="the lineage's key, which the id is hashed with")
    erase_.add_argument("--hashed", action="store_true", help="the id is given as it stands in the log")
    erase_.add_argument(
        "--wait", type=float, default=WAIT_SECONDS, help="seconds for open segments to close (default: %(default)g)"
    )
    erase_.set_defaults(run=_erase)

    expire_ = commands.add_parser("expire", help="remove the turns whose retain_until is over")
    expire_.add_argument("--store", required=True, help="URI of the lineage's log")
    expire_.set_defaults(run=_expire)

    hash_ids = commands.add_parser("hash-ids", help="CSV or JSON Lines from standard input with the user ids hashed")
    hash_ids.add_argument("--key-file", type=Path, required=True, help="the lineage's key")
    hash_ids.add_argument("--column", help="name of the column in the first line; left out, the first column, no names")
    hash_ids.add_argument(
        "--json-lines", action="store_true", help="objects instead of CSV; --column is the field, default: user"
    )
    hash_ids.set_defaults(run=_hash_ids)
    return parser


if __name__ == "__main__":
    sys.exit(main())
