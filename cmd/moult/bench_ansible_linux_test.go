//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// privilegeSeparation is where sshd insists on an empty directory; Debian's service
// makes it when it starts.
const privilegeSeparation = "/run/sshd"

// ansibleSite is what ansible-playbook needs, and what it updates: on each agent's
// host an sshd, and a service that runit runs.
type ansibleSite struct {
	f   *rolloutFleet
	dir string // short: the paths of ssh's sockets have a limit
}

// ansible has it bring a binary to all agents' hosts, one after the other, and restart
// a service of it there. It waits for nothing else.
func (f *rolloutFleet) ansible(program, version string) fleetRollout {
	f.t.Helper()
	dir, err := os.MkdirTemp("", "moult-ab-")
	must(f.t, err)
	s := &ansibleSite{f: f, dir: dir}
	f.t.Cleanup(func() { must(f.t, os.RemoveAll(dir)) })
	s.write(program)
	stop := s.start()
	defer stop()
	cmd := f.server.in("ansible-playbook", "-i", filepath.Join(dir, "hosts.json"), filepath.Join(dir, "play.yml"))
	cmd.Env = append(os.Environ(), "ANSIBLE_CONFIG="+filepath.Join(dir, "ansible.cfg"), "ANSIBLE_HOME="+dir, "ANSIBLE_NOCOLOR=1")
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	r := fleetRollout{By: "ansible, serial: 1", Mbit: f.mbit, Total: time.Since(begin).Seconds()}
	if err != nil {
		f.t.Fatalf("ansible-playbook: %v\n%s", err, out)
	}
	st, err := os.Stat(program)
	must(f.t, err)
	r.Bytes = st.Size()
	for _, h := range f.agents { // it did what it is compared for
		got := strings.TrimSpace(f.read(filepath.Join(h.name, "service", "running")))
		if got != version {
			f.t.Errorf("after ansible the service of %s runs %q, want %s\n%s", h.name, got, version, out)
		}
	}
	return r
}

func (s *ansibleSite) path(name string) string { return filepath.Join(s.dir, name) }

// service is the directory of a host's service.
func (s *ansibleSite) service(h *segmentedHost) string {
	return filepath.Join(s.f.dir, h.name, "service")
}

// write writes keys and configuration. ansible's ssh has its default options:
// compression, and one connection for a host that stays open.
func (s *ansibleSite) write(program string) {
	t := s.f.t
	t.Helper()
	for _, key := range []string{"host_key", "user_key"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", s.path(key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	public, err := os.ReadFile(s.path("host_key.pub"))
	must(t, err)
	user, err := os.ReadFile(s.path("user_key.pub"))
	must(t, err)
	vars := map[string]any{}
	for _, h := range s.f.agents {
		vars[h.name] = map[string]string{
			"ansible_host": h.addr(rolloutSegment), "ansible_remote_tmp": filepath.Join(s.f.dir, h.name, "ansible"), "service": s.service(h),
		}
	}
	hosts, err := json.Marshal(map[string]any{"all": map[string]any{"hosts": vars}})
	must(t, err)
	for name, text := range map[string]string{
		"known_hosts":     "* " + string(public),
		"authorized_keys": string(user),
		"hosts.json":      string(hosts),
		"ansible.cfg": fmt.Sprintf(`[defaults]
private_key_file = %s
remote_user = root
interpreter_python = /usr/bin/python3
local_tmp = %s
[ssh_connection]
pipelining = True
control_path_dir = %s
ssh_common_args = -o UserKnownHostsFile=%s -o GlobalKnownHostsFile=/dev/null
`, s.path("user_key"), s.path("tmp"), s.path("cp"), s.path("known_hosts")),
		"play.yml": fmt.Sprintf(`- hosts: all
  serial: 1
  gather_facts: false
  tasks:
    - ansible.builtin.copy: {src: %s, dest: "{{ service }}/program", mode: "0755"}
    - ansible.builtin.command: sv restart {{ service }}
`, program),
	} {
		must(t, os.WriteFile(s.path(name), []byte(text), 0o600))
	}
}

// start starts an sshd and the service on each host; stop ends them, and the
// connections that ssh keeps.
func (s *ansibleSite) start() (stop func()) {
	t := s.f.t
	t.Helper()
	var ends []func()
	end := func() {
		for i := len(ends) - 1; i >= 0; i-- {
			ends[i]()
		}
	}
	began := false
	defer func() {
		if !began {
			end()
		}
	}()
	if err := os.Mkdir(privilegeSeparation, 0o755); err == nil {
		ends = append(ends, func() { _ = os.Remove(privilegeSeparation) })
	} else if !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	run := func(h *segmentedHost, argv ...string) {
		log, err := os.OpenFile(filepath.Join(s.f.dir, h.name, "ansible.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		must(t, err)
		defer log.Close()
		cmd := h.in(argv...)
		cmd.Stdout, cmd.Stderr = log, log
		must(t, cmd.Start())
		ends = append(ends, func() {
			_ = cmd.Process.Signal(syscall.SIGTERM) // gone already, perhaps
			_ = cmd.Wait()
		})
	}
	for _, h := range s.f.agents {
		dir := s.service(h)
		must(t, os.MkdirAll(dir, 0o700))
		must(t, copyExecutable(binary(t, versionA), filepath.Join(dir, "program")))
		// It stops at once, so that no program's own way of stopping is measured.
		script := fmt.Sprintf("#!/bin/sh\ncd %s && ./program version >running.new && sed 's/^moult \\([^ ]*\\).*/\\1/;q' running.new >running && exec sleep infinity\n", dir)
		must(t, os.WriteFile(filepath.Join(dir, "run"), []byte(script), 0o700))
		run(h, "runsv", dir)
		conf := s.path("sshd-" + h.name)
		must(t, os.WriteFile(conf, fmt.Appendf(nil, `ListenAddress %s
HostKey %s
AuthorizedKeysFile %s
PidFile none
StrictModes no
UsePAM no
UseDNS no
Subsystem sftp /usr/lib/openssh/sftp-server
`, h.addr(rolloutSegment), s.path("host_key"), s.path("authorized_keys")), 0o600))
		run(h, "/usr/sbin/sshd", "-D", "-e", "-f", conf)
	}
	ends = append(ends, func() {
		sockets, _ := filepath.Glob(s.path("cp/*"))
		for _, socket := range sockets {
			_ = exec.Command("ssh", "-o", "ControlPath="+socket, "-O", "exit", "any").Run() // gone already, perhaps
		}
	})
	for _, h := range s.f.agents {
		s.f.await(20*time.Second, "the service and the sshd of "+h.name, func() error {
			if _, err := os.Stat(filepath.Join(s.service(h), "running")); err != nil {
				return err
			}
			out, err := h.in("ssh-keyscan", "-t", "ed25519", h.addr(rolloutSegment)).Output()
			if err == nil && len(out) == 0 {
				err = errors.New("sshd does not answer")
			}
			return err
		})
	}
	began = true
	return end
}
