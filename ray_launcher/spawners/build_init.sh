#!/bin/sh
# Build init-x86_64 and init-aarch64 from init.c; needs zig (pip install ziglang), whose musl makes them small.
set -eu
cd "$(dirname "$0")"
source=$(sha256sum init.c | cut -d " " -f 1)
for machine in x86_64 aarch64; do
    "${PYTHON:-python3}" -m ziglang cc -target "$machine-linux-musl" -static -Os -s -Wall -Wextra -Werror \
        "-DSOURCE=\"$source\"" -o "init-$machine" init.c
done
