package nodekit

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater"
	"moult/updater/release"
)

const (
	// KeysTimeout bounds one message.
	KeysTimeout = 5 * time.Second // one message
	// KeysPerMessage is how many statements a message brings at most.
	KeysPerMessage = 16 // statements
)

// KeysMessage is the body of topicReleaseKeys, oldest statement first.
type KeysMessage struct {
	Statements []release.SignedStatement `json:"statements"`
}

// KeysFollowed is the body of topicKeysFollowed.
type KeysFollowed struct {
	Number uint64 `json:"number"`
}

// keyFollower returns an agent's side: it takes what servers send, and says which
// statement it follows now.
func keyFollower(up *updater.Updater, node *mesh.Node, logger *slog.Logger) func(identity.Identity, []byte) {
	return func(from identity.Identity, payload []byte) {
		var m KeysMessage
		if from.Role != identity.RoleServer || json.Unmarshal(payload, &m) != nil || len(m.Statements) > KeysPerMessage {
			return
		}
		number, err := up.TakeKeyStatements(m.Statements)
		if err != nil {
			logger.Warn("key statements are not followed", "from", from.HostID, "follows", number, "error", err)
		}
		answer, err := json.Marshal(KeysFollowed{number})
		if err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), KeysTimeout)
		defer cancel()
		if err := node.Send(ctx, from.HostID, TopicKeysFollowed, answer); err != nil {
			logger.Debug("say which key statement is followed", "server", from.HostID, "error", err)
		}
	}
}
