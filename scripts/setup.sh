# shellcheck shell=bash
# The ground that the other scripts stand on: installed programs, a private Postgres, a Docker daemon, an
# image made from a static busybox. Sourced, never run.
#
# Everything that is made is made under $WORK or recorded in a variable of the block below, and tear_down ends exactly
# that: processes by their id, containers and volumes by the ids in our own database. A Docker daemon that already runs
# is used and left alone.

ROOT_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT_DIR/target}
# An ordinary user's PATH often lacks these, and dockerd and haproxy live there.
PATH=$PATH:/usr/sbin:/sbin

# What tear_down ends.
WORK='' PG_PID='' PG_PORT='' PG_PASSWORD='' DOCKERD_PID='' DOCKER_BRIDGE='' IMAGE='' IMAGE_IS_OURS='' HAPROXY_PID='' EVENTS_PID=''
REPLICA_PIDS=() REPLICA_PORTS=()
STATE_VARIABLES=(WORK PG_PID PG_PORT PG_PASSWORD DOCKERD_PID DOCKER_BRIDGE IMAGE IMAGE_IS_OURS HAPROXY_PID EVENTS_PID REPLICA_PIDS DOCKER_HOST)
DOCKER_HOST=${DOCKER_HOST:-unix:///var/run/docker.sock}

say() { printf '%s\n' "$*" >&2; }
heading() { printf '\n== %s\n' "$*" >&2; }

# 69 is "a service that we need is unavailable" in sysexits.h: nothing was tried, something must be installed or started.
refuse() {
    say "$(basename "$0"): $*"
    exit 69
}

die() {
    say "$(basename "$0"): $*"
    exit 1
}

# eventually SECONDS COMMAND...: until COMMAND succeeds; fails when the time is up.
eventually() {
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.05
    done
}

# ---------------------------------------------------------------------------------------------------------------------
# Programs

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

can_be_root() {
    [ "$(id -u)" = 0 ] && return
    command -v sudo >/dev/null || return
    # Asking for a password is right only where somebody can answer.
    sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }
}

postgres_bin() {
    local bin
    for bin in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV) "$(pg_config --bindir 2>/dev/null)"; do
        if [ -x "$bin/initdb" ] && [ -x "$bin/postgres" ]; then
            echo "$bin"
            return
        fi
    done
    return 1
}

is_static() {
    local program
    program=$(command -v "$1") || return
    # ldd fails on a static program; that is its way of saying so.
    ! ldd "$program" >/dev/null 2>&1
}

# The Debian packages that are still to be installed. Arguments: what this script wants beyond the common ones.
missing_packages() {
    postgres_bin >/dev/null || echo postgresql
    command -v psql >/dev/null || echo postgresql-client
    docker_answers || command -v dockerd >/dev/null || echo docker.io
    is_static busybox || echo busybox-static
    command -v cc >/dev/null || echo build-essential
    command -v ip >/dev/null || echo iproute2
    local want
    for want in curl "$@"; do
        command -v "$want" >/dev/null && continue
        # Most packages are called as their program is.
        case $want in
        chromedriver) echo chromium-driver ;;
        systemd-*) echo systemd ;;
        *) echo "$want" ;;
        esac
    done
}

install_missing() {
    command -v cargo >/dev/null || refuse "cargo is missing: install Rust from https://rustup.rs"
    local packages
    mapfile -t packages < <(missing_packages "$@")
    [ ${#packages[@]} -gt 0 ] || return 0
    local advice="install what is missing and try again: apt-get install ${packages[*]}"
    command -v apt-get >/dev/null || refuse "this is no Debian; $advice (or what your system calls them)"
    can_be_root || refuse "needs root or sudo to install packages; $advice"

    say "installing ${packages[*]}"
    # The packages would start servers of their own, which nobody asked for. This file is Debian's way to say no.
    local policy=/usr/sbin/policy-rc.d policy_is_ours=''
    if ! [ -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
        policy_is_ours=yes
    fi
    local log=$WORK/apt.log installed=''
    if as_root apt-get update >"$log" 2>&1 &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}" >>"$log" 2>&1; then
        installed=yes
    fi
    [ -z "$policy_is_ours" ] || as_root rm -f $policy
    hash -r
    if [ -z "$installed" ]; then
        tail -n 20 "$log" >&2
        refuse "apt-get failed; $advice"
    fi
    mapfile -t packages < <(missing_packages "$@")
    [ ${#packages[@]} -eq 0 ] || refuse "still missing after the installation: ${packages[*]}"
}

# ---------------------------------------------------------------------------------------------------------------------
# Processes

# spawn LOG COMMAND...: in the background and in a session of its own, so that Ctrl-C reaches this script alone, which
# then ends everything in order. The pid is in $!.
spawn() {
    local log=$1
    shift
    STANDS_ON=$WORK setsid "$@" >>"$log" 2>&1 </dev/null &
    # Not a job of this shell, which would otherwise announce its death.
    disown "$!"
}

# Alive, and one of those that spawn started: its id may be another process's by the time that we come to end it.
# Postgres overwrites its environment and sudo clears it, but both leave a command line with $WORK in it.
is_alive() {
    [ -n "$1" ] && [ -n "$WORK" ] && cat "/proc/$1/cmdline" "/proc/$1/environ" 2>/dev/null | grep -qaF "$WORK"
}
is_gone() { ! is_alive "$1"; }

# Processes that sudo started are not ours to signal.
as_root_for() {
    local pid=$1
    shift
    if [ -O "/proc/$pid" ] || [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# end PID SIGNAL: asks, waits, and insists after twenty seconds.
end() {
    is_alive "$1" || return 0
    as_root_for "$1" kill "-$2" "$1" 2>/dev/null || true
    if ! eventually 20 is_gone "$1"; then
        as_root_for "$1" kill -KILL "$1" 2>/dev/null || true
        eventually 5 is_gone "$1" || true
    fi
}

# Below the range from which the kernel picks ports for outgoing connections.
free_port() {
    local port
    while true; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# ---------------------------------------------------------------------------------------------------------------------
# Postgres

# start_postgres [ARGUMENTS...]: of postgres, beside ours.
start_postgres() {
    local bin dir=$WORK/postgres user=()
    bin=$(postgres_bin)
    mkdir -m 700 "$dir"
    PG_PASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    printf '%s\n' "$PG_PASSWORD" >"$dir/password"
    if [ "$(id -u)" = 0 ]; then
        # PostgreSQL refuses to run as root.
        chown -R postgres: "$dir"
        user=(setpriv --reuid=postgres --regid=postgres --clear-groups)
    fi
    (cd / && "${user[@]}" "$bin/initdb" -D "$dir/data" --username=sundown --pwfile="$dir/password" --auth=scram-sha-256 \
        --encoding=UTF8 --locale=C.UTF-8 --no-sync) >"$WORK/initdb.log" 2>&1 || {
        tail -n 20 "$WORK/initdb.log" >&2
        die "initdb failed"
    }
    PG_PORT=$(free_port)
    # Durable, as in production: what the demo shows and the tests prove must not rest on a faster disk than yours.
    spawn "$WORK/postgres.log" "${user[@]}" "$bin/postgres" -D "$dir/data" -p "$PG_PORT" -k "$dir" \
        -c listen_addresses=127.0.0.1 -c fsync=on -c max_connections=400 -c shared_buffers=128MB "$@"
    PG_PID=$!
    if ! eventually 30 postgres_answers; then
        tail -n 20 "$WORK/postgres.log" >&2
        die "PostgreSQL did not start"
    fi
}

pg_url() { echo "postgresql://sundown:$PG_PASSWORD@127.0.0.1:$PG_PORT/$1"; }
postgres_answers() { sql postgres 'select 1' >/dev/null 2>&1; }
# sql DATABASE STATEMENTS: rows only, tab between columns. By standard input: then each statement is on its own.
sql() { psql "$(pg_url "$1")" -XAtq -F $'\t' -v ON_ERROR_STOP=1 -f - <<<"$2"; }

# ---------------------------------------------------------------------------------------------------------------------
# Docker

# docker_request METHOD PATH: fills REQUEST with the command that asks the daemon's own interface, which needs no client
# of a fitting version.
docker_request() {
    REQUEST=(curl -sS --fail-with-body -X "$1")
    case $DOCKER_HOST in
    unix://*) REQUEST+=(--unix-socket "${DOCKER_HOST#unix://}" "http://docker$2") ;;
    tcp://*) REQUEST+=("http://${DOCKER_HOST#tcp://}$2") ;;
    *) refuse "DOCKER_HOST=$DOCKER_HOST is neither unix:// nor tcp://" ;;
    esac
}

# docker_api METHOD PATH [CURL ARGUMENTS...]
docker_api() {
    docker_request "$1" "$2"
    shift 2
    "${REQUEST[@]}" "$@"
}

docker_answers() { [ "$(docker_api GET /_ping 2>/dev/null)" = OK ]; }

start_docker() {
    if docker_answers; then
        return
    fi
    local socket=${DOCKER_HOST#unix://}
    if [ -S "$socket" ] && ! [ -w "$socket" ]; then
        refuse "$socket is closed to you: adduser $(id -un) docker, log in again, or run this as root"
    fi
    can_be_root || refuse "no Docker daemon answers at $DOCKER_HOST, and starting one needs root or sudo: start it, or set DOCKER_HOST"
    [ -e /sys/class/net/docker0 ] || DOCKER_BRIDGE=docker0
    DOCKER_HOST=unix://$WORK/docker.sock
    local runner=(dockerd)
    [ "$(id -u)" = 0 ] || runner=(sudo -n "$(command -v dockerd)")
    # All of it under $WORK, and no firewall rule: nothing of it survives us.
    spawn "$WORK/dockerd.log" "${runner[@]}" --live-restore --host "$DOCKER_HOST" --group "$(id -gn)" \
        --data-root "$WORK/docker" --exec-root "$WORK/docker-run" --pidfile "$WORK/docker.pid" \
        --iptables=false --ip-forward=false --ip-masq=false
    DOCKERD_PID=$!
    if ! eventually 60 docker_answers_or_died || ! docker_answers; then
        tail -n 20 "$WORK/dockerd.log" >&2
        refuse "the Docker daemon did not start here (its log is above): start one yourself, or set DOCKER_HOST"
    fi
    # sudo stays between us and it; the daemon's own pid is the one to end.
    DOCKERD_PID=$(as_root cat "$WORK/docker.pid")
}

docker_answers_or_died() { docker_answers || is_gone "$DOCKERD_PID"; }

# make_image NAME:TAG: a busybox with everything that a shell script needs, made here, never pulled.
make_image() {
    local dir=$WORK/image
    IMAGE=$1
    docker_api GET "/images/$IMAGE/json" >/dev/null 2>&1 || IMAGE_IS_OURS=yes
    mkdir -p "$dir/bin" "$dir/etc" "$dir/tmp"
    chmod 1777 "$dir/tmp"
    cp "$(command -v busybox)" "$dir/bin/busybox"
    local applet
    for applet in $(busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "$dir/bin/$applet"
    done
    printf 'root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$dir/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$dir/etc/group"
    tar -C "$dir" --owner=0 --group=0 --numeric-owner --mtime=@0 --sort=name -cf "$WORK/image.tar" .
    docker_api POST "/images/create?fromSrc=-&repo=${IMAGE%%:*}&tag=${IMAGE#*:}" \
        -H 'Content-Type: application/x-tar' -T "$WORK/image.tar" >"$WORK/image.log" || {
        cat "$WORK/image.log" >&2
        die "the Docker daemon did not take the image"
    }
    rm -rf "$dir" "$WORK/image.tar"
}

# ---------------------------------------------------------------------------------------------------------------------
# Replicas

build() {
    [ -x "$TARGET_DIR/release/sundown" ] || say "building the release binary: some minutes the first time"
    cargo build --release --locked --quiet
}

# start_replica PORT NAME [VARIABLE=VALUE...]
start_replica() {
    local port=$1 name=$2
    spawn "$WORK/$name.log" env -u SUNDOWN_DIRECT_URL -u SUNDOWN_DATA -u DATABASE_URL \
        SUNDOWN_DATABASE_URL="$(pg_url sundown)" SUNDOWN_LISTEN="127.0.0.1:$port" SUNDOWN_DOCKER="$DOCKER_HOST" "${@:3}" \
        "$TARGET_DIR/release/sundown" serve
    REPLICA_PIDS+=($!)
    REPLICA_PORTS+=("$port")
}

is_ready() { curl -sf -o /dev/null "http://127.0.0.1:$1/readyz"; }
is_ready_or_gone() { is_ready "$1" || is_gone "$2"; }

# ---------------------------------------------------------------------------------------------------------------------
# The end

make_work() {
    WORK=$(mktemp -d "${TMPDIR:-/tmp}/$1.XXXXXX")
    # Postgres passes through it as another user.
    chmod 711 "$WORK"
    trap tear_down EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# Containers and volumes of every installation in our own server, whatever state an interrupted run left them in.
remove_installations() {
    local database id installation
    for database in $(sql postgres "select datname from pg_database where not datistemplate and datallowconn" 2>/dev/null); do
        for id in $(sql "$database" 'select id from sundown.agent' 2>/dev/null); do
            docker_api DELETE "/containers/sundown-$id?force=true&v=true" >/dev/null 2>&1 || true
        done
        for installation in $(sql "$database" 'select id from sundown.installation' 2>/dev/null); do
            docker_api DELETE "/volumes/sundown-host-$installation?force=true" >/dev/null 2>&1 || true
        done
    done
}

remove_containers_of_image() {
    local id
    for id in $(docker_api GET "/containers/json?all=true&filters=%7B%22ancestor%22%3A%5B%22$IMAGE%22%5D%7D" 2>/dev/null |
        grep -o '"Id":"[0-9a-f]*"' | cut -d'"' -f4); do
        docker_api DELETE "/containers/$id?force=true&v=true" >/dev/null 2>&1 || true
    done
}

tear_down() {
    trap '' INT TERM HUP
    trap - EXIT
    set +e
    local pid
    end "$HAPROXY_PID" TERM
    end "$EVENTS_PID" TERM
    for pid in "${REPLICA_PIDS[@]}"; do
        end "$pid" TERM
    done
    if [ -n "$PG_PID" ]; then
        remove_installations
        end "$PG_PID" INT
    fi
    if [ -n "$IMAGE_IS_OURS" ]; then
        remove_containers_of_image
        docker_api DELETE "/images/$IMAGE?force=true" >/dev/null 2>&1
    fi
    if [ -n "$DOCKERD_PID" ]; then
        end "$DOCKERD_PID" TERM
        [ -z "$DOCKER_BRIDGE" ] || as_root ip link delete "$DOCKER_BRIDGE" 2>/dev/null
        local mounted
        for mounted in $(cut -d' ' -f2 /proc/mounts | grep "^$WORK/" | sort -r); do
            as_root umount "$mounted"
        done
        as_root rm -rf "$WORK/docker" "$WORK/docker-run"
    fi
    [ -z "$WORK" ] || rm -rf "$WORK"
}
