#!/bin/sh
# Build the binaries of init.c and shim.c, one per machine; needs zig (pip install ziglang), whose musl makes them small.
set -eu
cd "$(dirname "$0")"
for program in init shim; do
    source=$(sha256sum "$program.c" | cut -d " " -f 1)
    for machine in x86_64 aarch64; do
        "${PYTHON:-python3}" -m ziglang cc -target "$machine-linux-musl" -static -Os -s -Wall -Wextra -Werror \
            "-DSOURCE=\"$source\"" -o "$program-$machine" "$program.c"
    done
done
