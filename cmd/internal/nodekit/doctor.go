package nodekit

import "time"

// SkewWarning is how far a clock may be off another host's before that is told:
// orders live for minutes, certificates for months.
const SkewWarning = 30 * time.Second
