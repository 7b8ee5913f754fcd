//go:build unix

package main

import (
	"fmt"
	"path/filepath"
	"strings"
)

// launchdLabel is a role's name in launchd.
func launchdLabel(role string) string { return "moult." + role }

// launchdLog is where launchd puts what a service prints.
func launchdLog(role string) string { return "/var/log/moult-" + role + ".log" }

// launchdPlist is what launchd is told of a role's service: started with the
// machine and whenever it ends, and given the time to stop that its supervisor
// takes. See launchd.plist(5).
func launchdPlist(p servicePlan) (string, error) {
	for what, path := range map[string]string{"binary": p.binary, "config-file": p.config, "data": p.data} {
		if !filepath.IsAbs(path) || strings.ContainsAny(path, "\n\x00") {
			return "", fmt.Errorf("--%s %q: a service's path is absolute and one line", what, path)
		}
	}
	return strings.NewReplacer(
		"{label}", launchdLabel(p.role), "{binary}", xmlText(p.binary), "{role}", p.role,
		"{config}", xmlText(p.config), "{log}", launchdLog(p.role),
	).Replace(plistText), nil
}

func xmlText(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}

// Umask is 077, which property lists write in decimal.
const plistText = `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>{label}</string>
	<key>ProgramArguments</key>
	<array>
		<string>{binary}</string>
		<string>{role}</string>
		<string>--config</string>
		<string>{config}</string>
	</array>
	<key>RunAtLoad</key>
	<true/>
	<key>KeepAlive</key>
	<true/>
	<key>ThrottleInterval</key>
	<integer>5</integer>
	<key>ExitTimeOut</key>
	<integer>20</integer>
	<key>ProcessType</key>
	<string>Background</string>
	<key>Umask</key>
	<integer>63</integer>
	<key>StandardOutPath</key>
	<string>{log}</string>
	<key>StandardErrorPath</key>
	<string>{log}</string>
</dict>
</plist>
`
