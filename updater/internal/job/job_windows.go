// Package job ends a process together with what it started: Windows' process
// groups are about signals only, its job objects are about lives.
package job

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Job holds a process and all that it starts from then on. They end with Kill,
// and when this process ends. One goroutine at a time.
type Job struct{ handle windows.Handle }

// exitKilled is the exit code of what Kill ends.
const exitKilled = 1

// Hold puts a process that was just started into a job. What it started before
// is not in it.
func Hold(p *os.Process) (*Job, error) {
	handle, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return nil, fmt.Errorf("make a job object: %w", err)
	}
	j := &Job{handle}
	limits := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{
		BasicLimitInformation: windows.JOBOBJECT_BASIC_LIMIT_INFORMATION{LimitFlags: windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE},
	}
	if _, err := windows.SetInformationJobObject(handle, windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits))); err != nil {
		j.Close()
		return nil, fmt.Errorf("limit the job object: %w", err)
	}
	err = withHandle(p, func(process windows.Handle) error { return windows.AssignProcessToJobObject(handle, process) })
	if err != nil {
		j.Close()
		return nil, fmt.Errorf("put process %d into a job object: %w", p.Pid, err)
	}
	return j, nil
}

// withHandle calls f with a handle of the process that p holds, which keeps its
// id from being given to another.
func withHandle(p *os.Process, f func(windows.Handle) error) error {
	h, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(p.Pid))
	if err != nil {
		return err
	}
	defer func() { _ = windows.CloseHandle(h) }()
	return f(h)
}

// Kill ends what is in the job.
func (j *Job) Kill() {
	if j != nil && j.handle != 0 {
		_ = windows.TerminateJobObject(j.handle, exitKilled) // an error says that there is nobody left
	}
}

// Close ends what is left in the job, and frees it.
func (j *Job) Close() {
	if j != nil && j.handle != 0 {
		_ = windows.CloseHandle(j.handle)
		j.handle = 0
	}
}
