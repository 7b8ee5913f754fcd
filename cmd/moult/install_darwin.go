package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"moult/cmd/internal/nodekit"
	"moult/mesh/identity"
)

const (
	configDir   = "/etc/moult"
	daemonDir   = "/Library/LaunchDaemons"
	usualBinary = "/usr/local/bin/moult"
)

func defaultPlaces(role, _ string) places {
	return places{binary: usualBinary, data: nodekit.DefaultDataDir, config: filepath.Join(configDir, role+".toml")}
}

func mayInstall() error {
	if os.Geteuid() != 0 {
		return errors.New("services are root's: run it with sudo, or look at what it would do with --dry-run")
	}
	return nil
}

func serviceDefinition(p servicePlan) (string, error) { return launchdPlist(p) }

func plistPath(role string) string { return filepath.Join(daemonDir, launchdLabel(role)+".plist") }

// installSteps are program, directories, configuration, property list, start.
func installSteps(p servicePlan) ([]installStep, error) {
	if p.user != "" {
		return nil, errors.New("--service-user: the service runs as root on macOS, as it replaces its own program; leave the flag out")
	}
	text, err := launchdPlist(p)
	if err != nil {
		return nil, err
	}
	if err := refuseOthersData(p); err != nil {
		return nil, err
	}
	changed := false // whether a running service has to be started anew
	noting := func(s installStep) installStep { return s.noting(&changed) }
	steps := []installStep{
		noting(copyBinaryStep(p.self, p.binary)),
		rootDirStep(filepath.Dir(p.config), 0o755), rootDirStep(p.data, 0o700),
	}
	for name, key := range p.keys {
		steps = append(steps, noting(fileStep(filepath.Join(filepath.Dir(p.config), name), key, 0o644)))
	}
	steps = append(steps, noting(configStep(p.config, exampleConfig(p.role, nil), p.settings, 0o644)))
	if p.token != "" {
		steps = append(steps, rootOnceStep(p, "join token", nodekit.JoinTokenFile, p.token+"\n"))
	}
	if p.found {
		steps = append(steps, rootOnceStep(p, "order to make a cluster", nodekit.BootstrapOnceFile, ""))
	}
	steps = append(steps, noting(fileStep(plistPath(p.role), []byte(text), 0o644)))
	if p.start {
		steps = append(steps, loadStep(p.role, &changed))
	}
	return steps, nil
}

func rootDirStep(path string, mode fs.FileMode) installStep {
	return installStep{
		what: fmt.Sprintf("directory %s, mode %04o", path, mode),
		done: func() (bool, error) {
			st, err := os.Stat(path)
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			return err == nil && st.IsDir() && st.Mode().Perm() == mode, err
		},
		do: func(context.Context) error {
			return errors.Join(os.MkdirAll(path, mode), os.Chmod(path, mode))
		},
	}
}

// rootOnceStep leaves something for the service's first start, which removes it.
func rootOnceStep(p servicePlan, what, name, content string) installStep {
	path := filepath.Join(p.data, name)
	return installStep{
		what: what + " " + path,
		done: func() (bool, error) {
			return identity.HasEnrolment(filepath.Join(p.data, "identity")), nil
		},
		do: func(context.Context) error { return nodekit.WriteFileAtomic(path, []byte(content), 0o600) },
	}
}

func isLoaded(role string) bool {
	return exec.Command("launchctl", "print", "system/"+launchdLabel(role)).Run() == nil
}

// loadStep has launchd start the service, anew when something has changed.
func loadStep(role string, changed *bool) installStep {
	return installStep{
		what: "start " + launchdLabel(role),
		done: func() (bool, error) { return isLoaded(role) && !*changed, nil },
		do: func(ctx context.Context) error {
			if isLoaded(role) {
				if err := launchctl(ctx, "bootout", "system/"+launchdLabel(role)); err != nil {
					return err
				}
			}
			if err := launchctl(ctx, "enable", "system/"+launchdLabel(role)); err != nil {
				return err
			}
			return launchctl(ctx, "bootstrap", "system", plistPath(role))
		},
	}
}

func launchctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "launchctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("launchctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// removalSteps take away what installSteps made.
func removalSteps(p servicePlan) ([]installStep, error) {
	steps := []installStep{
		{
			what: "stop " + launchdLabel(p.role),
			done: func() (bool, error) { return !isLoaded(p.role), nil },
			do: func(ctx context.Context) error {
				return launchctl(ctx, "bootout", "system/"+launchdLabel(p.role))
			},
		},
		removeStep(plistPath(p.role)),
	}
	if !p.purge {
		return steps, nil
	}
	if err := refuseToPurge(p.data); err != nil {
		return nil, err
	}
	steps = append(steps, removeStep(p.data), removeStep(p.config), removeStep(launchdLog(p.role)), removeEmptyStep(filepath.Dir(p.config)))
	other := roleServer
	if p.role == roleServer {
		other = roleAgent
	}
	if _, err := os.Lstat(plistPath(other)); errors.Is(err, fs.ErrNotExist) && p.binary == usualBinary {
		steps = append(steps, removeStep(usualBinary), removeStep(usualBinary+".old"))
	}
	return steps, nil
}
