#!/bin/sh
# After installing. deb: configure [OLD_VERSION]; rpm: the number of versions installed.
# Nothing is started: a host that belongs to no cluster has nothing to run.
set -e

upgrade=
case "$1" in
  configure) [ -z "$2" ] || upgrade=yes ;;
  abort-*) exit 0 ;;
  [2-9]) upgrade=yes ;;
esac

if ! getent passwd moult >/dev/null; then
  if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers moult.conf
  else
    useradd --system --user-group --home-dir /var/lib/moult --no-create-home --shell /usr/sbin/nologin moult
  fi
fi

if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  # One that runs takes the new binary; one that does not stays as it is.
  [ -z "$upgrade" ] || systemctl try-restart moult-agent.service moult-server.service
fi
exit 0
