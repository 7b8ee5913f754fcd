#!/usr/bin/env bash
# The main job, shown: a cluster on loopback runs version A, updates itself to B
# host by host through the mesh, and loses its leader on the way. Needs Go only.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
A=1.0.0 B=2.0.0
AGENTS=${AGENTS:-5}
SOAK=${SOAK:-2s}

dir=$(mktemp -d "${TMPDIR:-/tmp}/moult-demo.XXXXXX")
dev=
cleanup() {
  if [ -n "$dev" ] && kill -0 "$dev" 2>/dev/null; then
    kill -TERM "$dev" 2>/dev/null || true
    wait "$dev" 2>/dev/null || true
  fi
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
[ -z "${NO_COLOR:-}" ] && [ -t 1 ] || say() { printf '\n== %s\n' "$*"; }

say "building versions $A and $B"
make -s build VERSION=$A BIN="$dir/moult-$A" GO="$GO"
make -s build VERSION=$B BIN="$dir/moult-$B" GO="$GO"
moult="$dir/moult-$A"

say "starting 3 servers and $AGENTS agents on $A"
"$moult" dev --servers 3 --agents "$AGENTS" --http 127.0.0.1:0 --data "$dir/cluster" \
  --agent-arg=--soak="$SOAK" >"$dir/dev.out" 2>"$dir/dev.err" &
dev=$!
for _ in $(seq 1 900); do
  grep -q 'Ctrl-C' "$dir/dev.out" 2>/dev/null && break
  kill -0 "$dev" 2>/dev/null || { cat "$dir/dev.err"; exit 1; }
  sleep 0.1
done
grep -q 'Ctrl-C' "$dir/dev.out" || { cat "$dir/dev.err"; echo "the cluster did not come up"; exit 1; }
MOULT_ADDR=$(paste -sd, "$dir/cluster/addresses")
MOULT_TOKEN=$(cat "$dir/cluster/admin.token")
export MOULT_ADDR MOULT_TOKEN
"$moult" servers
"$moult" hosts

say "publishing $B"
os=$($GO env GOOS) arch=$($GO env GOARCH)
"$moult" release create --version $B --key "$dir/cluster/release.key" --out "$dir/release" "$os/$arch=$dir/moult-$B"
"$moult" release publish "$dir/release"

say "updating the fleet; the leader is killed in the middle, at the second host's turn or a later one"
"$moult" fleet update --yes
"$moult" fleet watch &
watch=$!
killed=
for _ in $(seq 1 600); do
  if "$moult" fleet status 2>/dev/null | awk '$1 >= 2 && $3 == "running" {found=1} END {exit !found}'; then
    leader=$("$moult" servers | awk '$2 == "leader" {print $1}' || true) # amid an election nobody leads
    if [ -n "$leader" ]; then
      kill -9 "$(cat "$dir/cluster/$leader/pid")"
      killed=$leader
      printf '\n   >>> killed the leader, %s, with kill -9\n\n' "$leader"
      break
    fi
  fi
  kill -0 "$watch" 2>/dev/null || break
  sleep 0.1
done
wait "$watch"
[ -n "$killed" ] || { echo "the fleet update ended before the leader could be killed"; exit 1; }

say "what came of it"
"$moult" hosts
"$moult" servers
"$moult" fleet summary
behind=$("$moult" hosts --json | grep -c "\"agent_version\": \"$B\"" || true)
[ "$behind" = "$AGENTS" ] || { echo "only $behind of $AGENTS agents run $B"; exit 1; }
printf '\nEvery agent runs %s. %s was killed on the way, and another server took over.\n' "$B" "$killed"
