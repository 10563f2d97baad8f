#!/usr/bin/env bash
# Builds the program, and puts together what the image holds: build.sh IMAGE SYMBOLS
# - IMAGE: the program without its debug information, and the files of glibc that it is linked to. The names of its functions stay,
#   so that a backtrace in a log says where, as far as there is room: those of drop glue go, which are half of all by their length
#   and say the least, and then the longest.
# - SYMBOLS: leasehold.debug, with all names, files and lines (docs/image.md).
# An image of more than 30 MB is an error.
set -euo pipefail

limit=30000000
image=$(realpath -m "$1") symbols=$(realpath -m "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# The addresses that the loader fills in take a fiftieth of the room so, which glibc knows since 2.36.
cargo rustc --locked --release --package leasehold --features cli,jemalloc --bin leasehold -- -C link-arg=-Wl,-z,pack-relative-relocs
binary=${CARGO_TARGET_DIR:-target}/release/leasehold

mkdir -p "$image/usr/local/bin" "$symbols"

# Where the loader looks for them on this architecture.
ldd "$binary" | grep -oE '/[^ ]+' | sort -u | while read -r library; do
  mkdir -p "$image$(dirname "$library")"
  cp --dereference "$library" "$image$library"
done

size() { find "$image" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }'; }
program=$image/usr/local/bin/leasehold
objcopy --only-keep-debug --compress-debug-sections=zlib "$binary" "$symbols/leasehold.debug"
# The link names the file and its checksum: a debugger finds it, and takes no other.
strip_to() { objcopy --strip-all --add-gnu-debuglink="$symbols/leasehold.debug" "$@" "$binary" "$program"; }
strip_to
# Some is left for what the tables begin with.
room=$((limit - $(size) - 4096))

names=$(mktemp)
trap 'rm -f "$names"' EXIT
# Our own first, then the shorter ones; each takes its text, and 24 bytes for each function of that name.
nm --defined-only "$binary" | awk '$2 ~ /^[tTwW]$/ && $3 !~ /drop_in_place/ { print $3 }' | sort | uniq -c |
  awk '{ print ($2 ~ /9leasehold/ ? 0 : 1), length($2), $1, $2 }' | sort -n -k1,1 -k2,2 |
  awk -v room="$room" -v names="$names" '
    { all += $3; room -= $2 + 1 + 24 * $3; if (room >= 0) { kept += $3; print $4 >names } }
    END { printf "%d of %d functions have their names\n", kept, all }'
strip_to --keep-symbols="$names"
chmod 0755 "$program"

find "$image" -type f -printf '%10s  /%P\n' | sort -k2
printf '%10s  in all; the limit is %s\n' "$(size)" "$limit"
if [ "$(size)" -gt "$limit" ]; then
  echo "the image is too large: see docs/image.md" >&2
  exit 1
fi
