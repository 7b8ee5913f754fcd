package nodekit

import (
	"moult/mesh/identity"
)

// CasNotice is the body of topicCAs: how the CA was changed, which proves itself, and
// who signs certificates by now, which is a hint to renew.
type CasNotice struct {
	Chain  identity.CAChain `json:"chain"`
	Signer string           `json:"signer"` // sha256 of the CA
}
