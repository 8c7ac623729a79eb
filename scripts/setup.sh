#!/bin/bash
# Set-up of a checkout on Debian 12 or later: Debian's packages, .venv, pip's packages; `make build` does the rest.
# make runs it when .venv is missing or older than this file or pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
	python3-bpfcc bpftool                  # compile and look at BPF
	python3-venv python3-dev gcc libc6-dev # build the extension
	linux-libc-dev
	libfuse3-dev pkg-config                # build pyfuse3, for mounts with a daemon
	git tar sqlite3 rsync make fio         # programs that the demo, the tests and the benchmark run
	attr acl e2fsprogs btrfs-progs util-linux procps
)
# `make soak` runs postgres too, which is large.
[ -z "${SOAK:-}" ] || packages+=(postgresql)

missing=()
for package in "${packages[@]}"; do
	if [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
		missing+=("$package")
	fi
done
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" -ne 0 ]; then
		echo "setup: Debian's packages ${missing[*]} are missing and only root can install them: sudo make setup" >&2
		exit 1
	fi
	echo "setup: installing Debian's packages ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# Debian installs bcc for its own Python alone, so the environment is made from that one and sees its packages.
if [ ! -x .venv/bin/python ]; then
	echo "setup: making .venv"
	/usr/bin/python3 -m venv --system-site-packages .venv
fi
pip=(.venv/bin/python -m pip -qq --disable-pip-version-check --no-input)
echo "setup: installing Python's packages"
"${pip[@]}" install 'setuptools>=77'
# With build isolation: where pyfuse3 has no wheel it is built, and needs Cython and setuptools_scm for that.
# "compat" saves each command 10 ms; setuptools means to remove it one day.
export FUSEBPF_NO_EXTENSION=1
"${pip[@]}" install --config-settings editable_mode=compat --editable '.[dev]' 2>/dev/null ||
	"${pip[@]}" install --editable '.[dev]'
.venv/bin/python -c 'import bcc' || {
	echo "setup: .venv does not see bcc: remove .venv and call make setup again" >&2
	exit 1
}
touch .venv/.setup-stamp
