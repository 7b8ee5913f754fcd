package nodekit

import (
	"errors"
	"net/url"

	"moult/webui"
)

// Show completes what is told of a server by what it answered.
func (a NodeStatus) Show(st webui.ServerStatus, err error) webui.ServerStatus {
	st.Version, st.AppliedIndex, st.Healthy, st.Problems = a.Version, a.AppliedIndex, err == nil && a.Ready, a.Problems
	switch {
	case err != nil:
		if wrapped := new(url.Error); errors.As(err, &wrapped) {
			err = wrapped.Err // whom it asked is told beside
		}
		st.Problems = Judge(ServerFacts{Silent: err})
	case !a.Ready && len(a.Problems) == 0: // an older server, which does not tell why
		st.Problems = []webui.Problem{{Code: ProblemNoLeader, Message: "it is not ready", Next: "its /readyz tells why", Failing: true}}
	}
	return st
}
