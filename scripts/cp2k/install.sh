#!/bin/sh
# Put CP2K with its basis sets and potentials (70 MB) on a machine that is going to test it.
#
#   sh scripts/cp2k/install.sh
#
# There already: returns at once. Not root, or no Debian: says what is missing and ends with status 0,
# for all of mofal but the references cp2k:* works without.
set -eu

say() { printf 'cp2k: %s\n' "$*"; }
for name in cp2k.psmp cp2k.popt cp2k; do
    command -v "$name" >/dev/null && exit 0
done
without() {
    say "$1"
    say "everything but the references cp2k:* works without it; their tests are skipped"
    exit 0
}
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    without "no CP2K is here; ask an administrator: apt-get install cp2k"
fi
say "installing Debian's package"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq -o DPkg::Lock::Timeout=300 update ||
    say "apt-get update failed; going on with the lists that are there"
apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends cp2k >/dev/null ||
    without "apt-get install cp2k failed"
