package webui

import (
	"context"
	"net/http"
	"time"
)

// Who leads and how far servers are, no event tells.
var serversPageKind = pageKind{name: "servers", title: "Servers", topics: "hosts", every: 5}

// serversPageTimeout is how long the page waits for servers that do not answer.
const serversPageTimeout = 3 * time.Second

// serversView is what the servers page shows.
type serversView struct {
	shell
	Servers []serverRow
	Voters  int
	Healthy int           // of the voters
	Needed  int           // voters that make a majority
	Spare   int           // voters that may still be lost
	CA      *caChangeView // while the CA is being changed
}

// caChangeView is how far a change of the CA is.
type caChangeView struct {
	caJSON
	Named []pendingCA // of Pending
	More  int         // that are not named
}

// caChange is what the page tells of a change of the CA; nil: none is under way.
func (u *ui) caChange() (*caChangeView, error) {
	cluster, _ := u.View().Cluster()
	if cluster.CARotation == nil || cluster.CARotation.Stage == "" {
		return nil, nil
	}
	ca, err := u.ca()
	if err != nil {
		return nil, err
	}
	named := ca.Pending[:min(len(ca.Pending), maxNamed)]
	return &caChangeView{ca, named, len(ca.Pending) - len(named)}, nil
}

// serverRow is a server and how far it is behind the others.
type serverRow struct {
	ServerStatus
	Lag  uint64 // log entries
	Only bool   // that votes: without it there would be no cluster
}

func (u *ui) serversPage(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), serversPageTimeout)
	defer cancel()
	v := &serversView{}
	var err error
	if v.CA, err = u.caChange(); err != nil {
		return err
	}
	var newest uint64
	servers := u.Servers.Servers(ctx)
	for _, s := range servers {
		newest = max(newest, s.AppliedIndex)
		if s.Voter {
			v.Voters++
			if s.Healthy {
				v.Healthy++
			}
		}
	}
	for _, s := range servers {
		v.Servers = append(v.Servers, serverRow{s, newest - s.AppliedIndex, s.Voter && v.Voters == 1})
	}
	v.Needed = v.Voters/2 + 1
	v.Spare = max(0, v.Healthy-v.Needed)
	return u.show(w, r, serversPageKind, v)
}
