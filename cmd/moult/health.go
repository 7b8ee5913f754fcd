package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"moult/consensus"
	"moult/webui"
)

// problemCodes says of each code whether it keeps a server from serving.
var problemCodes = map[string]bool{
	problemStopping: true, problemDiskStalled: true, problemDiskFailed: true, problemNotMember: true, problemRemoved: true,
	problemNoQuorum: true, problemNoLeader: true, problemBehind: true, problemUnfit: true, problemSilent: true,
	problemDiskLow: false, problemMesh: false, problemClock: false, problemCertificate: false,
}

// isFailing tells whether any of the problems keeps a server from serving.
func isFailing(problems []webui.Problem) bool {
	return slices.ContainsFunc(problems, func(p webui.Problem) bool { return p.Failing })
}

// The codes of what can be wrong with a server; problemCodes has them all.
const (
	problemStopping    = "stopping"
	problemDiskStalled = "disk_stalled"
	problemDiskFailed  = "disk_failed"
	problemNotMember   = "not_member"
	problemRemoved     = "removed"
	problemNoQuorum    = "no_quorum"
	problemNoLeader    = "no_leader"
	problemBehind      = "catching_up"
	problemUnfit       = "unfit"
	problemSilent      = "silent"

	problemDiskLow     = "disk_low"
	problemMesh        = "cut_from_mesh"
	problemClock       = "clock_off"
	problemCertificate = "certificate_ends"
)

// serverFacts is what a server's health is judged by. The zero value is of a
// healthy one of which nothing further is known.
type serverFacts struct {
	Silent error // it does not answer; then nothing else is known

	Ready error // of its Raft node

	Asked              bool // whether the others were asked, for what follows
	Voters, Answering  int  // servers that vote, and those of them that answer, this one included
	OthersAnswer       int  // other servers that answer at their node ports,
	OthersInMesh       int  // and those that the mesh says are online
	ClockOff           time.Duration
	FreeBytes          int64 // in the data directory
	FreeKnown          bool
	CertEnds, CertFrom time.Time // validity of its certificate; zero: not known
	Now                time.Time
}

// certLastPart is the part of a certificate's lifetime in which it should have been
// renewed long ago: hosts renew at two thirds.
const certLastPart = 6

// judge is the one place that says whether a server is well: what /readyz, `moult
// status`, the metrics and the page of servers tell is what it returns. What keeps
// the server from serving is first.
func judge(f serverFacts) []webui.Problem {
	if f.Silent != nil {
		return []webui.Problem{{
			Code: problemSilent, Failing: true,
			Message: "it does not answer at its node port: " + f.Silent.Error(),
			Next:    "look at its log, start it again, or see whether a firewall is in between",
		}}
	}
	var found []webui.Problem
	if p, failing := judgeReady(f); failing {
		found = append(found, p)
	}
	warn := func(code, next, format string, args ...any) {
		found = append(found, webui.Problem{Code: code, Message: fmt.Sprintf(format, args...), Next: next})
	}
	if f.FreeKnown && f.FreeBytes < roomForUpdate {
		warn(problemDiskLow, "free some space there before the Raft log cannot be written", "the data directory has %d MiB left, less than %d", f.FreeBytes>>20, int64(roomForUpdate)>>20)
	}
	if f.Asked && f.OthersAnswer > 0 && f.OthersInMesh == 0 {
		warn(problemMesh, "open the gossip port (7946 unless --gossip says otherwise), TCP and UDP, between the servers; moult doctor on this host tells more",
			"the other servers answer at their node ports, and the mesh shows none of them: this server does not see the hosts as they are")
	}
	if off := f.ClockOff.Abs(); f.Asked && off > skewWarning {
		way := "ahead of"
		if f.ClockOff < 0 {
			way = "behind"
		}
		warn(problemClock, "set it, and let NTP keep it", "this server's clock is %s %s the other servers'", off.Round(time.Second), way)
	}
	if left := f.CertEnds.Sub(f.Now); !f.CertEnds.IsZero() && left < f.CertEnds.Sub(f.CertFrom)/certLastPart {
		const next = "it renews by itself where it reaches a server with a leader; look for \"not renewed yet\" in its log"
		if left > 0 {
			warn(problemCertificate, next, "this server's certificate ends in %s", left.Round(time.Second))
		} else {
			warn(problemCertificate, next, "this server's certificate ended %s ago: no other host takes it", (-left).Round(time.Second))
		}
	}
	return found
}

// judgeReady explains what the Raft node lacks.
func judgeReady(f serverFacts) (p webui.Problem, failing bool) {
	if f.Ready == nil {
		return p, false
	}
	p = webui.Problem{Code: problemUnfit, Message: f.Ready.Error(), Next: "it does not lead until then", Failing: true} // consensus.Config.Unfit
	switch {
	case errors.Is(f.Ready, consensus.ErrClosed):
		p.Code, p.Next = problemStopping, "it is about to end"
	case errors.Is(f.Ready, consensus.ErrDiskStalled):
		p.Code, p.Next = problemDiskStalled, "look at the disk of the data directory; the server goes on by itself when it answers"
	case errors.Is(f.Ready, consensus.ErrDiskFailed):
		p.Code, p.Next = problemDiskFailed, "make room, or make the data directory writable, and start the server again"
	case errors.Is(f.Ready, consensus.ErrNotMember):
		p.Code, p.Next = problemNotMember, "it waits to be added by a leader; its log tells what is in the way"
	case errors.Is(f.Ready, consensus.ErrRemoved):
		p.Code, p.Next = problemRemoved, "stop it; it can only come back as a new one, with an empty data directory and a new token"
	case errors.Is(f.Ready, consensus.ErrLeaderless) && f.Asked && f.Answering <= f.Voters/2:
		p.Code = problemNoQuorum
		p.Next = fmt.Sprintf("a majority of the servers must be up: %d of %d that vote answer this one, %d are needed; start the others, or if they are lost for good see: moult server recover --help",
			f.Answering, f.Voters, f.Voters/2+1)
	case errors.Is(f.Ready, consensus.ErrLeaderless):
		p.Code, p.Next = problemNoLeader, "a majority of the servers must be up; if they are, one is elected within seconds, or their node ports do not reach each other"
	case errors.Is(f.Ready, consensus.ErrBehind):
		p.Code, p.Next = problemBehind, "wait; if it lasts, look at its log and at the way to the leader's node port"
	}
	return p, true
}
