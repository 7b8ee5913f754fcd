#!/usr/bin/env bash
# Makes the pictures of the README, in docs/images: a real cluster on loopback, a
# real fleet update, in a real terminal (tmux) and a real browser (chromium).
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
for tool in tmux chromium; do
  command -v $tool >/dev/null || { echo "pictures.sh needs $tool; install it" >&2; exit 1; }
done
dir=$(mktemp -d "${TMPDIR:-/tmp}/moult-pictures.XXXXXX")
dev=
cleanup() {
  tmux -L "moult-pictures-$$" kill-server 2>/dev/null || true
  [ -z "$dev" ] || { kill -TERM "$dev" 2>/dev/null && wait "$dev" || true; }
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

make -s build VERSION=1.4.1 BIN="$dir/moult-1.4.1" GO="$GO"
make -s build VERSION=1.4.2 BIN="$dir/moult-1.4.2" GO="$GO"
$GO build -o "$dir/terminal" ./testdata/terminal
mkdir "$dir/bin"
ln "$dir/moult-1.4.1" "$dir/bin/moult"
export PATH=$dir/bin:$PATH LC_ALL=C.UTF-8

moult dev --servers 3 --agents 8 --http 127.0.0.1:0 --data "$dir/cluster" >"$dir/dev.out" 2>"$dir/dev.err" &
dev=$!
for _ in $(seq 1 900); do
  grep -q 'Ctrl-C' "$dir/dev.out" && break
  kill -0 "$dev" 2>/dev/null || { cat "$dir/dev.err"; exit 1; }
  sleep 0.1
done
MOULT_ADDR=$(paste -sd, "$dir/cluster/addresses") MOULT_TOKEN=$(cat "$dir/cluster/admin.token")
export MOULT_ADDR MOULT_TOKEN
moult release create --version 1.4.2 --key "$dir/cluster/release.key" --out "$dir/rel" "$($GO env GOOS)/$($GO env GOARCH)=$dir/moult-1.4.2"
moult release publish "$dir/rel"
moult fleet update --yes

# In the middle: half of the hosts are done.
tmux -L "moult-pictures-$$" new-session -d -x 84 -y 18 "moult fleet watch; sleep 600"
for _ in $(seq 1 600); do
  done=$(moult fleet status | grep -c succeeded || true)
  [ "$done" -ge 4 ] && break
  sleep 0.2
done
sleep 2
mkdir -p docs/images
{ printf '$ moult fleet watch\n'; tmux -L "moult-pictures-$$" capture-pane -p -e; } | "$dir/terminal" >docs/images/fleet-watch.svg

# The dashboard in a browser, from a test that updates a fleet before it.
MOULT_SCREENSHOTS=$dir/shots $GO test -count=1 -run TestBrowserSmoke ./cmd/moult
cp "$dir/shots/running.png" docs/images/dashboard.png
ls -l docs/images
