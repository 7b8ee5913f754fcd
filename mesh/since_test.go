package mesh

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

// followed is what somebody has who asks a roster now and then what has changed.
type followed struct {
	roster  *Roster
	version uint64
	members map[string]Member
}

func (f *followed) look() (changed int) {
	members, now, whole := f.roster.Since(f.version)
	if f.version = now; whole {
		f.members = map[string]Member{}
	}
	for _, m := range members {
		f.members[m.HostID] = m
	}
	return len(members)
}

// differs names the first member whom the follower has otherwise than the roster, but
// for what changes with the clock.
func (f *followed) differs() string {
	members := f.roster.Members()
	for _, m := range members {
		have := f.members[m.HostID]
		for _, p := range []*Member{&m, &have} {
			p.LastSeen, p.SeenVia, p.Addr = time.Time{}, "", ""
			p.Seq = 0 // a renewal alone is no change
		}
		if !reflect.DeepEqual(m, have) {
			return fmt.Sprintf("%+v, and the follower has %+v", m, have)
		}
	}
	if len(members) != len(f.members) {
		return fmt.Sprintf("%d members, and the follower has %d", len(members), len(f.members))
	}
	return ""
}

// overdue names a host that time has made another, and expire has passed over.
func overdue(r *Roster) string {
	now := r.now()
	for id := range r.aging {
		if r.hosts[id] == nil {
			return id + " ages, and is no host any more"
		}
	}
	for id, h := range r.hosts {
		again := *h
		again.sightings = slices.DeleteFunc(slices.Clone(h.sightings), func(o observed) bool { return !o.expires.IsZero() && now.After(o.expires) })
		again.online = !h.record.Leaving && r.alive(&again, now)
		if r.label(&again, now) || len(again.sightings) < len(h.sightings) || again.online != h.online {
			return fmt.Sprintf("%s is %s, and should be %s by now", id, h.liveness, again.liveness)
		}
	}
	return ""
}

// Whatever happens to hosts, who asks what has changed has what is there.
func TestWhoFollowsARosterHasWhatItHas(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		now := time.Unix(1_700_000_000, 0)
		removed := map[string]bool{}
		r := newRoster("s1", []string{"core"}, DefaultTiming, recordVerifier{denied: func(id string) bool { return removed[id] }})
		r.now = func() time.Time { return now }
		f := &followed{roster: r, members: map[string]Member{}}
		versions := uint64(0)
		for step := range 400 {
			i := rng.IntN(12)
			rec := agentRecord(fmt.Sprint("a", i), uint64(1+step/40), uint64(1+step%40))
			rec.Segments = []string{fmt.Sprint("seg", i%3)}
			if i < 3 {
				rec.Segments = append(rec.Segments, "core")
			}
			rec.Leaving, rec.Phase = rng.IntN(10) == 0, phases[rng.IntN(3)]
			signed := SignedRecord{Record: rec, Raw: fmt.Append(nil, seed, step)}
			versions++
			switch rng.IntN(9) {
			case 0:
				now = now.Add(time.Duration(rng.IntN(60)) * time.Second)
				r.expire(hintLifetime)
				if why := overdue(r); why != "" {
					t.Fatalf("seed %d, step %d: %s", seed, step, why)
				}
			case 1:
				r.see(rec.HostID, sightingKey{}, sighting{alive: rng.IntN(3) > 0, expires: now.Add(time.Minute)})
			case 2:
				if rng.IntN(5) == 0 {
					removed[rec.HostID] = true
					r.expire(hintLifetime)
					delete(removed, rec.HostID)
				}
			case 3:
				r.forget(rec.HostID, sightingKey{rec.Segments[0], "a0"})
			case 4:
				r.see(rec.HostID, sightingKey{segment: "core"}, sighting{alive: rng.IntN(3) > 0})
			default:
				_, _ = r.report(report{observer: fmt.Sprint("a", rng.IntN(3)), version: versions, segment: rec.Segments[0], alive: rng.IntN(3) > 0, record: signed})
			}
			if rng.IntN(3) == 0 {
				f.look()
				if why := f.differs(); why != "" {
					t.Fatalf("seed %d, step %d: %s", seed, step, why)
				}
			}
		}
	}
}

func TestOnlyWhatChangedIsToldAgain(t *testing.T) {
	r := newRoster("s1", []string{"core"}, DefaultTiming, recordVerifier{})
	f := &followed{roster: r}
	for i := range 100 {
		rec := agentRecord(fmt.Sprint("a", i), 1, 1)
		_, err := r.record(SignedRecord{Record: rec, Raw: fmt.Append(nil, i)}, fromGossip)
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := f.look(); n != 100 {
		t.Errorf("at first %d are told of", n)
	}
	if n := f.look(); n != 0 {
		t.Errorf("%d are told of, and nothing has changed", n)
	}
	r.Touch("a7")
	r.Touch("nobody")
	if n := f.look(); n != 1 {
		t.Errorf("%d are told of, and one was touched", n)
	}
	r.mu.Lock()
	r.drop("a3")
	r.mu.Unlock()
	if n := f.look(); n != 99 || f.differs() != "" {
		t.Errorf("%d are told of after one was dropped: %s", n, f.differs())
	}
}

// Who is known by a record alone is told from one that was seen to be away.
func TestRecordAloneIsNoSighting(t *testing.T) {
	r := newRoster("s1", []string{"core"}, DefaultTiming, recordVerifier{})
	if _, err := r.record(SignedRecord{Record: agentRecord("a1", 1, 1), Raw: []byte{1}}, fromGossip); err != nil {
		t.Fatal(err)
	}
	if m, _ := r.Member("a1"); m.Liveness == Online || m.Sighted {
		t.Errorf("by its record alone: %s, sighted %t", m.Liveness, m.Sighted)
	}
	r.see("a1", sightingKey{"core", ""}, sighting{alive: true})
	r.see("a1", sightingKey{"core", ""}, sighting{})
	if m, _ := r.Member("a1"); m.Liveness != Offline || !m.Sighted {
		t.Errorf("after it was seen to go: %s, sighted %t", m.Liveness, m.Sighted)
	}
}
