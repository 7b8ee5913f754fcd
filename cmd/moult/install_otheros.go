//go:build !linux && !windows && !darwin

package main

import (
	"errors"

	"moult/cmd/internal/nodekit"
)

// errNoInstall is for operating systems whose services are not known here.
var errNoInstall = errors.New("moult install knows no service manager on this operating system; have yours run `moult agent --config FILE` or `moult server --config FILE`")

func defaultPlaces(role, self string) places {
	return places{binary: self, data: nodekit.DefaultDataDir, config: "/etc/moult/" + role + ".toml"}
}

func mayInstall() error { return nil }

func serviceDefinition(servicePlan) (string, error)   { return "", errNoInstall }
func installSteps(servicePlan) ([]installStep, error) { return nil, errNoInstall }
func removalSteps(servicePlan) ([]installStep, error) { return nil, errNoInstall }
