package updater

import "time"

// Service is told how the supervised agent is, by a supervisor that runs under a
// service manager. Its methods do not block.
type Service interface {
	// Ready says that the agent serves. It may be said more than once.
	Ready()
	// Well says that all is as it should be, and will be said again within d: what is
	// under way is bounded by it. When it is not said again, something hangs.
	Well(d time.Duration)
	// Status tells people what goes on: one line of at most 200 bytes.
	Status(line string)
}

// noService is told nothing.
type noService struct{}

func (noService) Ready()             {}
func (noService) Well(time.Duration) {}
func (noService) Status(string)      {}

// What a supervisor expects of its agent.
const (
	// SignOfLife is how often a supervised agent says that it is alive.
	SignOfLife = 5 * time.Second
	// silence is how long an agent may say nothing: it may have to wait for the disk.
	silence = 4 * SignOfLife
	// startPatience is how long it may take from its start to its first word.
	startPatience = time.Minute
	// slack is what a step that is bounded may take longer, on a machine that is busy.
	slack = 20 * time.Second
	// maxStatus bounds a status, in bytes.
	maxStatus = 200
)

// heard passes on what a child says of itself.
func (s *supervisor) heard(m message) {
	switch m.Event {
	case eventServing:
		s.Service.Ready()
	case eventAlive:
		s.Service.Well(silence)
		s.status(m.Status)
	case eventRestarting:
		s.workAhead()
	}
}

// status tells a line, made fit: what a child says must not pass for more lines of
// the service manager's protocol.
func (s *supervisor) status(line string) {
	line = clean([]byte(line))
	if len(line) > maxStatus {
		line = clean([]byte(line[:maxStatus]))
	}
	s.Service.Status(line)
}
