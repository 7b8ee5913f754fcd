#!/usr/bin/env bash
# What `make release` and `make packages` do: build for each platform, pack, and put
# checksums beside it. The same source, VERSION, COMMIT, time and Go give the same bytes.
#
#   release.sh VERSION OUT PLATFORM…      PLATFORM: linux/amd64, linux/arm, …
#
# KINDS  what to make: "archive deb rpm" (default)
# NUMBER the release number that VERSION is published under, if it is known by now: a
#        package knows by it whether it is newer than what a host was updated to
# KEY    release key: signs the checksums and makes a release to publish
# SOURCE_DATE_EPOCH  time of all that is packed; default: that of the last commit
set -euo pipefail
cd "$(dirname "$0")/../../.."
version=$1 out=$2
shift 2
GO=${GO:-go} NFPM=${NFPM:-nfpm} KINDS=${KINDS:-archive deb rpm}
COMMIT=${COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)}
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH=$epoch LC_ALL=C TZ=UTC
MAINTAINER=${MAINTAINER:-moult maintainers <moult@lists.moult.example>}
HOMEPAGE=${HOMEPAGE:-https://moult.example}
[[ $version =~ ^[0-9][A-Za-z0-9.+~-]*$ ]] || { echo "VERSION=$version: a package's version begins with a digit, such as VERSION=1.2.3" >&2; exit 2; }

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$out" "$stage/common/man"
say() { echo "== $*" >&2; }
has() { [[ " $KINDS " == *" $1 "* ]]; }

build() { # build OS ARCH PATH
  GOOS=$1 GOARCH=$2 GOARM=7 CGO_ENABLED=0 $GO build -trimpath -buildvcs=false \
    -ldflags "-s -w -X main.version=$version -X main.commit=$COMMIT -X main.number=${NUMBER:-}" -o "$3" ./cmd/moult
}

# What is the same on each platform is made by a binary that runs here.
say "what all packages have"
moult=$stage/moult-here
build "$($GO env GOOS)" "$($GO env GOARCH)" "$moult"
for shell in bash zsh fish; do "$moult" completion $shell >"$stage/common/completion.$shell"; done
"$moult" completion powershell >"$stage/common/completion.ps1"
for role in agent server; do
  "$moult" install $role --print-unit --binary /usr/bin/moult >"$stage/common/moult-$role.service"
  "$moult" install $role --print-config >"$stage/common/$role.toml"
done
make -s man MAN="$stage/common/man" GO="$GO" >&2
gzip -9n "$stage"/common/man/*.1
cat >"$stage/common/copyright" <<END
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: moult

Files: *
Copyright: $(date -u -d "@$epoch" +%Y) the authors of moult
License: Apache-2.0
 On Debian systems, the full text of the Apache License, Version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
END
{ printf 'moult (%s) stable; urgency=medium\n\n  * Version %s. What changed is in CHANGELOG.md of the source.\n\n' "$version" "$version"
  printf ' -- %s  %s\n' "$MAINTAINER" "$(date -u -d "@$epoch" '+%a, %d %b %Y %H:%M:%S +0000')"; } | gzip -9n >"$stage/common/changelog.gz"

made=() builds=()
for platform; do
  os=${platform%/*} arch=${platform#*/}
  say "$os/$arch"
  dir=$stage/$os-$arch exe=moult
  [ "$os" != windows ] || exe=moult.exe
  mkdir -p "$dir"
  cp -r "$stage/common/." "$dir"
  build "$os" "$arch" "$dir/$exe"
  builds+=("$platform=$dir/$exe")
  if has archive; then
    end=tar.gz
    [ "$os" != windows ] || end=zip
    name=moult-$version-$os-$arch
    files=("$exe=$dir/$exe" LICENSE=LICENSE README.md=README.md CHANGELOG.md=CHANGELOG.md)
    for shell in bash zsh fish ps1; do files+=("completion/moult.$shell=$dir/completion.$shell"); done
    if [ "$os" = linux ]; then
      for role in agent server; do files+=("systemd/moult-$role.service=$dir/moult-$role.service"); done
    fi
    if [ "$os" != windows ]; then
      for page in $(cd "$dir/man" && ls); do files+=("man/$page=$dir/man/$page"); done
    fi
    $GO run ./cmd/moult/packaging/archive -time "$epoch" -root "$name" -out "$out/$name.$end" "${files[@]}"
    made+=("$name.$end")
  fi
  packing=()
  for kind in deb rpm; do
    if [ "$os" != linux ] || ! has $kind; then continue; fi
    case $arch in arm) package_arch=arm7 ;; *) package_arch=$arch ;; esac
    case $kind in
      deb) name=moult_${version}_$([ "$arch" = arm ] && echo armhf || echo "$arch").deb ;;
      rpm) name=moult-$version.$(case $arch in amd64) echo x86_64 ;; arm64) echo aarch64 ;; arm) echo armv7hl ;; *) echo "$arch" ;; esac).rpm ;;
    esac
    # By hand: nfpm puts the environment into some of the fields only.
    sed -e "s|@ARCH@|$package_arch|; s|@VERSION@|$version|; s|@TIME@|$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)|" \
      -e "s|@STAGE@|$dir|; s|@MAINTAINER@|$MAINTAINER|; s|@HOMEPAGE@|$HOMEPAGE|" \
      cmd/moult/packaging/nfpm.yaml >"$dir/$kind.yaml"
    "$NFPM" package --config "$dir/$kind.yaml" --packager $kind --target "$out/$name" >&2 & # xz takes its time
    packing+=($!)
    made+=("$name")
  done
  for pid in "${packing[@]}"; do wait "$pid"; done
done

(cd "$out" && sha256sum "${made[@]}" >SHA256SUMS)
if [ -n "${KEY:-}" ]; then
  say "signing with $KEY"
  minisign -S -s "$KEY" -m "$out/SHA256SUMS" -t "moult $version"
  rm -rf "$out/release"
  "$moult" release create --version "$version" ${NUMBER:+--number "$NUMBER"} --key "$KEY" --out "$out/release" "${builds[@]}"
else
  say "not signed: give KEY=release.key, as made by moult key generate"
fi
ls -l "$out" >&2
