package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"

	"moult/cmd/internal/nodekit"
	"moult/mesh/identity"
	"moult/updater/install"
)

// Where the service manager keeps event sources, and how long it may take for what
// it is asked to do.
const (
	eventSources        = `SYSTEM\CurrentControlSet\Services\EventLog\Application`
	serviceStartTimeout = 30 * time.Second
	servicePollInterval = 100 * time.Millisecond
)

// recoveryActions: a service that fails is started again, for ever; its count of failures
// begins anew after a day.
var recoveryActions = []mgr.RecoveryAction{
	{Type: mgr.ServiceRestart, Delay: time.Second},
	{Type: mgr.ServiceRestart, Delay: 5 * time.Second},
	{Type: mgr.ServiceRestart, Delay: 30 * time.Second},
}

const recoveryReset = 24 * time.Hour

func defaultPlaces(role, _ string) places {
	programs, err := windows.KnownFolderPath(windows.FOLDERID_ProgramFiles, 0)
	if err != nil {
		programs = `C:\Program Files`
	}
	return places{
		binary: filepath.Join(programs, "moult", "moult.exe"),
		data:   nodekit.DefaultDataDir, config: filepath.Join(nodekit.ProgramData(), role+".toml"),
	}
}

func mayInstall() error {
	if !windows.GetCurrentProcessToken().IsElevated() {
		return errors.New("services are the administrators': run it in a prompt that was opened with \"Run as administrator\", or look at what it would do with --dry-run")
	}
	return nil
}

// checkPlan says what a service cannot be here.
func checkPlan(p servicePlan) error {
	switch {
	case p.role != roleAgent:
		return errors.New("on Windows the agent alone is made a service; run servers on Linux (docs/windows.md says what a server can do here)")
	case p.user != "":
		return errors.New("--service-user: the service runs as LocalSystem on Windows, as it replaces its own program; leave the flag out")
	}
	for what, path := range map[string]string{"binary": p.binary, "config-file": p.config, "data": p.data} {
		if strings.ContainsAny(path, "\"\n") || filepath.VolumeName(path) == "" {
			return fmt.Errorf("--%s %q: a service's path begins with a drive and has no quotes in it", what, path)
		}
	}
	return nil
}

// serviceCommandLine is what the service manager starts.
func serviceCommandLine(p servicePlan) []string {
	return []string{p.binary, p.role, "--config", p.config}
}

func serviceConfig(p servicePlan) mgr.Config {
	line := serviceCommandLine(p)
	for i, part := range line {
		line[i] = windows.EscapeArg(part)
	}
	return mgr.Config{
		ServiceType: windows.SERVICE_WIN32_OWN_PROCESS, ErrorControl: mgr.ErrorNormal, StartType: mgr.StartAutomatic,
		BinaryPathName: strings.Join(line, " "), ServiceStartName: "LocalSystem",
		DisplayName: "moult " + p.role, Description: "Shows the other hosts what this one runs, and updates it",
	}
}

// serviceDefinition says in the words of sc.exe what the service manager is told.
func serviceDefinition(p servicePlan) (string, error) {
	if err := checkPlan(p); err != nil {
		return "", err
	}
	c, name := serviceConfig(p), serviceName(p.role)
	quoted := strings.ReplaceAll(c.BinaryPathName, `"`, `\"`)
	return fmt.Sprintf(`sc.exe create %s type= own start= auto obj= LocalSystem DisplayName= "%s" binPath= "%s"
sc.exe description %s "%s"
sc.exe failure %s reset= %d actions= restart/%d/restart/%d/restart/%d
sc.exe failureflag %s 1
`, name, c.DisplayName, quoted, name, c.Description, name, int(recoveryReset.Seconds()),
		recoveryActions[0].Delay.Milliseconds(), recoveryActions[1].Delay.Milliseconds(), recoveryActions[2].Delay.Milliseconds(), name), nil
}

// installSteps are program, directories, configuration, service, event source, start.
func installSteps(p servicePlan) ([]installStep, error) {
	if err := errors.Join(checkPlan(p), refuseOthersData(p)); err != nil {
		return nil, err
	}
	changed := false // whether a running service has to be started anew
	noting := func(s installStep) installStep { return s.noting(&changed) }
	steps := []installStep{noting(programStep(p)), privateDirStep(filepath.Dir(p.config)), privateDirStep(p.data)}
	for name, key := range p.keys {
		steps = append(steps, noting(fileStep(filepath.Join(filepath.Dir(p.config), name), key, 0o600)))
	}
	steps = append(steps, noting(configStep(p.config, exampleConfig(p.role, nil), p.settings, 0o600)))
	if p.token != "" {
		steps = append(steps, joinTokenStep(p))
	}
	steps = append(steps, noting(serviceStep(p)), eventSourceStep(serviceName(p.role)))
	if p.start {
		steps = append(steps, startServiceStep(p, &changed))
	}
	return steps, nil
}

// programStep copies this program to where the service runs it from, which only
// administrators may write to. A program that runs there is set aside.
func programStep(p servicePlan) installStep {
	s := copyBinaryStep(p.self, p.binary)
	isThere := s.done
	s.done = func() (bool, error) {
		if _, err := os.Stat(p.binary); err == nil && nodekit.RefuseForeignBinary(p.binary) != nil {
			return false, nil // do says why
		}
		return isThere()
	}
	s.do = func(context.Context) error {
		if err := nodekit.RefuseForeignParents(p.binary); err != nil { // before anything is made there
			return err
		}
		if err := os.MkdirAll(filepath.Dir(p.binary), 0o755); err != nil {
			return err
		}
		if err := nodekit.RefuseForeignBinary(p.binary); err != nil {
			return err
		}
		if p.self == p.binary {
			return nil
		}
		if _, err := os.Stat(p.binary); errors.Is(err, os.ErrNotExist) {
			return copyExecutable(p.self, p.binary)
		}
		digest, err := nodekit.FileDigest(p.self)
		if err != nil {
			return err
		}
		return install.Swap(install.SwapRequest{Staged: p.self, Digest: digest, Installed: p.binary})
	}
	return s
}

// privateDirStep makes a directory of administrators and the system.
func privateDirStep(path string) installStep {
	return installStep{
		what: fmt.Sprintf("directory %s, for administrators and the system alone", path),
		done: func() (bool, error) {
			if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
				return false, nil
			}
			who, err := nodekit.ForeignRights(path, nodekit.AnyRight)
			return who == "", err
		},
		do: func(context.Context) error {
			if err := nodekit.MakeDataDir(path); err != nil {
				return err
			}
			return nodekit.RefuseForeignPath(path)
		},
	}
}

// joinTokenStep leaves the join token where the service takes it from, and removes
// it after joining.
func joinTokenStep(p servicePlan) installStep {
	path := filepath.Join(p.data, nodekit.JoinTokenFile)
	return installStep{
		what: "join token " + path,
		done: func() (bool, error) {
			return identity.HasEnrolment(filepath.Join(p.data, "identity")), nil
		},
		do: func(context.Context) error { return nodekit.WriteFileAtomic(path, []byte(p.token+"\n"), 0o600) },
	}
}

// withManager calls f with the service manager.
func withManager(f func(*mgr.Mgr) error) error {
	m, err := mgr.Connect()
	if err != nil {
		return fmt.Errorf("reach the service manager: %w", err)
	}
	defer func() { _ = m.Disconnect() }()
	return f(m)
}

// withService calls f with a service; errNoService wraps what it returns when there
// is none.
func withService(name string, f func(*mgr.Service) error) error {
	return withManager(func(m *mgr.Mgr) error {
		s, err := m.OpenService(name)
		if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
			return fmt.Errorf("%w: %s", errNoService, name)
		}
		if err != nil {
			return fmt.Errorf("open service %s: %w", name, err)
		}
		defer func() { _ = s.Close() }()
		return f(s)
	})
}

var errNoService = errors.New("there is no such service")

func serviceStep(p servicePlan) installStep {
	name, want := serviceName(p.role), serviceConfig(p)
	return installStep{
		what: "service " + name,
		done: func() (bool, error) {
			same := false
			err := withService(name, func(s *mgr.Service) error {
				line, startType, err := registered(s)
				same = line == want.BinaryPathName && startType == want.StartType
				return err
			})
			if errors.Is(err, errNoService) {
				return false, nil
			}
			return same, err
		},
		do: func(context.Context) error {
			err := withService(name, func(s *mgr.Service) error {
				if err := register(s, want); err != nil {
					return err
				}
				return setRecovery(s)
			})
			if !errors.Is(err, errNoService) {
				return err
			}
			return withManager(func(m *mgr.Mgr) error {
				line := serviceCommandLine(p)
				s, err := m.CreateService(name, line[0], want, line[1:]...)
				if err != nil {
					return err
				}
				defer func() { _ = s.Close() }()
				return setRecovery(s)
			})
		},
	}
}

// registered is what the service manager starts, and when. mgr.Service's Config
// asks for more, which Wine does not know.
func registered(s *mgr.Service) (line string, startType uint32, err error) {
	// 8 KiB is the most that there is, by the documentation of QueryServiceConfig.
	buffer := make([]byte, 8<<10)
	c := (*windows.QUERY_SERVICE_CONFIG)(unsafe.Pointer(&buffer[0]))
	var need uint32
	if err := windows.QueryServiceConfig(s.Handle, c, uint32(len(buffer)), &need); err != nil {
		return "", 0, fmt.Errorf("read the definition of service %s: %w", s.Name, err)
	}
	return windows.UTF16PtrToString(c.BinaryPathName), c.StartType, nil
}

func register(s *mgr.Service, c mgr.Config) error {
	line, err := windows.UTF16PtrFromString(c.BinaryPathName)
	if err != nil {
		return err
	}
	account, err := windows.UTF16PtrFromString(c.ServiceStartName)
	if err != nil {
		return err
	}
	err = windows.ChangeServiceConfig(s.Handle, c.ServiceType, c.StartType, c.ErrorControl, line, nil, nil, nil, account, nil, nil)
	if err != nil {
		return fmt.Errorf("change service %s: %w", s.Name, err)
	}
	return nil
}

// setRecovery has the service manager start the service again when it fails, also
// when it ends by itself with an error.
func setRecovery(s *mgr.Service) error {
	if err := s.SetRecoveryActions(recoveryActions, uint32(recoveryReset.Seconds())); err != nil {
		return fmt.Errorf("set what is done when it fails: %w", err)
	}
	// Wine does not know this level, nor what follows from it.
	if err := s.SetRecoveryActionsOnNonCrashFailures(true); err != nil && !errors.Is(err, windows.ERROR_INVALID_LEVEL) {
		return fmt.Errorf("set that it is started again after errors: %w", err)
	}
	return nil
}

// eventSourceStep makes the event log know the service; the messages are those of
// EventCreate.exe, which every Windows has.
func eventSourceStep(name string) installStep {
	return installStep{
		what: "event source " + name + " in the log Application",
		done: func() (bool, error) {
			k, err := registry.OpenKey(registry.LOCAL_MACHINE, eventSources+`\`+name, registry.QUERY_VALUE)
			if errors.Is(err, registry.ErrNotExist) {
				return false, nil
			}
			if err == nil {
				_ = k.Close()
			}
			return err == nil, err
		},
		do: func(context.Context) error {
			return eventlog.InstallAsEventCreate(name, eventlog.Error|eventlog.Warning|eventlog.Info)
		},
	}
}

// startServiceStep starts the service, again if something has changed, and looks
// whether it stays up for a moment.
func startServiceStep(p servicePlan, changed *bool) installStep {
	name := serviceName(p.role)
	return installStep{
		what: "start " + name,
		done: func() (bool, error) {
			running := false
			err := withService(name, func(s *mgr.Service) error {
				st, err := s.Query()
				running = st.State == svc.Running
				return err
			})
			if errors.Is(err, errNoService) { // a dry run did not make it
				return false, nil
			}
			return running && !*changed, err
		},
		do: func(ctx context.Context) error {
			err := withService(name, func(s *mgr.Service) error {
				if err := stopService(ctx, s); err != nil {
					return err
				}
				return startService(ctx, s)
			})
			if err != nil {
				return fmt.Errorf("%w; its log is %s; when that is mended: sc.exe start %s", err, serviceLogPath(name), name)
			}
			return nil
		},
	}
}
