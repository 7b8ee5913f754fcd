#!/bin/sh
# Before removing. deb: remove or upgrade; rpm: the number of versions that are left.
# An upgrade leaves what runs alone: it is restarted once, when the new files are there.
set -e

case "$1" in
  remove | 0) ;;
  *) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
  systemctl disable --now --quiet moult-agent.service moult-server.service
fi
exit 0
