package main

import (
	"time"
)

// Times of a certificate's renewal. It is renewed at two thirds of its lifetime,
// or up to a twelfth of it earlier, so that hosts that joined together don't ask
// together.
const (
	defaultCertificateLifetime = 365 * 24 * time.Hour
	minCertificateLifetime     = 10 * time.Second
	maxCertificateLifetime     = 10 * 365 * 24 * time.Hour
)
