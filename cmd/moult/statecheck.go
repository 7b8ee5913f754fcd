package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"moult/mesh/identity"
	"moult/webui"
)

// Limits of a comparison of the servers' states.
const (
	stateRetries = 20                     // rounds until all have applied the same entries
	statePause   = 200 * time.Millisecond // between rounds
)

// state answers for this server.
func (m *membership) state(context.Context, identity.Identity, struct{}) (nodeState, error) {
	v := m.raft.State().View()
	return nodeState{Index: v.Index(), SHA256: v.Hash()}, nil
}

// States returns a digest of each server's state. It asks again until all have
// applied the same entries: only then can the digests be compared.
func (m *membership) States(ctx context.Context) []webui.ServerState {
	for round := 1; ; round++ {
		states := m.statesNow(ctx)
		if sameIndex(states) || round == stateRetries {
			return states
		}
		select {
		case <-ctx.Done():
			return states
		case <-time.After(statePause):
		}
	}
}

func sameIndex(states []webui.ServerState) bool {
	index := uint64(0)
	for _, s := range states {
		if s.Error == "" && s.Index != cmp.Or(index, s.Index) {
			return false
		}
		index = cmp.Or(s.Index, index)
	}
	return true
}

func (m *membership) statesNow(ctx context.Context) []webui.ServerState {
	list := m.raft.Servers()
	out := make([]webui.ServerState, len(list))
	v := m.raft.State().View()
	var asked sync.WaitGroup
	for i, s := range list {
		st := webui.ServerState{ID: s.ID, Name: s.ID}
		if h, ok := v.Host(s.ID); ok {
			st.Name = h.Name
		}
		asked.Go(func() {
			var answer nodeState
			var err error
			if s.ID == m.self {
				answer, err = m.state(ctx, identity.Identity{}, struct{}{})
			} else {
				answer, err = m.servers.State(ctx, s.Address)
			}
			if err != nil {
				st.Error = "it does not answer"
			}
			st.Index, st.SHA256 = answer.Index, answer.SHA256
			out[i] = st
		})
	}
	asked.Wait()
	return out
}

// verifyServers is `moult servers verify`.
func verifyServers(cmd *cobra.Command, c *client, asJSON bool) error {
	var answer struct {
		Verdict string              `json:"verdict"`
		Servers []webui.ServerState `json:"servers"`
	}
	if err := c.call(cmd.Context(), http.MethodGet, "/api/servers/state", nil, &answer); err != nil {
		return err
	}
	var err error
	if asJSON {
		err = printJSON(cmd.OutOrStdout(), answer)
	} else {
		var rows [][]string
		for _, s := range answer.Servers {
			rows = append(rows, []string{printable(s.Name), fmt.Sprint(s.Index), dash(s.SHA256), dash(s.Error)})
		}
		err = printTable(cmd.OutOrStdout(), []string{"NAME", "INDEX", "SHA256", "PROBLEM"}, rows)
	}
	switch {
	case err != nil:
		return err
	case answer.Verdict == "differ":
		return errors.New("the states differ at the same index: keep the data directories of all servers as they are, take the odd one out with `moult servers remove`, and report this")
	case answer.Verdict != "equal":
		return errors.New("the states could not be compared: a server does not answer, or they take in entries too fast; see `moult servers`, and try again")
	}
	return nil
}

const (
	stateTimeout = 5 * time.Second // one server's answer: it writes all of its state
)

// nodeState is what a server tells the others of its state.
type nodeState struct {
	Index  uint64 `json:"index"`
	SHA256 string `json:"sha256"`
}

// State asks a server for a digest of its state.
func (c *serverClient) State(ctx context.Context, addr string) (nodeState, error) {
	ctx, cancel := context.WithTimeout(ctx, stateTimeout)
	defer cancel()
	var st nodeState
	if err := c.GetJSON(ctx, addr, pathState, &st); err != nil {
		return nodeState{}, fmt.Errorf("ask %s for its state: %w", addr, err)
	}
	return st, nil
}
