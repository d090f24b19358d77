#!/bin/sh
# Installs the cv_pipeline of this folder without a network, beside the version that runs, and then switches to it:
#   sudo sh install.sh                    # into /opt/cv_pipeline; the services of deploy/ find it there
#   sudo sh install.sh --root /srv/cv     # somewhere else
#   sudo sh install.sh --list             # what is installed; * runs
#   sudo sh install.sh --back 0.1.0       # to a version that is still there; then restart the services
# A version that does not start is removed again, and the one before stays.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=/opt/cv_pipeline
back=
list=
while [ $# -gt 0 ]; do
  case $1 in
    --root) root=$2; shift 2 ;;
    --back) back=$2; shift 2 ;;
    --list) list=1; shift ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "install.sh: unknown: $1; see --help" >&2; exit 2 ;;
  esac
done

running() {
  link=$(readlink "$root/bin" 2>/dev/null) || return 0
  basename "$(dirname "$link")"
}

switch() {  # one rename: a service that starts finds the old or the new one
  ln -sfn "versions/$1/bin" "$root/.bin" && mv -T "$root/.bin" "$root/bin"
  echo "cv_pipeline $1 runs from $root/bin; restart what is running: systemctl restart 'cv-pipeline*'"
}

if [ -n "$list" ]; then
  for place in "$root"/versions/*/; do
    [ -d "$place" ] || continue
    version=$(basename "$place")
    [ "$version" = "$(running)" ] && echo "* $version" || echo "  $version"
  done
  exit 0
fi

if [ -n "$back" ]; then
  [ -x "$root/versions/$back/bin/cv-pipeline" ] || { echo "install.sh: $back is not in $root/versions: see --list" >&2; exit 2; }
  switch "$back"
  exit 0
fi

python=${PYTHON:-python3}
"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
  echo "install.sh: needs Python 3.10 or newer with venv (Debian: python3-venv); PYTHON=/path/to/python names another" >&2
  exit 2
}
made_for=$(cat "$here/MADE_FOR")  # 3.11 x86_64
is=$("$python" -c 'import platform, sys; print("%d.%d" % sys.version_info[:2], platform.machine())')
[ "$is" = "$made_for" ] || {
  echo "install.sh: packed for Python $made_for, this is $is: PYTHON=/path/to/python${made_for%% *}, or pack it on a machine like this" >&2
  exit 2
}
wheel=$(ls "$here"/cv_pipeline-*.whl) || { echo "install.sh: no cv_pipeline-*.whl beside this script: copy the whole folder" >&2; exit 2; }
version=$(basename "$wheel" | cut -d- -f2)
(cd "$here" && sha256sum --check --quiet SHA256SUMS) || {
  echo "install.sh: a file is not the one that was packed: copy the folder again; nothing was changed" >&2
  exit 2
}
place=$root/versions/$version
[ ! -e "$place" ] || { echo "install.sh: $version is installed already: --back $version switches to it" >&2; exit 2; }
mkdir -p "$root/versions"
[ -L "$root/bin" ] || [ ! -e "$root/bin" ] || {
  echo "install.sh: $root/bin is a folder of another installation: take another --root, or move it away" >&2
  exit 2
}

before=$(running)
trap 'rm -rf "$place"; echo "install.sh: $version was not installed; ${before:-nothing} runs as before" >&2' EXIT
"$python" -m venv "$place"
packages() {
  "$place/bin/python" -m pip --disable-pip-version-check install --quiet --no-index --find-links "$here" "$@"
}
packages --require-hashes --requirement "$here/requirements.lock"
packages --no-deps "$wheel"
"$place/bin/cv-pipeline" --version >/dev/null
"$place/bin/cv-pipeline" doctor --folder "$root" >"$place/doctor.txt" 2>&1 || { cat "$place/doctor.txt" >&2; exit 1; }
trap - EXIT
switch "$version"
