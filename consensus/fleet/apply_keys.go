package fleet

import (
	"fmt"
	"slices"
)

func applyReleaseKeysChanged(t *tx, c ReleaseKeysChanged) *Error {
	m := t.view().meta()
	switch {
	case m.Cluster.ID == "":
		return refuse(CodeConflict, "there is no cluster yet; its first entry names the release keys")
	case c.Number != m.Cluster.KeysNumber+1:
		return refuse(CodeConflict, "number is %d; the keys were changed %d times, so the next statement is number %d: look at `moult key list` and make it again", c.Number, m.Cluster.KeysNumber, m.Cluster.KeysNumber+1)
	case len(m.Cluster.KeyStatements) >= MaxKeyStatements:
		return refuse(CodeLimitReached, "there are %d key statements, and no more fit; make a new cluster", MaxKeyStatements)
	case len(c.Keys) == 0 || len(c.Keys) > MaxReleaseKeys:
		return refuse(CodeBadRequest, "keys has %d entries; give 1 to %d", len(c.Keys), MaxReleaseKeys)
	case c.Threshold < 1 || c.Threshold > len(c.Keys):
		return refuse(CodeBadRequest, "threshold is %d; give 1 to %d, the number of keys", c.Threshold, len(c.Keys))
	case len(c.Signed.Statement) == 0 || len(c.Signed.Statement) > MaxStatementBytes:
		return refuse(CodeBadRequest, "statement is %d bytes; give 1 to %d", len(c.Signed.Statement), MaxStatementBytes)
	case len(c.Signed.Signature) == 0 || len(c.Signed.Signature) > MaxSignatureBytes:
		return refuse(CodeBadRequest, "signature is %d bytes; give 1 to %d", len(c.Signed.Signature), MaxSignatureBytes)
	}
	for i, k := range c.Keys {
		if !validWord(k, MaxReleaseKeyBytes, "+/=") {
			return refuse(CodeBadRequest, "keys[%d] is not base64 of at most %d bytes; give the line of a minisign public key", i, MaxReleaseKeyBytes)
		}
	}
	m.Cluster.ReleaseKeys, m.Cluster.ReleaseThreshold, m.Cluster.KeysNumber = c.Keys, c.Threshold, c.Number
	// A copy: older views still hold the list as it was.
	m.Cluster.KeyStatements = append(slices.Clone(m.Cluster.KeyStatements), c.Signed)
	t.put(tableMeta, m)
	t.touch("cluster", "releases")
	t.audit(fmt.Sprintf("release keys %d", c.Number), fmt.Sprintf("%d of %d keys have to sign", c.Threshold, len(c.Keys)))
	return nil
}
