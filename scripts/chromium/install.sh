#!/bin/sh
# Put a browser on a machine that is going to test the explorer; the demo does without.
#
#   sh scripts/chromium/install.sh
#
# There already: returns at once. Not root, or no Debian: says what is missing and ends with status 0,
# for the tests that want it are skipped then, and say so.
set -eu

say() { printf 'chromium: %s\n' "$*"; }
for name in chromium chromium-browser google-chrome chrome; do
    command -v "$name" >/dev/null && exit 0
done
without() {
    say "$1"
    say "the tests of the explorer in a browser are skipped without"
    exit 0
}
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    without "no browser is here; ask an administrator: apt-get install chromium"
fi
say "installing Debian's package"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq -o DPkg::Lock::Timeout=300 update ||
    say "apt-get update failed; going on with the lists that are there"
apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends chromium >/dev/null ||
    without "apt-get install chromium failed"
