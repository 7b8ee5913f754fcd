package nodekit

import (
	"errors"
	"fmt"
	"time"

	"moult/consensus"
	"moult/webui"
)

// The codes of what can be wrong with a server; problemCodes has them all.
const (
	ProblemStopping    = "stopping"
	ProblemDiskStalled = "disk_stalled"
	ProblemDiskFailed  = "disk_failed"
	ProblemNotMember   = "not_member"
	ProblemRemoved     = "removed"
	ProblemNoQuorum    = "no_quorum"
	ProblemNoLeader    = "no_leader"
	ProblemBehind      = "catching_up"
	ProblemUnfit       = "unfit"
	ProblemSilent      = "silent"

	ProblemDiskLow     = "disk_low"
	ProblemMesh        = "cut_from_mesh"
	ProblemClock       = "clock_off"
	ProblemCertificate = "certificate_ends"
)

// ServerFacts is what a server's health is judged by. The zero value is of a
// healthy one of which nothing further is known.
type ServerFacts struct {
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

// Judge is the one place that says whether a server is well: what /readyz, `moult
// status`, the metrics and the page of servers tell is what it returns. What keeps
// the server from serving is first.
func Judge(f ServerFacts) []webui.Problem {
	if f.Silent != nil {
		return []webui.Problem{{
			Code: ProblemSilent, Failing: true,
			Message: "it does not answer at its node port: " + f.Silent.Error(),
			Next:    "look at its log, start it again, or see whether a firewall is in between",
		}}
	}
	var found []webui.Problem
	if p, failing := JudgeReady(f); failing {
		found = append(found, p)
	}
	warn := func(code, next, format string, args ...any) {
		found = append(found, webui.Problem{Code: code, Message: fmt.Sprintf(format, args...), Next: next})
	}
	if f.FreeKnown && f.FreeBytes < RoomForUpdate {
		warn(ProblemDiskLow, "free some space there before the Raft log cannot be written", "the data directory has %d MiB left, less than %d", f.FreeBytes>>20, int64(RoomForUpdate)>>20)
	}
	if f.Asked && f.OthersAnswer > 0 && f.OthersInMesh == 0 {
		warn(ProblemMesh, "open the gossip port (7946 unless --gossip says otherwise), TCP and UDP, between the servers; moult doctor on this host tells more",
			"the other servers answer at their node ports, and the mesh shows none of them: this server does not see the hosts as they are")
	}
	if off := f.ClockOff.Abs(); f.Asked && off > SkewWarning {
		way := "ahead of"
		if f.ClockOff < 0 {
			way = "behind"
		}
		warn(ProblemClock, "set it, and let NTP keep it", "this server's clock is %s %s the other servers'", off.Round(time.Second), way)
	}
	if left := f.CertEnds.Sub(f.Now); !f.CertEnds.IsZero() && left < f.CertEnds.Sub(f.CertFrom)/certLastPart {
		const next = "it renews by itself where it reaches a server with a leader; look for \"not renewed yet\" in its log"
		if left > 0 {
			warn(ProblemCertificate, next, "this server's certificate ends in %s", left.Round(time.Second))
		} else {
			warn(ProblemCertificate, next, "this server's certificate ended %s ago: no other host takes it", (-left).Round(time.Second))
		}
	}
	return found
}

// JudgeReady explains what the Raft node lacks.
func JudgeReady(f ServerFacts) (p webui.Problem, failing bool) {
	if f.Ready == nil {
		return p, false
	}
	p = webui.Problem{Code: ProblemUnfit, Message: f.Ready.Error(), Next: "it does not lead until then", Failing: true} // consensus.Config.Unfit
	switch {
	case errors.Is(f.Ready, consensus.ErrClosed):
		p.Code, p.Next = ProblemStopping, "it is about to end"
	case errors.Is(f.Ready, consensus.ErrDiskStalled):
		p.Code, p.Next = ProblemDiskStalled, "look at the disk of the data directory; the server goes on by itself when it answers"
	case errors.Is(f.Ready, consensus.ErrDiskFailed):
		p.Code, p.Next = ProblemDiskFailed, "make room, or make the data directory writable, and start the server again"
	case errors.Is(f.Ready, consensus.ErrNotMember):
		p.Code, p.Next = ProblemNotMember, "it waits to be added by a leader; its log tells what is in the way"
	case errors.Is(f.Ready, consensus.ErrRemoved):
		p.Code, p.Next = ProblemRemoved, "stop it; it can only come back as a new one, with an empty data directory and a new token"
	case errors.Is(f.Ready, consensus.ErrLeaderless) && f.Asked && f.Answering <= f.Voters/2:
		p.Code = ProblemNoQuorum
		p.Next = fmt.Sprintf("a majority of the servers must be up: %d of %d that vote answer this one, %d are needed; start the others, or if they are lost for good see: moult server recover --help",
			f.Answering, f.Voters, f.Voters/2+1)
	case errors.Is(f.Ready, consensus.ErrLeaderless):
		p.Code, p.Next = ProblemNoLeader, "a majority of the servers must be up; if they are, one is elected within seconds, or their node ports do not reach each other"
	case errors.Is(f.Ready, consensus.ErrBehind):
		p.Code, p.Next = ProblemBehind, "wait; if it lasts, look at its log and at the way to the leader's node port"
	}
	return p, true
}
