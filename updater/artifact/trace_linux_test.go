package artifact

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// timeline is when the chunks of one host came in, and from whom: it tells where a
// distribution's time goes.
type timeline struct {
	mu    sync.Mutex
	begun time.Time
	came  []arrival
}

type arrival struct {
	at   time.Duration // since the beginning
	done int64
	from string // host id
}

func (l *timeline) progress(done int64, from Peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.came = append(l.came, arrival{time.Since(l.begun), done, from.HostID})
}

// String is a line: when the first bytes, a quarter, a half, three quarters and all
// were here, the longest pause and when it began, and the bytes by sender.
func (l *timeline) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.came) == 0 {
		return "nothing came"
	}
	last := l.came[len(l.came)-1]
	var b strings.Builder
	fmt.Fprintf(&b, "first %.2f", l.came[0].at.Seconds())
	quarter := int64(1)
	var gap, gapAt, before time.Duration
	bytes, order := map[string]int64{}, []string{}
	var had int64
	for _, a := range l.came {
		for ; quarter < 4 && a.done*4 >= quarter*last.done; quarter++ {
			fmt.Fprintf(&b, " %d/4 %.2f", quarter, a.at.Seconds())
		}
		if a.at-before > gap && before > 0 {
			gap, gapAt = a.at-before, before
		}
		if bytes[a.from] == 0 {
			order = append(order, a.from)
		}
		bytes[a.from] += a.done - had
		had, before = a.done, a.at
	}
	fmt.Fprintf(&b, " all %.2f; pause %.2f at %.2f;", last.at.Seconds(), gap.Seconds(), gapAt.Seconds())
	for _, from := range order {
		fmt.Fprintf(&b, " %s %d %%", from, bytes[from]*100/last.done)
	}
	return b.String()
}
