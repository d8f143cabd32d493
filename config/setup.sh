#!/bin/bash
# Installs what promissory needs: Debian packages, its user, a virtual environment in .venv, Apache Kafka in .kafka.
# What is there already is left alone, so a second call only looks. It speaks on stderr.
# `setup.sh vm`: what the tests in virtual machines need, too.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$(pwd -P)

# The last three are for the tests: a reader of Kafka that is not ours, and a compiler for small programs.
packages=(python3-venv python3-bpfcc python3-cap-ng python3-seccomp bpftool kcat gcc libc6-dev)
# Beside it the audit tests listen; it starts a daemon, so nobody gets it unasked.
[[ ${CI:-} != true ]] || packages+=(auditd)
# The emulator, the shell of its first moments, and what takes a kernel apart. Nothing but tests/vm needs them.
machine_packages=(qemu-system-x86 busybox-static kmod binutils xz-utils zstd)
# Debian's own interpreter, because bcc is Debian's package for it.
python=/usr/bin/python3
log=.setup/log
no_kafka=.setup/no-kafka
no_machines=.setup/no-machines
[[ ${1:-} == vm ]] && machines=yes || machines=

say() { echo "setup: $*" >&2; }

# step WHAT COMMAND...: the command's output goes to the log; only of a failure the end is shown.
step() {
    local what=$1
    shift
    say "$what"
    echo "== $what" >>"$log"
    "$@" >>"$log" 2>&1 && return
    tail -n 8 "$log" | cut -c 1-160 >&2
    say "failed: $what (all of it is in $here/$log)"
    return 1
}

# missing_packages PACKAGE...
missing_packages() {
    local package
    for package; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
    done
}

# As whom the pipeline runs.
user=promissory
has_user() { getent passwd $user >/dev/null; }
make_user() { useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin $user; }

updated=
apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    # An old list may still do: if not, the next command says so.
    [[ $updated ]] || apt-get update || true
    updated=yes
    apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
}

# What the environment is made from; a change of any of it makes it anew.
venv_key() {
    { echo "$here" && readlink -f $python && cat config/setup.sh config/requirements.lock pyproject.toml; } |
        sha256sum
}

venv_is_ready() { [[ -x .venv/bin/promissory && $(cat .venv/stamp 2>/dev/null) == "$(venv_key)" ]]; }

# One made by hand will do, if it was made here, from Debian's interpreter, and sees Debian's packages.
venv_can_stay() {
    [[ -x .venv/bin/python && $(readlink -f .venv/bin/python) == "$(readlink -f $python)" ]] &&
        grep -qx 'include-system-site-packages = true' .venv/pyvenv.cfg &&
        [[ $(sed -n 's/^command = //p' .venv/pyvenv.cfg) == *" $here/.venv" ]] &&
        .venv/bin/python -m pip --version >/dev/null 2>&1
}

make_venv() {
    rm -f .venv/stamp
    venv_can_stay || step "virtual environment" $python -m venv --clear --system-site-packages "$here/.venv"
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    step "Python packages" .venv/bin/python -m pip install \
        --no-deps --only-binary=:all: -r config/requirements.lock
    step "promissory itself" .venv/bin/python -m pip install --no-deps --no-build-isolation -e .
    venv_key >.venv/stamp
}

kafka_needs() { $python config/kafka/broker.py needs; }

kafka_is_ready() {
    [[ -x $python && -z $(kafka_needs) ]] && compgen -G '.kafka/jars-*' >/dev/null && $python config/kafka/broker.py fetch
}

# That something cannot be had here is remembered for an hour, so that not every call tries again.
was_refused() { [[ $(find "$1" -mmin -60 2>/dev/null) ]]; }

# Nothing else depends on Kafka: without it the local log takes its place.
get_kafka() {
    local needs
    needs=$(kafka_needs)
    rm -f "$no_kafka"
    # shellcheck disable=SC2086  # a list of words
    if [[ $needs ]] && ! { say "for Kafka: $needs" && apt_install $needs >>"$log" 2>&1; }; then
        echo "${needs// / and } could not be installed (see $here/$log)" >"$no_kafka"
        return
    fi
    say "Apache Kafka"
    $python config/kafka/broker.py fetch 2>"$no_kafka" && rm "$no_kafka"
}

machines_are_ready() {
    [[ ! $machines || -z $(missing_packages "${machine_packages[@]}") ]] || was_refused "$no_machines"
}

# Without them tests/vm says what was not tested.
get_machines() {
    local missing
    missing=$(missing_packages "${machine_packages[@]}")
    rm -f "$no_machines"
    # shellcheck disable=SC2086  # a list of words
    step "for virtual machines: ${missing//$'\n'/ }" apt_install $missing || touch "$no_machines"
}

if ! command -v dpkg-query >/dev/null; then
    say "this is no Debian: please install by hand what config/setup.sh lists, and make .venv from it"
    exit 1
fi
missing=$(missing_packages "${packages[@]}")
if [[ -z $missing ]] && has_user && venv_is_ready && { was_refused "$no_kafka" || kafka_is_ready; } &&
    { machines_are_ready || ((EUID != 0)); }; then
    exit 0
fi
if ((EUID != 0)); then
    say "something is missing that only root can install: please run it as root"
    exit 1
fi

mkdir -p .setup
exec 9>.setup/lock
flock -n 9 || { say "waiting for another one to end" && flock 9; }
: >"$log"
missing=$(missing_packages "${packages[@]}")
# shellcheck disable=SC2086  # a list of words
[[ -z $missing ]] || step "Debian packages: ${missing//$'\n'/ }" apt_install $missing
has_user || step "user $user" make_user
venv_is_ready || make_venv
was_refused "$no_kafka" || kafka_is_ready || get_kafka || true
machines_are_ready || get_machines
