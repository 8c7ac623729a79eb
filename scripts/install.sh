#!/bin/bash
# install.sh [--remove] PREFIX SBIN: the command, in an environment of its own that sees Debian's bcc, and mount(8)'s
# helper for the type fuse.fusebpf. `make install` and `make uninstall` call it; it takes the wheel from dist/.
set -euo pipefail

is_removal=false
if [ "${1:-}" = --remove ]; then
	is_removal=true
	shift
fi
prefix=$(realpath --canonicalize-missing "$1") sbin=$(realpath --canonicalize-missing "$2")
home=$prefix/lib/fusebpf
helper=$sbin/mount.fuse.fusebpf
command=$prefix/bin/fusebpf
template=$(<"$(dirname "$0")/mount.fuse.fusebpf.in")
helper_text=${template/@FUSEBPF@/"$(printf %q "$command")"}

if $is_removal; then
	if [ -L "$command" ] && [ "$(readlink "$command")" = "$home/bin/fusebpf" ]; then
		rm "$command"
	fi
	if [ -e "$helper" ] && [ "$(<"$helper")" = "$helper_text" ]; then
		rm "$helper"
	fi
	if [ -x "$home/bin/fusebpf" ]; then
		rm -r "$home"
	fi
	rm -rf /var/cache/fusebpf # compiled filters, which any other fusebpf compiles again
	exit 0
fi

for path in "$command" "$helper"; do
	if [ -e "$path" ] && ! [ -x "$home/bin/fusebpf" ]; then
		echo "install: $path is there and is not ours: remove it or choose another PREFIX or SBIN" >&2
		exit 1
	fi
done
mkdir -p "$prefix/lib" "$prefix/bin" "$sbin"
/usr/bin/python3 -m venv --clear --system-site-packages "$home"
wheel=$(echo "$(dirname "$0")"/../dist/*.whl)
"$home/bin/python" -m pip -qq --disable-pip-version-check --no-input install "$wheel[daemon,testing]"
ln -sfn "$home/bin/fusebpf" "$command"
printf '%s\n' "$helper_text" >"$helper"
chmod 755 "$helper"
echo "installed: $command, $helper"
