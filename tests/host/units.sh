#!/usr/bin/env bash
# The systemd units are valid, and as closed as the documents say.
set -euo pipefail
cd "$(dirname "$0")/../.."
root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT
# `verify` wants to see the programs that the units start.
mkdir -p "$root/etc/systemd/system" "$root/usr/bin" "$root/bin"
cp conf/portcullis.service conf/portcullis-track.service "$root/etc/systemd/system/"
for program in usr/bin/portcullis bin/sh bin/rm; do
    printf '#!/bin/true\n' >"$root/$program"
    chmod 755 "$root/$program"
done
# The units of a bare system that ours are ordered by.
for unit in sysinit.target basic.target shutdown.target multi-user.target network-online.target nss-lookup.target keepalived.service; do
    if [ -e "/lib/systemd/system/$unit" ]; then cp "/lib/systemd/system/$unit" "$root/etc/systemd/system/"; fi
done
found="$(systemd-analyze verify --man=no --root="$root" portcullis.service portcullis-track.service 2>&1 | grep -i 'portcullis' || true)"
if [ -n "$found" ]; then
    echo "FAILED: $found" >&2
    exit 1
fi
score() { systemd-analyze security --offline=true "conf/$1" 2>/dev/null | sed -n 's/.*exposure level for [^:]*: \([0-9.]*\).*/\1/p'; }
exposure="$(score portcullis.service)"
echo "portcullis.service: exposure $exposure; portcullis-track.service: exposure $(score portcullis-track.service)"
for page in README.md docs/operating.md; do
    grep -q "says $exposure" "$page" || { echo "FAILED: $page does not say that the exposure is $exposure" >&2; exit 1; }
done
