package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"moult/cmd/internal/nodekit"
	"moult/mesh/identity"
)

// serviceUser is the account of both roles. Neither needs root: the ports are above
// 1024, and what is updated lies in the data directory.
const serviceUser = "moult"

const (
	configDir   = "/etc/moult"
	unitDir     = "/etc/systemd/system"
	usualBinary = "/usr/local/bin/moult"
)

// vendorUnitDirs are where packages keep their units.
var vendorUnitDirs = []string{"/usr/lib/systemd/system", "/lib/systemd/system"}

func defaultPlaces(role, self string) places {
	at := places{binary: usualBinary, data: nodekit.DefaultDataDir, config: filepath.Join(configDir, role+".toml"), user: serviceUser}
	if binary, account, ok := readUnit(filepath.Join(unitDir, unitName(role))); ok {
		at.binary, at.user = binary, account // what was chosen when it was installed
	}
	if inSystemPlace(self) {
		at.binary = self
	}
	return at
}

// readUnit is what a unit that installing wrote says of program and account.
func readUnit(path string) (binary, account string, ok bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", "", false
	}
	account = "root"
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "ExecStart":
			if quoted, isQuoted := strings.CutPrefix(value, `"`); isQuoted {
				binary, _, _ = strings.Cut(quoted, `"`)
			} else {
				binary, _, _ = strings.Cut(value, " ")
			}
		case "User":
			account = value
		}
	}
	return binary, account, binary != ""
}

// inSystemPlace tells whether a service may run a program from where it is: root
// alone can put another one there, and it is not hidden from services (ProtectHome).
func inSystemPlace(path string) bool {
	for _, dir := range []string{"/usr/", "/opt/", "/bin/", "/sbin/"} {
		if strings.HasPrefix(path, dir) {
			for p := path; p != "/"; p = filepath.Dir(p) {
				if nodekit.RefuseForeign(p, 0, "binary", "") != nil {
					return false
				}
			}
			return true
		}
	}
	return false
}

func mayInstall() error {
	if os.Geteuid() != 0 {
		return errors.New("services are root's: run it with sudo, or look at what it would do with --dry-run")
	}
	return nil
}

func serviceDefinition(p servicePlan) (string, error) { return systemdUnit(p) }

// installSteps are account, directories, configuration, unit, start.
func installSteps(p servicePlan) ([]installStep, error) {
	text, err := systemdUnit(p)
	if err != nil {
		return nil, err
	}
	if err := refuseOthersData(p); err != nil {
		return nil, err
	}
	if p.start && !bootedWithSystemd() {
		return nil, errors.New("this machine was not booted with systemd, so nothing can be started; prepare it with --no-start")
	}
	changed := false // whether a running service has to be started anew
	noting := func(s installStep) installStep { return s.noting(&changed) }
	steps := []installStep{
		accountStep(p.user, p.data),
		noting(copyBinaryStep(p.self, p.binary)),
		directoryStep(filepath.Dir(p.config), 0o755, "root"),
		directoryStep(p.data, 0o700, p.user),
	}
	for name, key := range p.keys {
		steps = append(steps, noting(fileStep(filepath.Join(filepath.Dir(p.config), name), key, 0o644)))
	}
	steps = append(steps, noting(configStep(p.config, exampleConfig(p.role, nil), p.settings, 0o644)))
	if p.token != "" {
		steps = append(steps, onceStep(p, "join token", nodekit.JoinTokenFile, p.token+"\n"))
	}
	if p.found {
		steps = append(steps, onceStep(p, "order to make a cluster", nodekit.BootstrapOnceFile, ""))
	}
	steps = append(steps, noting(unitStep(p, text)))
	if p.start {
		steps = append(steps, enableStep(p.role), startStep(p, &changed))
	}
	return steps, nil
}

func bootedWithSystemd() bool {
	st, err := os.Lstat("/run/systemd/system")
	return err == nil && st.IsDir()
}

// accountStep makes a system account that nobody can log in to.
func accountStep(name, home string) installStep {
	return installStep{
		what: "account " + name,
		done: func() (bool, error) {
			_, err := user.Lookup(name)
			var unknown user.UnknownUserError
			if errors.As(err, &unknown) {
				return false, nil
			}
			return err == nil, err
		},
		do: func(ctx context.Context) error {
			if path, err := exec.LookPath("systemd-sysusers"); err == nil {
				return runQuietly(ctx, path, "--inline", fmt.Sprintf("u %s - %q %s", name, "moult", home))
			}
			return runQuietly(ctx, "useradd", "--system", "--user-group", "--home-dir", home, "--no-create-home", "--shell", "/usr/sbin/nologin", name)
		},
	}
}

func directoryStep(path string, mode fs.FileMode, owner string) installStep {
	return installStep{
		what: fmt.Sprintf("directory %s, %s's, mode %04o", path, owner, mode),
		done: func() (bool, error) {
			st, err := os.Stat(path)
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			if !st.IsDir() {
				return false, errors.New("it is a file; move it away")
			}
			uid, _, err := idsOf(owner)
			var unknown user.UnknownUserError
			if errors.As(err, &unknown) { // a dry run did not make it
				return false, nil
			}
			return err == nil && st.Mode().Perm() == mode && nodekit.OwnerOf(st) == uid, err
		},
		do: func(context.Context) error {
			uid, gid, err := idsOf(owner)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(path, mode); err != nil {
				return err
			}
			return errors.Join(os.Lchown(path, uid, gid), os.Chmod(path, mode))
		},
	}
}

func idsOf(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, err
	}
	uid, err = strconv.Atoi(u.Uid)
	if err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, err
}

// onceStep leaves what is needed for the first start alone where the service takes
// it from, and removes it: the configuration is for good, and on an emptied disk
// would make a second cluster.
func onceStep(p servicePlan, what, name, content string) installStep {
	path := filepath.Join(p.data, name)
	return installStep{
		what: what + " " + path,
		done: func() (bool, error) {
			return identity.HasEnrolment(filepath.Join(p.data, "identity")), nil
		},
		do: func(context.Context) error {
			uid, gid, err := idsOf(p.user)
			if err != nil {
				return err
			}
			if err := nodekit.WriteFileAtomic(path, []byte(content), 0o600); err != nil {
				return err
			}
			return os.Lchown(path, uid, gid)
		},
	}
}

// unitStep writes the unit, unless the package has the very same.
func unitStep(p servicePlan, text string) installStep {
	name := unitName(p.role)
	path := filepath.Join(unitDir, name)
	if vendor := vendorUnit(p.role); vendor != "" {
		if have, err := os.ReadFile(vendor); err == nil && string(have) == text {
			return installStep{what: "unit " + vendor + " of the package", done: func() (bool, error) {
				_, err := os.Lstat(path)
				return errors.Is(err, fs.ErrNotExist), nil
			}, do: func(ctx context.Context) error {
				if err := os.Remove(path); err != nil {
					return err
				}
				return reloadSystemd(ctx)
			}}
		}
	}
	s := fileStep(path, []byte(text), 0o644)
	write := s.do
	s.do = func(ctx context.Context) error {
		if err := os.MkdirAll(unitDir, 0o755); err != nil {
			return err
		}
		if err := write(ctx); err != nil {
			return err
		}
		return reloadSystemd(ctx)
	}
	return s
}

// vendorUnit is a package's unit of a role, "" when there is none.
func vendorUnit(role string) string {
	for _, dir := range vendorUnitDirs {
		path := filepath.Join(dir, unitName(role))
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

func reloadSystemd(ctx context.Context) error {
	if !bootedWithSystemd() {
		return nil
	}
	return runQuietly(ctx, "systemctl", "daemon-reload")
}

func enableStep(role string) installStep {
	return installStep{
		what: "enable " + unitName(role),
		done: func() (bool, error) { return systemctlSays("is-enabled", role) == "enabled", nil },
		do:   func(ctx context.Context) error { return runQuietly(ctx, "systemctl", "enable", unitName(role)) },
	}
}

// startStep starts the service and waits until it says that it is up.
func startStep(p servicePlan, changed *bool) installStep {
	return installStep{
		what: "start " + unitName(p.role),
		done: func() (bool, error) { return systemctlSays("is-active", p.role) == "active" && !*changed, nil },
		do: func(ctx context.Context) error {
			err := runQuietly(ctx, "systemctl", "restart", unitName(p.role))
			if err == nil {
				return nil
			}
			logged, _ := exec.CommandContext(ctx, "journalctl", "--no-pager", "-o", "cat", "-n", "5", "-u", unitName(p.role)).CombinedOutput()
			return fmt.Errorf("%w; its last words:\n%s\nwhen that is mended: systemctl restart %s", err, strings.TrimSpace(string(logged)), unitName(p.role))
		},
	}
}

// systemctlSays is the one word that systemctl answers: "active", "enabled".
func systemctlSays(verb, role string) string {
	out, _ := exec.Command("systemctl", verb, unitName(role)).Output() // its exit code says the same
	return strings.TrimSpace(string(out))
}

// runQuietly runs a command whose output is shown only when it fails.
func runQuietly(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(string(out))
	if text == "" {
		text = "it said nothing"
	}
	return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, text)
}
