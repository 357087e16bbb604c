"""The router's nginx.conf, from a RouterConfig.

Treatment takes the first slice of the buckets and control the last, so ramping a share never moves a user between
them; who is in neither goes to production. Comments in the template stay in the rendered file: it is read by whoever
looks at the ConfigMap.
"""

import json
from collections.abc import Iterable
from string import Template
from typing import Final

from flywheel_contract.experiment import Arm
from flywheel_contract.online import (
    COOKIE_USER,
    HEADER_ARM,
    HEADER_FALLBACK,
    HEADER_NEW_USER,
    HEADER_TEST,
    HEADER_USER,
    NOT_ENROLLED,
    USER_ID_MAX_LENGTH,
)
from flywheel_operator.manifests.router_config import RouterConfig, Upstream, hundredths, network

TOKEN_INCLUDE: Final = "token.conf"
"""Beside nginx.conf: the header with the router's token, written by the image's entrypoint from the mounted Secret."""
KEPT_CONNECTIONS: Final = 64
"""Idle connections to an upstream that a worker keeps."""
ROUTES: Final = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/sessions", "/v1/events")
"""The paths that the access log names; no other, for a path may hold anything."""


class _Text(Template):
    """`%{name}` is filled in; `$name` is nginx's own."""

    delimiter = "%"


_NGINX: Final = _Text("""\
# The router of lineage %{lineage}. Relative paths lie in the folder that nginx is started with.
daemon off;
pid nginx.pid;
error_log stderr warn;
worker_processes %{workers};
pcre_jit on;
events {
    worker_connections 8192;
}
http {
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    default_type application/json;
    server_tokens off;
    gzip off;

    # The log tells nobody apart: no user id, no address, no query, no path but the known ones. Not even $request_id,
    # which is the id of who is new.
    map $uri $flywheel_route {
        default other;%{routes}
    }
    log_format flywheel escape=json '{"time":"$time_iso8601","lineage":"%{lineage}","test":"%{test}",'
        '"arm":"$flywheel_arm","fallback":"$flywheel_fallback","route":"$flywheel_route","status":$status,'
        '"bytes":$bytes_sent,"seconds":$request_time,"upstreamStatus":"$upstream_status",'
        '"upstreamFirstByteSeconds":"$upstream_header_time","upstreamSeconds":"$upstream_response_time"}';
    access_log /dev/stdout flywheel buffer=32k flush=1s;

    # Who it is: the header of a configured proxy; else the id in the cookie, whose signature the gateway checks (a
    # forged one only chooses a bucket); else an id drawn here, which the gateway signs. One of the three, the others
    # are empty. A tab stands for what can be no id.
    geo $flywheel_peer {
        default 0;%{proxies}
    }
    map "$flywheel_peer$%{http_user}" $flywheel_user {
        default "\\t";
        0 "";
        1 "";
        "~^0" "";
        "~^1(?<flywheel_vouched>[^\\x00-\\x1f\\x7f]{1,%{max_length}})$" $flywheel_vouched;
    }
    map "$flywheel_user;$cookie_%{cookie}" $flywheel_cookie_user {
        default "";
        "~^;(?<flywheel_cookie_id>[A-Za-z0-9_-]{1,64})\\.[A-Za-z0-9_-]{43}=?$" $flywheel_cookie_id;
    }
    map "$flywheel_user$flywheel_cookie_user" $flywheel_new_user {
        default "";
        "" $request_id;
    }
    split_clients "%{salt}|$flywheel_user$flywheel_cookie_user$flywheel_new_user" $flywheel_arm {%{split}
    }

    # What becomes of a request that got no reply. Production takes an arm's only where the arm cannot have worked on
    # it: nothing was sent, or the gateway said 503 (not ready), or the method changes nothing.
    map "$flywheel_arm$flywheel_fallback $request_method $upstream_status;$upstream_bytes_sent" $flywheel_failure {
        volatile;
        default failed;
        "~^(control|treatment) (GET|HEAD|OPTIONS) " fallback;
        "~^(control|treatment) \\S+ (.*[ ,:])?503;" fallback;
        "~^(control|treatment) .*;(.* : )?0(, 0)*$" fallback;
        "~[ ,:]503;" unavailable;
        "~;(.* : )?0(, 0)*$" unavailable;
        "~[ ,:]504;" timeout;
    }

    # An upstream for each arm, by its name. `none`, who is not enrolled, is production.
%{upstreams}
    server {
        listen %{port} backlog=4096;
        # A connection of this age closes with the next reply, and says so: the client opens a new one, which a pod of
        # the newest configuration takes. An idle one lives longer than ingress controllers keep theirs.
        keepalive_time %{turnover};
        keepalive_timeout %{idle};
        keepalive_requests 100000;
        client_header_timeout 10s;
        client_body_timeout 60s;
        send_timeout 60s;
        large_client_header_buffers 4 8k;
        client_max_body_size %{max_body};
        client_body_buffer_size 256k;

        proxy_http_version 1.1;
        proxy_buffering off;
        proxy_connect_timeout %{connect};
        proxy_read_timeout %{read};
        proxy_send_timeout 60s;
        proxy_socket_keepalive on;
        proxy_next_upstream error timeout;
        proxy_intercept_errors on;
        proxy_ignore_headers X-Accel-Redirect X-Accel-Limit-Rate X-Accel-Buffering X-Accel-Charset X-Accel-Expires;
        recursive_error_pages on;
        error_page 502 503 504 = @failed;
        error_page 413 = @too_large;

        # Whatever a client sends under these names is replaced; an empty value sends none.
        proxy_headers_hash_bucket_size 128;
        include %{token_include};
        proxy_set_header Host $host;
        proxy_set_header Connection "";
        proxy_set_header %{user_header} "";
        proxy_set_header %{header_user} $flywheel_user;
        proxy_set_header %{header_new_user} $flywheel_new_user;
        proxy_set_header %{header_test} "%{test}";
        proxy_set_header %{header_arm} $flywheel_arm;
        proxy_set_header %{header_fallback} $flywheel_fallback;

        if ($flywheel_user = "\\t") {
            return 400 '%{bad_user}';
        }
        set $flywheel_fallback "";%{paused}

        location / {
            proxy_pass http://$flywheel_arm;
        }
        location @failed {
            if ($flywheel_failure = unavailable) {
                add_header Retry-After 1 always;
                return 503 '%{unavailable}';
            }
            if ($flywheel_failure = timeout) {
                return 504 '%{timeout}';
            }
            if ($flywheel_failure = failed) {
                return 502 '%{failed}';
            }
            set $flywheel_fallback 1;
            proxy_pass http://%{not_enrolled};
        }
        location @too_large {
            return 413 '%{too_large}';
        }
    }

    server {
        listen %{health_port};
        access_log off;
        keepalive_timeout 0;
        location = /healthz {
            return 200 '{"status":"ok"}';
        }
        location = /stub_status {
            stub_status;
        }
        location / {
            return 404;
        }
    }
}
""")

_PAUSED: Final = f"""
        if ($flywheel_arm = {Arm.TREATMENT}) {{
            set $flywheel_fallback 1;
        }}"""


def render(config: RouterConfig) -> str:
    """The nginx.conf. The entrypoint adds TOKEN_INCLUDE, and addresses in place of the upstreams' names."""
    times = config.timeouts
    # A paused treatment keeps its name and its users, and is production.
    arms = {NOT_ENROLLED: config.production, Arm.CONTROL.value: config.control}
    arms[Arm.TREATMENT.value] = config.production if config.treatment_paused else config.treatment
    return _NGINX.substitute(
        lineage=config.lineage,
        workers=config.workers,
        port=config.port,
        health_port=config.health_port,
        routes=_block(f"{route} {route};" for route in ROUTES),
        proxies=_block(f"{peers} 1;" for peers in dict.fromkeys(map(network, config.trusted_proxies))),
        http_user="http_" + config.user_header.lower().replace("-", "_"),
        cookie=COOKIE_USER,
        max_length=USER_ID_MAX_LENGTH,
        test=config.test,
        salt=config.salt,
        split=_block(_slices(config)),
        not_enrolled=NOT_ENROLLED,
        paused=_PAUSED if config.treatment_paused else "",
        upstreams="".join(_upstream(name, upstream, config) for name, upstream in arms.items() if upstream),
        turnover=_ms(times.turnover),
        idle=_ms(times.idle),
        connect=_ms(times.connect),
        read=_ms(times.read),
        max_body=config.max_body_bytes,
        token_include=TOKEN_INCLUDE,
        user_header=config.user_header,
        header_user=HEADER_USER,
        header_new_user=HEADER_NEW_USER,
        header_test=HEADER_TEST,
        header_arm=HEADER_ARM,
        header_fallback=HEADER_FALLBACK,
        bad_user=_error("invalid_request_error", "bad_user", "the user id is too long or has control characters"),
        too_large=_error("invalid_request_error", "too_large", f"the body exceeds {config.max_body_bytes} bytes"),
        unavailable=_error("server_error", "unavailable", "nobody serves at the moment; the request was not executed"),
        timeout=_error("server_error", "timeout", "no reply in time; the request may have been executed"),
        failed=_error("server_error", "failed", "the server failed; the request may have been executed"),
    )


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _block(lines: Iterable[str]) -> str:
    return "".join(f"\n        {line}" for line in lines)


def _error(kind: str, code: str, message: str) -> str:
    """An error as OpenAI's API words it."""
    return json.dumps({"error": {"message": message, "type": kind, "code": code}}, separators=(",", ":"))


def _slices(config: RouterConfig) -> list[str]:
    """The slices of the users, in their order."""
    treatment = hundredths("treatment", config.treatment_percent)
    control = hundredths("control", config.control_percent)
    # nginx takes no slice of 0 %; `*` is what is left: the control, or who is not enrolled where there is none.
    slices = [(treatment, Arm.TREATMENT.value)] if treatment else []
    if control and (rest := 10_000 - treatment - control):
        slices.append((rest, NOT_ENROLLED))
    return [f"{share / 100:.2f}% {arm};" for share, arm in slices] + [
        f"* {Arm.CONTROL.value if control else NOT_ENROLLED};"
    ]


def _upstream(name: str, upstream: Upstream, config: RouterConfig) -> str:
    """max_fails=0: nobody is shut out for having failed; that is what readiness and endpoints are for."""
    servers = _block(f"server {server} max_fails=0;" for server in upstream.servers)
    return f"""\
    upstream {name} {{{servers}
        keepalive {KEPT_CONNECTIONS};
        keepalive_time {_ms(config.timeouts.upstream_age)};
        keepalive_timeout {_ms(config.timeouts.upstream_idle)};
    }}
"""
