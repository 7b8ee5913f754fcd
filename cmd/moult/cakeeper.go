package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/webui"
)

// casWanted is what a host should trust, and whose its certificate should be.
type casWanted struct {
	trusted []string // sha256 of the CAs, by number
	signer  string
	known   []string // that of all CAs that the cluster has had
	changed bool     // the CA was ever changed, or is being
}

func wantedCAs(cluster fleet.Cluster) (w casWanted, err error) {
	for _, ca := range cluster.TrustedCAs() {
		hash, err := identity.CAHash(ca.Cert)
		if err != nil {
			return w, err
		}
		w.trusted = append(w.trusted, hash)
	}
	w.signer, err = identity.CAHash(cluster.CACert)
	if w.changed = cluster.CARotation != nil; w.changed {
		w.known = chainOf(cluster).Hashes()
	}
	return w, err
}

// followedBy tells whether a host says that it has all that it should.
func (w casWanted) followedBy(f nodekit.TrustFollowed) bool {
	return !w.changed || slices.Equal(f.CAs, w.trusted) && f.Signer == w.signer
}

// chainOf is what hosts follow a change of the CA by.
func chainOf(cluster fleet.Cluster) identity.CAChain {
	return identity.CAChain{Successions: cluster.CASuccessions, Retirement: cluster.CARetirement}
}

// trustedBy are the CAs that a host is told of when it joins; none, as ever, where the
// CA was never changed.
func trustedBy(cluster fleet.Cluster) (cas []identity.TrustedCA) {
	if cluster.CARotation == nil {
		return nil
	}
	for _, ca := range cluster.TrustedCAs() {
		cas = append(cas, identity.TrustedCA{Number: ca.Number, Cert: ca.Cert})
	}
	return cas
}

// casOf is the notice of a view, and what it wants; nil where the CA was never changed.
func (k *trustKeeper) casOf(v fleet.View) (notice []byte, wanted casWanted) {
	cluster, _ := v.Cluster()
	if cluster.CARotation == nil {
		return nil, wanted
	}
	wanted, err := wantedCAs(cluster)
	if err == nil {
		notice, err = json.Marshal(nodekit.CasNotice{Chain: chainOf(cluster), Signer: wanted.signer})
	}
	if err != nil {
		k.logger.Error("tell of the change of the CA", "error", err)
		return nil, casWanted{}
	}
	return notice, wanted
}

// chain is what anybody may ask for, see identity.FetchChain.
func (k *trustKeeper) chain() identity.CAChain {
	cluster, _ := k.raft.State().View().Cluster()
	return chainOf(cluster)
}

// Hosts implements webui.CAs.
func (k *trustKeeper) Hosts() []webui.CAHost {
	v := k.raft.State().View()
	live := map[string]mesh.Liveness{}
	for _, m := range k.roster.Members() {
		live[m.HostID] = m.Liveness
	}
	cluster, _ := v.Cluster()
	wanted, err := wantedCAs(cluster)
	if err != nil {
		k.logger.Error("tell who follows the change of the CA", "error", err)
	}
	return caHosts(v, wanted, live, k.followed())
}

// caHosts joins what was decided about the CA with who follows it. A host that has
// once said that it does has what it takes, though it may be off by now.
func caHosts(v fleet.View, wanted casWanted, live map[string]mesh.Liveness, follows map[string]nodekit.TrustFollowed) (hosts []webui.CAHost) {
	for _, h := range v.Hosts() {
		f, said := follows[h.ID]
		out := webui.CAHost{Name: h.Name, Server: h.Role == fleet.RoleServer, Done: wanted.followedBy(f)}
		foreign := slices.IndexFunc(f.CAs, func(hash string) bool { return !slices.Contains(wanted.known, hash) })
		switch state := live[h.ID]; {
		case out.Done:
		case state != mesh.Online:
			out.Why = "not online; it follows when it comes back"
		case !said || len(f.CAs) == 0:
			out.Why = "online, and has not said which CAs it trusts; an older moult has to be updated first"
		case foreign >= 0:
			out.Why = fmt.Sprintf("trusts a CA that is not this cluster's, sha256 %s: somebody besides the servers may have a CA's key; remove it, and join it with a new token", f.CAs[foreign])
		case !slices.Equal(f.CAs, wanted.trusted):
			out.Why = "online, and does not trust the same CAs yet"
		default:
			out.Why = "online, and its certificate is not by the new CA yet"
		}
		hosts = append(hosts, out)
	}
	slices.SortFunc(hosts, func(a, b webui.CAHost) int { return cmp.Compare(a.Name, b.Name) })
	return hosts
}

// Begin implements webui.CAs.
func (k *trustKeeper) Begin() (fleet.CARotationBegun, error) {
	cluster, _ := k.raft.State().View().Cluster()
	return beginCARotation(cluster, time.Now())
}

func beginCARotation(cluster fleet.Cluster, now time.Time) (fleet.CARotationBegun, error) {
	old, err := identity.LoadCA(cluster.CACert, cluster.CAKey)
	if err != nil {
		return fleet.CARotationBegun{}, err
	}
	next, err := identity.NewCA(cluster.ID, now)
	if err != nil {
		return fleet.CARotationBegun{}, err
	}
	n := cluster.CANumber + 1
	succession, err := old.SignSuccession(cluster.ID, n, next)
	return fleet.CARotationBegun{Number: n, Cert: next.CertPEM(), Key: next.KeyPEM(), Succession: succession}, err
}

// Switch implements webui.CAs.
func (k *trustKeeper) Switch() (fleet.CASwitched, error) {
	cluster, _ := k.raft.State().View().Cluster()
	return switchCA(cluster)
}

func switchCA(cluster fleet.Cluster) (c fleet.CASwitched, err error) {
	r := cluster.CARotation
	if r == nil || r.Stage != fleet.CAStagePrepared {
		return c, nil // the state refuses it, and says why
	}
	c.Number = r.Number
	if cluster.Epoch == 0 {
		return c, nil
	}
	next, err := identity.LoadCA(r.Cert, r.Key)
	if err != nil {
		return c, err
	}
	c.EpochStatement, err = next.SignEpoch(identity.EpochStatement{Cluster: cluster.ID, Epoch: cluster.Epoch})
	return c, err
}

// Retire implements webui.CAs.
func (k *trustKeeper) Retire() (fleet.CARetired, error) {
	cluster, _ := k.raft.State().View().Cluster()
	return retireCA(cluster)
}

func retireCA(cluster fleet.Cluster) (c fleet.CARetired, err error) {
	ca, err := identity.LoadCA(cluster.CACert, cluster.CAKey)
	if err != nil {
		return c, err
	}
	c.Number = cluster.CANumber
	if c.GossipKey, err = identity.NewGossipKey(); err != nil || c.Number == 0 {
		return c, err // of number 0 the state refuses it, and says why
	}
	c.Retirement, err = ca.SignRetirement(cluster.ID, c.Number)
	return c, err
}
