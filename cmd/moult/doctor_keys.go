package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/mesh/identity"
	"moult/updater"
)

const (
	// renewalPatience is the part of a certificate's life after which its renewal, due
	// at two thirds, has failed for long.
	renewalPatience = 5.0 / 6
)

// lookAtCertificate judges a certificate's age.
func (d *diagnosis) lookAtCertificate(creds identity.Credentials, cert *x509.Certificate, now time.Time) {
	const check = "certificate"
	const clock = "the clock of this host, or of the server that signed it, is wrong: correct it"
	const again = "move identity/ away and join again with a new token"
	life, age := cert.NotAfter.Sub(cert.NotBefore), now.Sub(cert.NotBefore)
	until := cert.NotAfter.Local().Format(time.DateTime)
	switch {
	case age < 0:
		d.fail(check, clock, "not valid before %s", cert.NotBefore.Local().Format(time.DateTime))
	case now.After(cert.NotAfter):
		d.fail(check, again, "expired at %s, or the clock is wrong", until)
	case float64(age) > renewalPatience*float64(life):
		d.warn(check, "is a server or relay within reach? See the log for why it was not renewed, which is tried from two thirds of its life on",
			"%s old and not renewed; it expires at %s", days(age), until)
	default:
		d.ok(check, "%s %s of segment %s, %s old, valid until %s", creds.Role, creds.Name, creds.Segment, days(age), until)
	}
}

// lookAtCAs tells whom this host trusts, and how far it is where the CA is being
// changed. How far the others are, servers know.
func (d *diagnosis) lookAtCAs(f nodekit.TrustFollowed) {
	const check = "CA"
	const next = "who has not followed: moult ca status; the next step: moult ca rotate"
	if len(f.CAs) == 0 {
		d.fail(check, "move identity/ away and join again with a new token", "this host trusts none")
		return
	}
	newest := f.CAs[len(f.CAs)-1]
	switch {
	case len(f.CAs) == 1 && f.Signer == newest:
		d.ok(check, "the only one trusted, sha256 %s", newest[:shortHash])
	case len(f.CAs) == 1:
		d.warn(check, "is a server or relay within reach? The host asks one for a new certificate", "this host's certificate is by a CA that was retired")
	case f.Signer == newest:
		d.warn(check, next, "it is being changed: this host has its certificate by the new one, sha256 %s, and trusts the old one beside it", newest[:shortHash])
	default:
		d.warn(check, next, "it is being changed: this host trusts the new one, sha256 %s, and has its certificate by the old one still", newest[:shortHash])
	}
}

func days(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return "less than a minute"
	case d < 2*day:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%d days", d/day)
}

// lookAtGossipKeys tells which gossip keys this host has, by a fingerprint, as one
// compares it with another host's.
func (d *diagnosis) lookAtGossipKeys(creds identity.Credentials) {
	segments := append([]string{creds.Segment}, names(creds.Also)...)
	for _, name := range segments {
		s, _ := creds.In(name)
		switch {
		case len(s.GossipKeys) == 0:
			d.fail("gossip key", "start the agent or server: it asks a server for the key; else join again with a new token", "none of segment %s", name)
			continue
		case slices.ContainsFunc(s.GossipKeys, func(k []byte) bool { return len(k) != gossipKeyBytes }):
			d.fail("gossip key", "move identity/ away and join again with a new token", "that of segment %s is damaged", name)
			continue
		}
		prints := make([]string, len(s.GossipKeys))
		for i, k := range s.GossipKeys {
			prints[i] = keyPrint(k)
		}
		d.ok("gossip key", "of segment %s: %s; the same on all its hosts", name, strings.Join(prints, ", then "))
	}
}

func names(segments []identity.Segment) (out []string) {
	for _, s := range segments {
		out = append(out, s.Name)
	}
	return out
}

// keyPrint tells two keys apart and gives neither away.
func keyPrint(key []byte) string {
	sum := sha256.Sum256(append([]byte("moult gossip key "), key...))
	return hex.EncodeToString(sum[:4])
}

// lookAtReleaseKeys tells whose releases this host takes.
func (d *diagnosis) lookAtReleaseKeys(data string, creds identity.Credentials) {
	const check = "release keys"
	set := updater.PinnedKeys(data, creds.Cluster, nodekit.KeysGiven(creds))
	if err := set.Check(); err != nil {
		d.fail(check, "move identity/ away and join again with a new token", "no release can be verified here: %v", err)
		return
	}
	d.ok(check, "%d pinned, %d have to sign; key statement %d", len(set.Keys), set.Needed(), set.Number)
}
