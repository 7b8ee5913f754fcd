package main

import (
	"slices"

	"moult/cmd/internal/nodekit"
	"moult/webui"
)

// problemCodes says of each code whether it keeps a server from serving.
var problemCodes = map[string]bool{
	nodekit.ProblemStopping: true, nodekit.ProblemDiskStalled: true, nodekit.ProblemDiskFailed: true, nodekit.ProblemNotMember: true, nodekit.ProblemRemoved: true,
	nodekit.ProblemNoQuorum: true, nodekit.ProblemNoLeader: true, nodekit.ProblemBehind: true, nodekit.ProblemUnfit: true, nodekit.ProblemSilent: true,
	nodekit.ProblemDiskLow: false, nodekit.ProblemMesh: false, nodekit.ProblemClock: false, nodekit.ProblemCertificate: false,
}

// isFailing tells whether any of the problems keeps a server from serving.
func isFailing(problems []webui.Problem) bool {
	return slices.ContainsFunc(problems, func(p webui.Problem) bool { return p.Failing })
}
