#!/bin/sh
# After removing. Data, configuration and account stay, so that the package can come
# back. deb: purge takes them. rpm has no such thing: `moult uninstall --purge`
# before removing does.
set -e

if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  case "$1" in
    remove | purge | 0) systemctl reset-failed moult-agent.service moult-server.service 2>/dev/null || true ;;
  esac
fi
if [ "$1" = purge ]; then
  rm -f /etc/systemd/system/moult-agent.service /etc/systemd/system/moult-server.service
  rm -rf /var/lib/moult /etc/moult
  if getent passwd moult >/dev/null && command -v userdel >/dev/null; then
    userdel moult
  fi
  [ ! -d /run/systemd/system ] || systemctl daemon-reload
fi
exit 0
