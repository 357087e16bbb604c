#!/bin/bash
# The router's container. It only splits; what it does stands in the nginx.conf that the operator rendered.
#   flywheel-router serve                         resolve names, read the token, run nginx; follow changes of both
#   flywheel-router drain SECONDS [HEALTH_PORT]   (preStop) wait, at most so long, until no client's connection is idle
# What nginx does not do itself (before 1.27): a name that does not resolve must not keep the router from starting, and
# a Service that is made anew has a new address.
set -euo pipefail

source_file=${ROUTER_CONFIG:-/etc/flywheel/router/nginx.conf}
token_file=${ROUTER_TOKEN_FILE:-/etc/flywheel/token/token}
folder=${ROUTER_FOLDER:-/tmp/nginx}
look_seconds=${ROUTER_LOOK_SECONDS:-5}
settle_seconds=${ROUTER_SETTLE_SECONDS:-5}
start_tries=${ROUTER_START_TRIES:-10}
token_header=x-flywheel-router-token
nowhere=127.0.0.1:1 # refuses at once: the arm counts as absent

say() { printf 'flywheel-router: %s\n' "$*" >&2; }

# "upstream host" of every server that is a name.
names() { sed -nE 's/^ *server ([a-z0-9.-]*[a-z][a-z0-9.-]*):[0-9]+ max_fails.*/\1/p' "$source_file" | sort -u; }

# "host address ..." lines of what resolves now. What does not keeps the address that it had: a name server that is
# away must not take production away.
resolve() {
  local host addresses
  [ -r "$source_file" ] || return 1
  for host in $(names); do
    addresses=$(getent ahostsv4 "$host" | awk '{print $1}' | sort -u | tr '\n' ' ') || addresses=
    if [ -n "$addresses" ]; then
      printf '%s %s\n' "$host" "$addresses"
    elif [ -f "$folder/hosts" ]; then
      awk -v host="$host" '$1 == host' "$folder/hosts"
    fi
  done
}

# nginx.conf with addresses in place of names.
configure() {
  awk -v hosts="$1" -v nowhere="$nowhere" '
    BEGIN { while ((getline line < hosts) > 0) { split(line, word, " "); known[word[1]] = substr(line, length(word[1]) + 2) } }
    /^ *server [a-z0-9.-]+:[0-9]+ max_fails/ {
      colon = index($2, ":"); host = substr($2, 1, colon - 1); port = substr($2, colon + 1)
      if (host !~ /[a-z]/) { print; next }
      count = split(known[host], address, " ")
      if (!count) printf "        server %s max_fails=0; # %s is not known\n", nowhere, host
      for (i = 1; i <= count; i++) printf "        server %s:%s max_fails=0; # %s\n", address[i], port, host
      next
    }
    { print }' "$source_file"
}

token_line() {
  local token
  token=$(cat "$token_file") || return 1
  [[ $token =~ ^[A-Za-z0-9._~+/=-]{16,512}$ ]] || { say "the token in $token_file is not 16 to 512 of A-Za-z0-9._~+/=-"; return 1; }
  printf 'proxy_set_header %s "%s";\n' "$token_header" "$token"
}

# Writes nginx.conf and token.conf; sets `changed` to 1 where one is not what it was. On failure nothing is touched.
prepare() {
  local name
  changed=0
  resolve >"$folder/hosts.new" || return 1
  configure "$folder/hosts.new" >"$folder/nginx.conf.new" || return 1
  token_line >"$folder/token.conf.new" || return 1
  for name in nginx.conf token.conf; do
    cmp -s "$folder/$name.new" "$folder/$name" || changed=1
    mv "$folder/$name.new" "$folder/$name" || return 1
  done
  mv "$folder/hosts.new" "$folder/hosts"
}

production_known() {
  ! sed -n '/upstream none /,/}/p' "$folder/nginx.conf" | grep -q 'is not known'
}

follow() {
  while sleep "$look_seconds" && kill -0 "$$" 2>/dev/null; do
    if prepare && [ "$changed" = 1 ]; then
      say "an address or the token changed: nginx reads its configuration anew"
      nginx -e stderr -p "$folder/" -c "$folder/nginx.conf" -s reload || true
    fi
  done
}

serve() {
  umask 077
  mkdir -p "$folder"
  local tries=1
  until prepare && production_known; do
    [ "$tries" -lt "$start_tries" ] || { say "no configuration, no token, or production's name does not resolve"; exit 1; }
    tries=$((tries + 1))
    sleep 1
  done
  follow &
  exec nginx -e stderr -p "$folder/" -c "$folder/nginx.conf"
}

# Connections that lie idle, from nginx's own count.
waiting() {
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'GET /stub_status HTTP/1.0\r\n\r\n' >&3
  sed -nE 's/.*Waiting: ([0-9]+).*/\1/p' <&3
  exec 3<&-
}

# No new connection comes once proxies have heard that the pod is no endpoint; those that are there are closed after
# their next reply, or when they were idle for long. Then nginx can quit without closing one that a client is about to use.
drain() {
  local end=$((SECONDS + $1)) port=$2 count
  sleep "$settle_seconds"
  while [ "$SECONDS" -lt "$end" ] && count=$(waiting "$port") && [ "${count:-0}" -gt 0 ]; do sleep 0.5; done
}

case ${1:-serve} in
  serve) serve ;;
  drain) drain "$2" "${3:-9103}" ;;
  *) say "unknown command $1"; exit 64 ;;
esac
