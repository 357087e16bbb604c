"""What may stand in the configuration, and that nothing in it is read as nginx's syntax."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flywheel_operator.manifests.router_config import RouterConfig, RouterConfigError, Timeouts, Upstream
from flywheel_operator.manifests.router_nginx import TOKEN_INCLUDE, render
from tests.router.harness import NGINX, needs_nginx

HERE = Upstream(("127.0.0.1:1",))
TEST: dict[str, Any] = {
    "test": "luna-2",
    "salt": "uid-1",
    "control": HERE,
    "treatment": HERE,
    "control_percent": 10,
    "treatment_percent": 10,
}


def make(**changes: Any) -> RouterConfig:  # noqa: ANN401 -- any field
    given: dict[str, Any] = {"lineage": "luna", "production": HERE}
    return RouterConfig(**given | changes)


BAD = [
    {"lineage": ""},
    {"lineage": "Luna"},
    {"lineage": "luna;"},
    {"lineage": "luna\n"},
    {"user_header": ""},
    {"user_header": "X User"},
    {"user_header": "X_User"},
    {"user_header": "X-User\n"},
    {"user_header": "X" * 65},
    {"user_header": "Cookie"},
    {"user_header": "x-Flywheel-Arm"},
    {"trusted_proxies": ("10.0.0.1/33",)},
    {"trusted_proxies": ("all",)},
    {"trusted_proxies": ("fe80::1%; }",)},
    {"trusted_proxies": ("10.0.0.0/8",) * 65},
    {"max_body_bytes": 0},
    {"max_body_bytes": (1 << 30) + 1},
    {"workers": 0},
    {"port": 0},
    {"port": 65536},
    {"port": 9103},
    {"test": "luna-2"},
    {"control": HERE},
    {"treatment": HERE},
    {"control_percent": 10},
    {"treatment_paused": True},
    TEST | {"test": "a b"},
    TEST | {"salt": ""},
    TEST | {"salt": "a|b$c"},
    TEST | {"control": None},
    TEST | {"treatment": None},
    TEST | {"control_percent": 95},
    TEST | {"control_percent": -1},
    TEST | {"control_percent": 0.001, "control": None},
    TEST | {"treatment_percent": 101},
    TEST | {"treatment_percent": float("nan")},
]


@pytest.mark.parametrize("changes", BAD, ids=str)
def test_what_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RouterConfigError):
        make(**changes)


@pytest.mark.parametrize(
    "servers",
    [
        *[(), ("luna",), ("luna:",), ("luna:0",), ("luna:65536",), ("luna:80;",), ("Luna:80",), (":80",), ("a..b:80",)],
        *[("1.2.3:80",), ("1.2.3.400:80",), ("luna:80\n",), ("unix:/tmp/x",), ("luna:٣",), ("a" * 64 + ":80",)],
        ("luna:80",) * 65,
    ],
    ids=str,
)
def test_what_is_no_upstream(servers: tuple[str, ...]) -> None:
    with pytest.raises(RouterConfigError):
        Upstream(servers)


@pytest.mark.parametrize(
    "changes", [{"connect": 0}, {"read": 86401}, {"idle": float("nan")}, {"turnover": -1}], ids=str
)
def test_what_is_no_timeout(changes: dict[str, float]) -> None:
    with pytest.raises(RouterConfigError):
        Timeouts(**changes)


def test_what_is_taken() -> None:
    make(**TEST, trusted_proxies=("10.0.0.0/8", "fd00::/8"), user_header="X-Forwarded-User")
    make(**TEST | {"treatment": None, "treatment_paused": True})
    make(**TEST | {"control": None, "control_percent": 0})
    make(**TEST | {"control_percent": 33.33, "treatment_percent": 66.67})
    assert "0.01% treatment;\n        66.66% none;" in render(
        make(**TEST | {"control_percent": 33.333, "treatment_percent": 1e-9})
    )
    assert render(make(trusted_proxies=("10.0.0.1/8", "10.0.0.0/8", "10.9.9.9"))).count("10.0.0.0/8 1;") == 1
    Upstream(("luna-control.lab.svc.cluster.local:80", "10.1.2.3:8001"))


label = r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?"
names = st.from_regex(label, fullmatch=True)
hosts = st.one_of(names, st.from_regex(rf"{label}(\.{label}){{1,3}}", fullmatch=True), st.ip_addresses(v=4).map(str))
upstreams = st.lists(st.builds("{}:{}".format, hosts, st.integers(1, 65535)), min_size=1, max_size=3).map(
    lambda servers: Upstream(tuple(servers))
)
headers = st.from_regex(r"My(-[A-Za-z0-9]{1,9}){1,6}", fullmatch=True)
networks = st.one_of(st.ip_addresses().map(str), st.just("10.0.0.0/8"), st.just("::/0"))
shares = st.integers(0, 5_000).map(lambda n: n / 100)


@pytest.mark.parametrize("field", ["lineage", "test", "salt", "user_header", "trusted_proxies", "production"])
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_text_is_taken_that_means_something_to_nginx(field: str, data: st.DataObject) -> None:
    text = data.draw(st.one_of(st.text(max_size=20), st.from_regex(r"[a-zA-Z0-9.:/-]{1,9}[^a-z]?[a-z0-9]{0,3}")))
    try:
        value = Upstream((text,)) if field == "production" else (text,) if field == "trusted_proxies" else text
        make(**TEST | {field: value})
    except RouterConfigError:
        return
    assert re.fullmatch(r"[A-Za-z0-9._:/-]+", text, re.ASCII)


@needs_nginx
@settings(
    max_examples=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # what fails is short enough to read
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.fixed_dictionaries(
        {
            "lineage": names, "test": names, "salt": st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True),
            "user_header": headers, "trusted_proxies": st.lists(networks, max_size=4).map(tuple),
            "production": upstreams, "control": upstreams, "treatment": upstreams,
            "control_percent": shares, "treatment_percent": shares, "treatment_paused": st.booleans(),
            "max_body_bytes": st.integers(1, 1 << 30), "workers": st.integers(1, 3),
        }
    )
)  # fmt: skip
def test_nginx_takes_whatever_we_take(tmp_path: Path, fields: dict[str, Any]) -> None:
    text = render(make(**fields))
    # What the entrypoint does: it puts addresses in place of names.
    text = re.sub(r"^( *server) \S+ max_fails", r"\1 127.0.0.1:1 max_fails", text, flags=re.MULTILINE)
    (tmp_path / TOKEN_INCLUDE).write_text('proxy_set_header x-flywheel-router-token "token";\n')
    (tmp_path / "nginx.conf").write_text(text)
    done = subprocess.run(
        [str(NGINX), "-e", "stderr", "-t", "-p", f"{tmp_path}/", "-c", str(tmp_path / "nginx.conf")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
