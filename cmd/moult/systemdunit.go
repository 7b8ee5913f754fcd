package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"moult/cmd/internal/nodekit"
)

// unitName is the systemd unit of a role.
func unitName(role string) string { return "moult-" + role + ".service" }

// systemdUnit is the unit of a role's service. docs/install.md tells what each line
// is for; a package has the same text for its places.
func systemdUnit(p servicePlan) (string, error) {
	for what, path := range map[string]string{"binary": p.binary, "config-file": p.config, "data": p.data} {
		if !filepath.IsAbs(path) || strings.ContainsAny(path, "\"\\%$\n") {
			return "", fmt.Errorf("--%s %q: a service's path is absolute and without quotes, backslashes, $ or %%", what, path)
		}
	}
	user := ""
	if p.user != "" && p.user != "root" {
		user = "User=" + p.user + "\nGroup=" + p.user + "\n"
	}
	title := "moult agent: shows what this host runs, and updates it"
	if p.role == roleServer {
		title = "moult server: holds what was decided, and coordinates"
	}
	state := "ReadWritePaths=-" + quoteUnit(p.data)
	if p.data == nodekit.DefaultDataDir {
		state = "StateDirectory=moult\nStateDirectoryMode=0700"
	}
	return strings.NewReplacer(
		"{title}", title, "{role}", p.role, "{binary}", quoteUnit(p.binary), "{config}", quoteUnit(p.config),
		"{user}", user, "{state}", state,
	).Replace(unitText), nil
}

// quoteUnit quotes a path that has a space in it.
func quoteUnit(path string) string {
	if strings.ContainsAny(path, " \t'") {
		return `"` + path + `"`
	}
	return path
}

const unitText = `[Unit]
Description={title}
Documentation=man:moult-{role}(1)
Wants=network-online.target
After=network-online.target
# It is never given up: a host whose agent stays down is one that nobody can update.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={binary} {role} --config {config}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=5s
TimeoutStartSec=3min
TimeoutStopSec=60s
KillMode=mixed
WatchdogSec=60s
{user}{state}
UMask=0077
LimitNOFILE=65536
TasksMax=1024

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
`
