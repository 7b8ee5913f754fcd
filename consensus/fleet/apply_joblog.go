package fleet

import "fmt"

// jobLog adds lines to one job's log.
type jobLog struct {
	*tx
	row jobRow
}

func (g *jobLog) put(l LogLine) {
	g.row.LineCount++
	l.Seq = g.row.LineCount
	g.row.LogBytes += lineCost(l)
	g.added.logBytes += lineCost(l)
	g.tx.put(tableJobLines, lineRow{JobID: g.row.ID, LogLine: l})
}

// add stores a line, or, once the log is full, says so in its last one.
func (g *jobLog) add(l LogLine) {
	switch {
	case g.row.Truncated:
	case g.row.LineCount >= g.bounds.jobLines:
		g.row.Truncated = true
		g.put(LogLine{At: g.at, Stream: StreamCoordinator, Line: fmt.Sprintf("the log ends here: a job keeps %d lines", g.bounds.jobLines)})
	default:
		l.Line = ClipLine(l.Line)
		if l.At = l.At.UTC(); l.At.IsZero() || !validTime(l.At) {
			l.At = g.at
		}
		g.put(l)
	}
}

func applyJobLogAppended(t *tx, c JobLogAppended) *Error {
	row, ok := first[jobRow](t.Txn, tableJobs, "id", c.JobID)
	if !ok {
		return refuse(CodeJobNotFound, "no job has the id %q; `moult host show` lists a host's jobs", c.JobID)
	}
	fromHost := c.First > 0
	if fromHost && c.First+uint64(len(c.Lines)) < c.First {
		return refuse(CodeBadRequest, "first %d leaves no numbers for %d lines; number a job's lines from 1", c.First, len(c.Lines))
	}
	t.unaudited() // nobody decided it
	g := jobLog{tx: t, row: row}
	for i, l := range c.Lines {
		if fromHost {
			seq := c.First + uint64(i)
			if seq <= g.row.HostSeq {
				continue // stored before: the host did not hear of it
			}
			g.row.HostSeq = seq
		}
		l.Stream = knownStream(l.Stream, fromHost)
		g.add(l)
	}
	if g.row.HostSeq == row.HostSeq && g.row.LineCount == row.LineCount && g.row.Truncated == row.Truncated {
		return nil
	}
	t.put(tableJobs, g.row)
	t.touch("job-log:" + row.ID)
	return nil
}

// knownStream keeps a host from speaking as the coordinator.
func knownStream(stream string, fromHost bool) string {
	switch {
	case stream == StreamOutput:
		return StreamOutput
	case stream == StreamCoordinator && !fromHost:
		return StreamCoordinator
	default:
		return StreamAgent
	}
}
