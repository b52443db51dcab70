#!/bin/sh
# Build GPAW with MPI and ScaLAPACK into a Python environment, and prove that it runs on two ranks.
#
#   sh scripts/gpaw/install.sh .venv/bin/python
#
# Done already: returns at once. Packages missing and not root: says which, and ends with status 0,
# since all of mofal but the GPAW reference works without (set MOFAL_GPAW_REQUIRED=1 to make it 1).
set -eu

python=${1:?"which Python? Type: sh scripts/gpaw/install.sh .venv/bin/python"}
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
version=${MOFAL_GPAW_VERSION:-26.7.0}
packages="g++ libxc-dev libopenblas-dev libopenmpi-dev openmpi-bin libscalapack-openmpi-dev libfftw3-dev"
# Absolute, since the verification starts it elsewhere; not resolved, or a venv's link would lead out of the venv.
case $python in
*/*) python=$(CDPATH= cd -- "$(dirname -- "$python")" && pwd)/$(basename -- "$python") ;;
*) python=$(command -v -- "$python") ;;
esac
prefix=$("$python" -c 'import sys; print(sys.prefix)')
stamp="$prefix/share/mofal/gpaw-$version"

say() { printf 'gpaw: %s\n' "$*"; }
without() {
    say "$1"
    say "everything but the references gpaw:* works without it"
    [ "${MOFAL_GPAW_REQUIRED:-0}" = 1 ] && exit 1
    exit 0
}

want=$(cat "$here/siteconfig.py" "$here/verify.py" | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] &&
    "$python" -c 'import importlib.util as u, sys; sys.exit(not all(u.find_spec(m) for m in ("gpaw", "_gpaw", "dftd3")))' &&
    command -v mpirun >/dev/null; then
    say "version $version is built and verified on two ranks"
    exit 0
fi

# On Debian and its children the packages are looked up by name; elsewhere only the tools are.
missing=
if command -v dpkg-query >/dev/null; then
    for package in $packages; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
            missing="$missing $package"
    done
elif ! command -v mpicxx >/dev/null; then
    missing=" a C++ compiler, MPI, ScaLAPACK, libxc, OpenBLAS and FFTW with their headers"
fi
if [ -n "$missing" ]; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        without "these packages are missing; ask an administrator: apt-get install$missing"
    fi
    say "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq -o DPkg::Lock::Timeout=300 update ||
        say "apt-get update failed; going on with the lists that are there"
    # shellcheck disable=SC2086
    apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing >/dev/null ||
        without "apt-get install$missing failed"
fi

say "compiling version $version (a minute or two)"
constraints="$here/../../constraints.txt"
set --
[ -f "$constraints" ] && set -- -c "$constraints"
GPAW_CONFIG="$here/siteconfig.py" "$python" -m pip install -q --no-binary gpaw "$@" \
    "gpaw==$version" gpaw-data dftd3 || without "pip could not build it; its message is above"

say "verifying on two ranks"
OMP_NUM_THREADS=1 "$python" "$here/verify.py" "$python" ||
    without "the build does not run on two ranks; its message is above"
mkdir -p "$(dirname "$stamp")"
printf '%s\n' "$want" >"$stamp"
say "version $version is built and verified on two ranks"
