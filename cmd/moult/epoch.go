package main

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"moult/consensus/fleet"
	"moult/mesh/identity"
)

// nextEpoch is above every epoch that a cluster was in. It is the time in seconds,
// unless that is too low: of two clusters restored from one backup the later one
// then has the higher epoch, though neither knows of the other.
func nextEpoch(current uint64, now time.Time) uint64 {
	return max(current+1, uint64(max(0, now.Unix())))
}

// beginEpoch makes the entry by which a cluster goes on with one server, with the
// statement of its CA, whose key is part of the state.
func beginEpoch(cluster fleet.Cluster, epoch uint64, server fleet.Host, reason string, now time.Time) (fleet.Entry, error) {
	ca, err := identity.LoadCA(cluster.CACert, cluster.CAKey)
	if err != nil {
		return fleet.Entry{}, fmt.Errorf("the cluster's CA: %w", err)
	}
	statement, err := ca.SignEpoch(identity.EpochStatement{Cluster: cluster.ID, Epoch: epoch})
	if err != nil {
		return fleet.Entry{}, err
	}
	return fleet.NewEntry(uuid.NewString(), "system", now, fleet.EpochBegun{
		Epoch: epoch, Statement: statement, Reason: reason, Server: server,
	})
}
