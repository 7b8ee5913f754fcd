package updater

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"moult/updater/order"
	"moult/updater/release"
)

// ErrForkedKeys: there are two statements of the release keys with one number. The
// host goes on by the one that it followed.
var ErrForkedKeys = errors.New("there are two key statements with one number")

// KeyFork is what a host has seen of two statements of the release keys with one
// number: somebody who has release keys has signed twice.
type KeyFork struct {
	Number  uint64 `json:"number"`
	Follows string `json:"follows,omitempty"` // sha256 of the statement that it follows; "": it got these keys when it joined
	Refused string `json:"refused"`           // that of the other one
}

// followedStatement is what a host needs to tell another statement of the number of
// one that it followed.
type followedStatement struct {
	Number uint64         `json:"number"`
	SHA256 string         `json:"sha256"`
	Before release.KeySet `json:"before"` // what verified it
}

// rememberedStatements is how many followed statements a host remembers: as many as
// an order brings along.
const rememberedStatements = order.MaxKeyStatements

func statementHash(s release.SignedStatement) string {
	sum := sha256.Sum256(s.Statement)
	return hex.EncodeToString(sum[:])
}

// follow advances the pins as far as the statements lead. It returns ErrForkedKeys,
// wrapped, when one of them is another one than that of its number which was
// followed; those behind it are followed all the same.
func (p pinnedKeys) follow(list []release.SignedStatement) (pinnedKeys, error) {
	var forked error
	for _, s := range list {
		next, err := p.Advance(p.Cluster, s)
		switch {
		case errors.Is(err, release.ErrStatementKnown):
			fork, found := p.forkedBy(s)
			if !found {
				continue
			}
			p.Fork = &fork
			forked = fmt.Errorf("%w: this host follows the other statement %d; find out who signed this one, with: moult key list", ErrForkedKeys, fork.Number)
		case err != nil:
			return p, err
		default:
			p.Followed = append(p.Followed[:len(p.Followed):len(p.Followed)], followedStatement{next.Number, statementHash(s), p.KeySet})
			p.Followed = p.Followed[max(0, len(p.Followed)-rememberedStatements):]
			p.KeySet = next
		}
	}
	return p, forked
}

// forkedBy tells whether a statement whose number is not new is another one than
// that which was followed, and signed like it. Of the keys that a host got when it
// joined it knows no signer before: there other keys suffice. What lies further back
// than is remembered is passed over.
func (p pinnedKeys) forkedBy(s release.SignedStatement) (fork KeyFork, found bool) {
	said, err := release.ParseStatement(s.Statement)
	if err != nil || said.Cluster != p.Cluster {
		return fork, false
	}
	fork = KeyFork{Number: said.Number, Refused: statementHash(s)}
	for _, f := range p.Followed {
		if f.Number != said.Number {
			continue
		}
		fork.Follows = f.SHA256
		if _, err := f.Before.Advance(p.Cluster, s); err != nil {
			return fork, false // signed by nobody who could
		}
		return fork, f.SHA256 != fork.Refused
	}
	return fork, len(p.Followed) == 0 && said.Number == p.Number && !said.Set().Equal(p.KeySet)
}
