package nodekit

import (
	"time"
)

const (
	SkewWarning = 30 * time.Second // orders live for minutes, certificates for months
)
