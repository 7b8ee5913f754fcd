// Package nodekit is what a node is put together from: the whole of an agent
// (RunAgent), and the parts that a server has in common with it: options, data
// directory, identity, addresses, seeds, artifacts, the updater, what follows
// the cluster's trust, the own node's API.
//
// Two callers: cmd/moult, whose command `agent` is RunAgent and whose server uses
// the parts, and cmd/agent, by which other programs run the same agent. There is
// one wiring of it, here. The package sees mesh and updater and nothing of
// consensus but the replicated state's nouns, so that a program with an agent in
// it holds no server.
package nodekit
