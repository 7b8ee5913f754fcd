package webui

import (
	"fmt"
	"net/http"
	"strings"

	"moult/consensus/fleet"
)

var joinPageKind = pageKind{name: "join", title: "Add a host", topics: "hosts tokens"}

// joinView is what the page that adds hosts shows.
type joinView struct {
	shell
	Segments []string
	Relays   []fleet.Host      // to join through
	Waiting  []fleet.JoinToken // neither used nor expired
	Joined   []*fleet.Host     // the newest ones
}

// maxJoined is how many hosts that joined last the page lists.
const maxJoined = 5

func (u *ui) joinPage(w http.ResponseWriter, r *http.Request) error {
	p, v := u.picture(), &joinView{}
	v.Segments, v.Relays = p.segments(), p.joinableRelays()
	for _, t := range p.JoinTokens() {
		if t.UsedAt == nil && u.Now().Before(t.ExpiresAt) {
			v.Waiting = append(v.Waiting, t)
		}
	}
	for _, h := range p.agents() {
		i := len(v.Joined)
		for i > 0 && v.Joined[i-1].EnrolledAt.Before(h.EnrolledAt) {
			i--
		}
		if i < maxJoined {
			v.Joined = append(v.Joined[:i], append([]*fleet.Host{h}, v.Joined[i:min(len(v.Joined), maxJoined-1)]...)...)
		}
	}
	return u.show(w, r, joinPageKind, v)
}

// joinScripts are what to run on a new host, from the download on.
type joinScripts struct {
	Linux   string `json:"linux"`   // for a root shell
	Windows string `json:"windows"` // for PowerShell as administrator
}

// joinScripts makes them for a host that joins at addresses: servers', or a
// relay's, behind which there is no server to fetch the binary from.
func (u *ui) joinScripts(role fleet.HostRole, token, arch string, join []string, behindRelay bool) joinScripts {
	flags := ""
	for _, a := range join {
		flags += " --join " + a
	}
	fetch := u.fetchScript
	if behindRelay {
		fetch = func(os, arch string) string {
			return fmt.Sprintf("# bring a moult binary for %s/%s along: behind a relay there is no server to fetch it from\n", os, arch)
		}
	}
	sh, ps := fetch("linux", arch), fetch("windows", arch)
	return joinScripts{
		Linux: sh + fmt.Sprintf("MOULT_TOKEN=%s moult install %s%s\n", token, role, flags),
		Windows: ps + fmt.Sprintf("$env:MOULT_TOKEN = '%s'\n.\\moult.exe %s --data C:\\ProgramData\\moult%s\n",
			token, role, flags),
	}
}

// fetchScript fetches the current binary from a server and holds it to its sha256.
func (u *ui) fetchScript(os, arch string) string {
	_, servers := u.hosts.lists(u.View())
	addresses := otherServers(servers, "")
	binary, err := u.Binaries.Open(os, arch)
	if err != nil || len(addresses) == 0 {
		return fmt.Sprintf("# bring a moult binary for %s/%s along: the current release has none to fetch\n", os, arch)
	}
	binary.Content.Close()
	url := fmt.Sprintf("%s/agent/binary?os=%s&arch=%s", addresses[0].Origin(), os, arch)
	flags := "-fLo"
	if addresses[0].TLS {
		flags = "-kfLo" // the new host does not know the UI CA; the digest vouches for the bytes
	}
	if os == "windows" {
		return fmt.Sprintf("curl.exe %s moult.exe '%s'\nif ((Get-FileHash moult.exe).Hash -ne '%s') { throw 'the download is not what it should be' }\n",
			flags, url, strings.ToUpper(binary.SHA256))
	}
	return fmt.Sprintf("curl %s moult '%s' &&\necho '%s  moult' | sha256sum -c - &&\ninstall -m 755 moult /usr/local/bin/moult &&\n", flags, url, binary.SHA256)
}
