#!/bin/sh
# Prints what a decision costs at 10, 10,000 and 1,000,000 rows, and fails if it grows with their number.
# Instructions are counted by valgrind: repeatable, whatever else the machine does.
set -eu
cd "$(dirname "$0")/../.."
binary=$(cargo bench --locked --no-run --bench lookup --message-format short 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p' | tail -1)
[ -x "$binary" ] || { echo "the benchmark does not build: cargo bench --no-run --bench lookup" >&2; exit 1; }
instructions() {
    valgrind --tool=cachegrind --cache-sim=no --cachegrind-out-file=/dev/null "$binary" "$1" "$2" 2>&1 | sed -n 's/.*I *refs: *//p' | tr -d ,
}
requests=10000
echo "      rows   instructions   bytes per domain   bytes per user"
for rows in 10 10000 1000000; do
    before=$(instructions $rows 0)
    after=$(instructions $rows $requests)
    sizes=$("$binary" $rows 0)
    each=$(((after - before) / requests))
    printf '%10d   %12d   %16d   %14d\n' "$rows" "$each" "${sizes% *}" "${sizes#* }"
    [ "$rows" = 10 ] && first=$each
    [ "$rows" = 10000 ] && domain=${sizes% *} && user=${sizes#* }
done
# A few more digits in the names cost a few more instructions; a search would cost twice as many.
if [ $((each * 2)) -gt $((first * 3)) ] || [ "${sizes% *}" -gt $((domain * 2)) ] || [ "${sizes#* }" -gt $((user * 2)) ]; then
    echo "the cost grows with the number of rows" >&2
    exit 1
fi
