//go:build unix

package main

import (
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/mesh/identity"
)

// only wants one finding, and that it says what to do unless all is well.
func only(t *testing.T, d diagnosis, check, verdict, detail string) {
	t.Helper()
	if len(d.Findings) != 1 {
		t.Fatalf("findings: %+v", d.Findings)
	}
	f := d.Findings[0]
	if f.Check != check || f.Verdict != verdict || !strings.Contains(f.Detail, detail) {
		t.Errorf("found %+v, want %s of %s with %q", f, verdict, check, detail)
	}
	if (f.Verdict == findingOK) != (f.Next == "") {
		t.Errorf("%s names the next step %q", f.Verdict, f.Next)
	}
	if d.Healthy != (verdict != findingFailed) {
		t.Errorf("healthy: %v", d.Healthy)
	}
}

func TestDoctorTellsOfAChangeOfTheCA(t *testing.T) {
	old, next := strings.Repeat("1", 64), strings.Repeat("2", 64)
	for _, tc := range []struct {
		cas             []string
		signer          string
		verdict, detail string
	}{
		{nil, old, findingFailed, "trusts none"},
		{[]string{old}, old, findingOK, "the only one trusted, sha256 " + old[:16]},
		{[]string{old, next}, old, findingWarning, "by the old one still"},
		{[]string{old, next}, next, findingWarning, "by the new one, sha256 " + next[:16]},
		{[]string{next}, old, findingWarning, "by a CA that was retired"},
	} {
		d := diagnosis{Healthy: true}
		d.lookAtCAs(nodekit.TrustFollowed{CAs: tc.cas, Signer: tc.signer})
		only(t, d, "CA", tc.verdict, tc.detail)
	}
}

func TestStatusTellsOfAChangeOfTheCA(t *testing.T) {
	c := caChange{Stage: "prepared", Hosts: 9, Followed: 2, Pending: strings.Split("abcdefg", ""), Next: "moult ca rotate"}
	if got, want := c.told(), "is being changed, prepared: 2 of 9 hosts have followed, not yet a, b, c, d, e and 2 others; why: moult ca status; next: moult ca rotate"; got != want {
		t.Errorf("it says %q, not %q", got, want)
	}
	c.Pending = nil
	if got := c.told(); !strings.HasSuffix(got, "have followed; next: moult ca rotate") {
		t.Errorf("it says %q", got)
	}
}

func TestDoctorLooksAtPorts(t *testing.T) {
	ip := loopback()
	taken, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	packets, err := net.ListenPacket("udp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	for _, tc := range []struct {
		running         nodekit.RunningNode
		verdict, detail string
	}{
		{nodekit.RunningNode{Peer: taken.Addr().String()}, findingFailed, "the node port " + taken.Addr().String()},
		{nodekit.RunningNode{Gossip: packets.LocalAddr().String()}, findingFailed, "the gossip port"},
		{nodekit.RunningNode{HTTP: taken.Addr().String()}, findingFailed, "the UI port"},
		{nodekit.RunningNode{Peer: ip + ":0", Gossip: "192.0.2.7:7946"}, findingOK, "free"}, // behind NAT: nothing is known
	} {
		d := diagnosis{Healthy: true}
		d.lookAtOwnPorts(tc.running)
		only(t, d, "ports", tc.verdict, tc.detail)
	}
	d := diagnosis{Healthy: true}
	d.lookAtUIPort(t.Context(), nodekit.RunningNode{HTTP: taken.Addr().String()})
	only(t, d, "UI port", findingOK, "takes connections")
	taken.Close()
	d = diagnosis{Healthy: true}
	d.lookAtUIPort(t.Context(), nodekit.RunningNode{HTTP: taken.Addr().String()})
	only(t, d, "UI port", findingFailed, "does not take connections")
}

func TestDoctorJudgesAges(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	cert := &x509.Certificate{NotBefore: now, NotAfter: now.Add(90 * day)}
	for age, want := range map[time.Duration]struct{ verdict, detail string }{
		-time.Hour:       {findingFailed, "not valid before"},
		30 * time.Second: {findingOK, "less than a minute old"},
		90 * time.Minute: {findingOK, "1h30m old"},
		62 * day:         {findingOK, "62 days old"},
		80 * day:         {findingWarning, "80 days old and not renewed"},
		91 * day:         {findingFailed, "expired at"},
	} {
		d := diagnosis{Healthy: true}
		d.lookAtCertificate(identity.Credentials{}, cert, now.Add(age))
		only(t, d, "certificate", want.verdict, want.detail)
	}
	d := diagnosis{Healthy: true}
	d.tellClock([]time.Duration{time.Second, -40 * time.Second, 2 * time.Second})
	only(t, d, "clock", findingWarning, "up to 40s off that of 3 servers")
	d = diagnosis{Healthy: true}
	d.tellClock([]time.Duration{100 * time.Millisecond})
	only(t, d, "clock", findingOK, "within 1s of that of 1 server")
}

func TestDoctorLooksAtKeys(t *testing.T) {
	good := make([]byte, gossipKeyBytes)
	for name, tc := range map[string]struct {
		keys            [][]byte
		verdict, detail string
	}{
		"none":    {nil, findingFailed, "none of segment plant"},
		"damaged": {[][]byte{good, good[:5]}, findingFailed, "damaged"},
		"one":     {[][]byte{good}, findingOK, keyPrint(good)},
	} {
		d := diagnosis{Healthy: true}
		d.lookAtGossipKeys(identity.Credentials{Segment: "plant", GossipKeys: tc.keys})
		t.Log(name)
		only(t, d, "gossip key", tc.verdict, tc.detail)
	}
	d := diagnosis{Healthy: true}
	d.lookAtReleaseKeys(t.TempDir(), identity.Credentials{})
	only(t, d, "release keys", findingFailed, "no release can be verified here")
}
